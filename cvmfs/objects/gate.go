package objects

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// How long a fetch waits for eviction, at the limit and at the floor.
	limitPatience = 100 * time.Millisecond
	floorPatience = 5 * time.Second
	// unstoredPart of the limit is what partial files may take beyond it, where nothing can be evicted, and
	// unstoredWait how long a reader waits for others that read from such files.
	unstoredPart = 32
	unstoredWait = 200 * time.Millisecond
)

// gate is what every fetch passes.
type gate struct {
	mu     sync.Mutex
	wished Limits // as they were set
	limits Limits // as they hold
	flying int64  // bytes being fetched
	parts  int64  // bytes in partial files
	want   int64  // the largest fetch that waits for eviction
	turn   chan struct{}
	stuck  time.Time // until then eviction is not tried; zero where something has changed since it found nothing
	pause  time.Duration

	refused, unstored int64 // fetches ended at the floor; objects not stored for the limit
}

// promise passes n bytes, which are then under way, or says what hinders them, ErrLimit or a SpaceError, and how long
// eviction is worth waiting for. Where little is left, it starts eviction.
func (s *Store) promise(n int64) (patience time.Duration, err error) {
	_, free, err := s.fileSystem()
	if err != nil {
		return 0, err
	}
	exact := s.ledger.exact.Load() // first: the bytes are then, too
	stored := s.ledger.bytes.Load()
	if patience, err := s.gate.promise(n, free, stored, exact); err != nil {
		return patience, err
	}
	if limit, floor := s.gate.excess(free, stored, limitBegin, floorBegin); limit > 0 || floor > 0 {
		s.startEviction()
	}
	return 0, nil
}

// promise is that of a store with so many bytes, on a file system with so many free ones. Where all that is stored
// would not make room enough, there is nothing to wait for.
func (g *gate) promise(n, free, stored int64, exact bool) (patience time.Duration, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	free -= g.flying
	switch {
	case free-n < g.limits.Floor:
		if free+stored+g.parts-n >= g.limits.Floor {
			g.want = max(g.want, n)
			patience = floorPatience
		} else if !exact {
			patience = floorPatience // there may be more
		}
		return patience, &SpaceError{Want: n, Free: free, Floor: g.limits.Floor}
	case stored+g.flying+g.parts+n > g.limits.Limit:
		if n <= g.limits.Limit {
			g.want = max(g.want, n)
			patience = limitPatience
		}
		return patience, ErrLimit
	}
	g.flying += n
	return 0, nil
}

// landed ends what promise began: the bytes are in the ledger, in a partial file, or given up.
func (g *gate) landed(n, inPart int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flying -= n
	g.parts += inPart
}

// freed takes the bytes of a partial file off.
func (g *gate) freed(n int64) { g.landed(0, -n) }

// reserve passes n bytes that are to be stored. It waits a little for eviction.
func (s *Store) reserve(ctx context.Context, n int64) error {
	for began := time.Now(); ; {
		patience, err := s.promise(n)
		if err == nil {
			return nil
		}
		if err = s.evicted(ctx, err, patience-time.Since(began)); err != nil {
			return err
		}
	}
}

// reserveUnstored passes n bytes that go into a partial file, be it stored in the end or not. Beyond the limit such
// files share a small part of it: idle ones give way, and what nobody reads in the file itself; where all is being
// read, the reader waits a moment and goes on all the same.
func (s *Store) reserveUnstored(ctx context.Context, n int64, p *partial) error {
	for began := time.Now(); ; {
		patience, err := s.promise(n)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrLimit):
			s.keepAhead()
			s.partials.dropIdle(time.Now())
			s.partials.shrink(p)
			if s.gate.squeeze(n, time.Since(began) > unstoredWait) {
				return nil
			}
			if err := sleep(ctx, 5*time.Millisecond); err != nil {
				return err
			}
		default:
			if err = s.evicted(ctx, err, patience-time.Since(began)); err != nil {
				return err
			}
		}
	}
}

// squeeze passes n bytes beyond the limit if they have room in what partial files may take there, or if they must. One
// file always may, however large: an object without chunks is verified whole.
func (g *gate) squeeze(n int64, must bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !must && g.flying+g.parts > 0 && g.flying+g.parts+n > g.limits.Limit/unstoredPart {
		return false
	}
	g.flying += n
	return true
}

// evicted waits until eviction has made a step, no longer than patience. It gives back err, which has ended a promise,
// where there is nothing to wait for.
func (s *Store) evicted(ctx context.Context, err error, patience time.Duration) error {
	var turn <-chan struct{}
	if patience > 0 {
		turn = s.startEviction()
	}
	if turn == nil {
		s.gate.refuse(err)
		return err
	}
	select {
	case <-turn:
		return nil
	case <-time.After(patience):
		return nil // and tried once more
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *gate) refuse(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if errors.Is(err, ErrLimit) {
		g.unstored++
	} else {
		g.refused++
	}
}

// wait returns a channel that is closed at the next step of eviction.
func (g *gate) wait() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.turn == nil {
		g.turn = make(chan struct{})
	}
	return g.turn
}

// ended tells those who wait that eviction has come to an end, and whether it is stuck.
func (g *gate) ended(stuck bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.want = 0
	if stuck {
		g.pause = min(max(2*g.pause, stuckFor), stuckMost)
		g.stuck = time.Now().Add(g.pause)
	}
	g.wake()
}

// step tells those who wait that eviction has made a step.
func (g *gate) step() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wake()
}

// wake ends the waiting. The caller holds mu.
func (g *gate) wake() {
	if g.turn != nil {
		close(g.turn)
		g.turn = nil
	}
}

// unstick notes that there may be something to evict again.
func (g *gate) unstick() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stuck, g.pause = time.Time{}, 0
}

// isStuck reports whether eviction found nothing lately.
func (g *gate) isStuck() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Now().Before(g.stuck)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
