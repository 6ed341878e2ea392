package objects

import (
	"log/slog"
	"sync"
	"time"
)

const (
	prefetchWorkers = 64
	prefetchQueue   = 8192
	prefetchLimit   = 256 << 10        // bytes; larger objects are not fetched before somebody wants them
	prefetchBudget  = 4 << 20          // bytes one call may ask for: most of what is asked for ahead is never read
	prefetchMemory  = 30 * time.Second // an object asked for within this is not asked for again
	prefetchEntries = 1 << 16          // in each half of that memory
)

// prefetcher is the queue of objects nobody waits for. The zero value is ready.
type prefetcher struct {
	mu           sync.Mutex
	queue        []Ref
	workers      int
	closed       bool
	recent, past map[Ref]struct{} // asked for lately; the two halves change places
	turned       time.Time
}

// Prefetch asks for objects nobody waits for yet, in the order given, up to 4 MiB in all. It returns at once. Objects
// over 256 KiB, for which the wait is mostly transfer, and those asked for a moment ago are passed over; when the queue
// is full, so are the others. Failures are not reported: whoever needs the object will see.
func (s *Store) Prefetch(refs []Ref) {
	q := &s.ahead
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.turn(time.Now())
	budget := int64(prefetchBudget)
	for i, r := range refs {
		if r.Size() > prefetchLimit || q.knows(r) {
			continue
		}
		if budget -= r.Size(); budget < 0 {
			return
		}
		if len(q.queue) >= prefetchQueue {
			s.dropped.Add(int64(len(refs) - i))
			return
		}
		q.queue = append(q.queue, r)
		q.recent[r] = struct{}{}
		if q.workers < prefetchWorkers {
			q.workers++
			s.tasks.start(s.prefetch) // can't be too late: the queue is closed first
		}
	}
}

// prefetch is a worker; it ends when there is nothing to do.
func (s *Store) prefetch() {
	for {
		r, ok := s.ahead.pop()
		if !ok {
			return
		}
		arrived, err := s.fetch(s.life, r, nil)
		if err != nil {
			s.ahead.forget(r)
			s.log.Debug("object store: prefetch failed", slog.String("object", r.Name()), slog.Any("err", err))
		}
		if arrived {
			s.prefetched.Add(1)
		}
	}
}

func (q *prefetcher) pop() (Ref, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 {
		q.workers--
		q.queue = nil
		return Ref{}, false
	}
	r := q.queue[0]
	q.queue = q.queue[1:]
	return r, true
}

func (q *prefetcher) knows(r Ref) bool {
	if _, ok := q.recent[r]; ok {
		return true
	}
	_, ok := q.past[r]
	return ok
}

func (q *prefetcher) forget(r Ref) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.recent, r)
	delete(q.past, r)
}

// turn makes room for new entries, and old ones forgotten.
func (q *prefetcher) turn(now time.Time) {
	if q.recent == nil || now.Sub(q.turned) > prefetchMemory || len(q.recent) > prefetchEntries {
		q.past, q.recent, q.turned = q.recent, map[Ref]struct{}{}, now
	}
}

// forgetOld frees the memory when nobody asks any more.
func (q *prefetcher) forgetOld(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Sub(q.turned) > 2*prefetchMemory {
		q.past, q.recent = nil, nil
	}
}

func (q *prefetcher) queued() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return int64(len(q.queue))
}

func (q *prefetcher) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.queue = true, nil
}
