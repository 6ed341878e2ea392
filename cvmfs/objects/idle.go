package objects

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"
)

// idleFor is Config.Idle unless that says otherwise.
const idleFor = 10 * time.Second

// quiet tells how long no reader has had to wait.
type quiet struct{ since atomic.Int64 } // Unix nanoseconds

// broken notes that a reader waits now.
func (q *quiet) broken() { q.since.Store(time.Now().UnixNano()) }

func (q *quiet) lasts(d time.Duration) bool { return time.Since(time.Unix(0, q.since.Load())) >= d }

// completeIdle fetches the rest of objects that are partly here while nobody waits for anything, until ctx ends.
func (s *Store) completeIdle(ctx context.Context) {
	for sleep(ctx, s.cfg.Idle/4) == nil {
		for s.isIdle() {
			p := s.partials.latest()
			if p == nil {
				break
			}
			done := s.completeGently(ctx, p)
			s.partials.release(p)
			if !done {
				break
			}
		}
	}
}

// isIdle reports whether nobody waits for the network, nor has for a while, and no program is starting. One that starts
// by a profile may never wait: all that it reads is here before.
func (s *Store) isIdle() bool {
	return s.quiet.lasts(s.cfg.Idle) && s.ahead.queued() == 0 && !s.starts.any()
}

// latest returns the file that was used last of those that are to be completed, nil if there is none. The caller hands
// it back to release.
func (g *partials) latest() (latest *partial) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.m {
		if !p.isSettled() && (latest == nil || p.used.After(latest.used)) {
			latest = p
		}
	}
	if latest != nil {
		latest.users++
	}
	return latest
}

// isSettled reports whether nothing is to be done for a file: it has no chunks, or all, or can't have more.
func (p *partial) isSettled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.Chunks) == 0 || p.missing == 0 || p.stuck
}

// completeGently fetches the missing chunks of a file, one after the other, as long as nobody else fetches. It reports
// whether the file needs no more. Nothing is evicted for it.
func (s *Store) completeGently(ctx context.Context, p *partial) bool {
	for i := range p.pieces {
		if p.has(i) {
			continue
		}
		if limit, floor := s.excess(limitBegin, floorBegin); !s.isIdle() || limit+p.pieces[i].Size > 0 ||
			floor+p.pieces[i].Size > 0 {
			return false
		}
		if err := s.need(ctx, p, i, i+1, s.reserve); err != nil {
			s.log.Debug("object store: an object stays partly here", slog.String("object", p.name), slog.Any("err", err))
			p.mu.Lock()
			p.stuck = !errors.Is(err, ErrLimit) && ctx.Err() == nil
			p.mu.Unlock()
			return p.stuck
		}
	}
	return true
}
