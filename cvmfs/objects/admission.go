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

// admission decides on what may be fetched, and accounts for it.
type admission struct {
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

// promise admits n bytes, which are then under way, or says what hinders them, ErrLimit or a SpaceError, and how long
// eviction is worth waiting for. Where little is left, it starts eviction.
func (s *Store) promise(n int64) (patience time.Duration, err error) {
	_, free, err := s.fileSystem()
	if err != nil {
		return 0, err
	}
	exact := s.ledger.exact.Load() // first: the bytes are then, too
	stored := s.ledger.bytes.Load()
	if patience, err := s.admission.promise(n, free, stored, exact); err != nil {
		return patience, err
	}
	if limit, floor := s.admission.excess(free, stored, limitBegin, floorBegin); limit > 0 || floor > 0 {
		s.startEviction()
	}
	return 0, nil
}

// promise is that of a store with so many bytes, on a file system with so many free ones. Where all that is stored
// would not make room enough, there is nothing to wait for.
func (a *admission) promise(n, free, stored int64, exact bool) (patience time.Duration, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	free -= a.flying
	switch {
	case free-n < a.limits.Floor:
		if free+stored+a.parts-n >= a.limits.Floor {
			a.want = max(a.want, n)
			patience = floorPatience
		} else if !exact {
			patience = floorPatience // there may be more
		}
		return patience, &SpaceError{Want: n, Free: free, Floor: a.limits.Floor}
	case stored+a.flying+a.parts+n > a.limits.Limit:
		if n <= a.limits.Limit {
			a.want = max(a.want, n)
			patience = limitPatience
		}
		return patience, ErrLimit
	}
	a.flying += n
	return 0, nil
}

// landed ends what promise began: the bytes are in the ledger, in a partial file, or given up.
func (a *admission) landed(n, inPart int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flying -= n
	a.parts += inPart
}

// freed takes the bytes of a partial file off.
func (a *admission) freed(n int64) { a.landed(0, -n) }

// reserve admits n bytes that are to be stored. It waits a little for eviction.
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

// reserveUnstored admits n bytes that go into a partial file, be it stored in the end or not. Beyond the limit such
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
			s.dropHeld()
			s.partials.dropIdle(time.Now())
			s.partials.shrink(p)
			if s.admission.squeeze(n, time.Since(began) > unstoredWait) {
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

// squeeze admits n bytes beyond the limit if they have room in what partial files may take there, or if they must. One
// file always may, however large: an object without chunks is verified whole.
func (a *admission) squeeze(n int64, must bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !must && a.flying+a.parts > 0 && a.flying+a.parts+n > a.limits.Limit/unstoredPart {
		return false
	}
	a.flying += n
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
		s.admission.refuse(err)
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

func (a *admission) refuse(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if errors.Is(err, ErrLimit) {
		a.unstored++
	} else {
		a.refused++
	}
}

// wait returns a channel that is closed at the next step of eviction.
func (a *admission) wait() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.turn == nil {
		a.turn = make(chan struct{})
	}
	return a.turn
}

// ended tells those who wait that eviction has come to an end, and whether it is stuck.
func (a *admission) ended(stuck bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.want = 0
	if stuck {
		a.pause = min(max(2*a.pause, stuckFor), stuckMost)
		a.stuck = time.Now().Add(a.pause)
	}
	a.wake()
}

// step tells those who wait that eviction has made a step.
func (a *admission) step() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wake()
}

// wake ends the waiting. The caller holds mu.
func (a *admission) wake() {
	if a.turn != nil {
		close(a.turn)
		a.turn = nil
	}
}

// partial returns the bytes on disk in partial files.
func (a *admission) partial() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.parts
}

// unstick notes that there may be something to evict again.
func (a *admission) unstick() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stuck, a.pause = time.Time{}, 0
}

// isStuck reports whether eviction found nothing lately.
func (a *admission) isStuck() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Now().Before(a.stuck)
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
