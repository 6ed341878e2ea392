package objects

import (
	"context"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"cvmfs-graphdriver/cvmfs/fetch"
)

const (
	prefetchWorkers = 64
	prefetchQueue   = 8192
	prefetchLimit   = 128 << 10        // bytes; larger objects are not fetched before somebody wants them
	moduleLimit     = 512 << 10        // likewise of libraries that are loaded by others of their folder
	prefetchBudget  = 4 << 20          // bytes one call may ask for
	prefetchMemory  = 30 * time.Second // an object asked for within this is not asked for again
	prefetchEntries = 1 << 16          // in each half of that memory

	// Neighbours are those so near in the order of the folders, on both sides. What is fetched of a neighbourhood, a
	// row of so many objects, is bounded by how many of it were asked for.
	nearby        = 64
	neighbourhood = 64 // the bits of usage.asked
	// For each object that is asked for, so many neighbours may come, and so many before one is: the more, the longer
	// readers wait, as many as milliseconds.
	leastGrant, mostGrant = 4, 16
)

// prefetcher is the queue of objects nobody waits for. The zero value is ready.
type prefetcher struct {
	mu           sync.Mutex
	queue        []order
	workers      int
	closed       bool
	recent, past map[Ref]struct{} // asked for lately; the two halves change places
	turned       time.Time
	near         map[stretch]*usage
}

// order is an object to be fetched ahead, and whether it is to be held.
type order struct {
	Ref
	hold bool
}

// stretch is a neighbourhood of a table, by its number.
type stretch struct {
	t *Table
	n uint32
}

// usage is what became of a neighbourhood.
type usage struct {
	asked   uint64 // a bit for each object that was asked for
	brought int    // objects that were fetched ahead, or are to be
}

func (r Ref) stretch() stretch { return stretch{r.t, r.pos / neighbourhood} }

// Prefetch asks for objects nobody waits for yet, in the order given, up to 4 MiB in all. It returns at once. Objects
// over 128 KiB, for which the wait is mostly transfer, and those asked for a moment ago are passed over; when the queue
// is full, so are the others. Failures are not reported: whoever needs the object will see.
func (s *Store) Prefetch(refs []Ref) {
	q := &s.ahead
	q.mu.Lock()
	defer q.mu.Unlock()
	s.enqueue(refs, false, func(Ref) bool { return true })
}

// Near tells that somebody asks for an object that isn't in the store's folder, and has neighbours of it fetched ahead,
// as Prefetch does: a program that opens one file of a folder mostly opens others of it. They are held, to see which of
// them are asked for: where few are, few more come. Only the first time counts. Where a profile says what the image's
// start reads, none come; nor for a library that programs are linked with, as those beside it are other programs'.
func (s *Store) Near(r Ref) {
	if s.cfg.NothingAhead || s.starts.has(r.t) || r.isLinked() {
		return
	}
	grant := s.readers.grant()
	q := &s.ahead
	q.mu.Lock()
	defer q.mu.Unlock()
	q.turn(time.Now())
	q.recent[r] = struct{}{}
	own, bit := q.usage(r), uint64(1)<<(r.pos%neighbourhood)
	if own.asked&bit != 0 {
		return
	}
	own.asked |= bit
	s.enqueue(r.near(nearby), true, func(n Ref) bool {
		u := q.usage(n)
		if u.brought >= grant*(1+bits.OnesCount64(u.asked)) {
			return false
		}
		u.brought++
		return true
	})
}

// FetchNear is Fetch and Near, and follows what it has fetched. The neighbours are asked for when the object has been:
// what somebody waits for isn't to share the way with what nobody does.
func (s *Store) FetchNear(ctx context.Context, r Ref) error {
	ctx, near := s.nearBehind(ctx, r)
	defer near()
	err := s.Fetch(ctx, r)
	if err == nil {
		s.followSoon(r)
	}
	return err
}

// ReadNear has read read from an object that isn't in the store's folder, by ReadAt with the context it is given. The
// neighbours are asked for as by FetchNear.
func (s *Store) ReadNear(ctx context.Context, r Ref, read func(ctx context.Context)) {
	ctx, near := s.nearBehind(ctx, r)
	defer near()
	read(ctx)
	if !r.Chunked() { // else ReadAt has
		s.followSoon(r)
	}
}

// nearBehind returns a context with which a request for an object is followed by Near, and what does the same where no
// request was needed, or it was another's.
func (s *Store) nearBehind(ctx context.Context, r Ref) (behind context.Context, near func()) {
	near = sync.OnceFunc(func() { s.Near(r) })
	return s.whenAsked(ctx, near), near
}

// enqueue puts in the queue what may come. The caller holds the queue's mu.
func (s *Store) enqueue(refs []Ref, hold bool, may func(Ref) bool) {
	q := &s.ahead
	if q.closed {
		return
	}
	q.turn(time.Now())
	budget := int64(prefetchBudget)
	for i, r := range refs {
		if r.Size() > r.aheadLimit() || q.knows(r) || !may(r) {
			continue
		}
		if budget -= r.Size(); budget < 0 {
			return
		}
		if len(q.queue) >= prefetchQueue {
			s.dropped.Add(int64(len(refs) - i))
			return
		}
		q.queue = append(q.queue, order{r, hold})
		q.recent[r] = struct{}{}
		if q.workers < prefetchWorkers {
			q.workers++
			s.tasks.start(s.prefetch) // can't be too late: the queue is closed first
		}
	}
}

// aheadLimit is the size up to which an object is fetched ahead as a neighbour.
func (r Ref) aheadLimit() int64 {
	if r.isModule() {
		return moduleLimit
	}
	return prefetchLimit
}

// usage returns what became of the neighbourhood of an object. The caller holds mu.
func (q *prefetcher) usage(r Ref) *usage {
	u := q.near[r.stretch()]
	if u == nil {
		if q.near == nil || len(q.near) > prefetchEntries {
			q.near = map[stretch]*usage{}
		}
		u = &usage{}
		q.near[r.stretch()] = u
	}
	return u
}

// prefetch is a worker; it ends when there is nothing to do.
func (s *Store) prefetch() {
	ctx := fetch.LetPass(s.life)
	for {
		o, ok := s.ahead.pop()
		if !ok {
			return
		}
		r := o.Ref
		arrived, err := s.bring(ctx, r, nil, o.hold)
		if err != nil {
			s.ahead.forget(r)
			s.log.Debug("object store: prefetch failed", slog.String("object", r.Name()), slog.Any("err", err))
		}
		switch {
		case arrived:
			s.prefetched.Add(1)
		case o.hold:
			s.ahead.refund(r)
		}
	}
}

func (q *prefetcher) pop() (order, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 {
		q.workers--
		q.queue = nil
		return order{}, false
	}
	o := q.queue[0]
	q.queue = q.queue[1:]
	return o, true
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

// refund takes back that a neighbour was brought: it was here.
func (q *prefetcher) refund(r Ref) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.usage(r).brought--
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
		q.past, q.recent, q.near = nil, nil, nil
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

// pace is how long readers wait for an object, lately. The zero value is ready.
type pace struct{ wait atomic.Int64 }

// waited takes note of a wait. An eighth of the value is that of the last.
func (p *pace) waited(d time.Duration) {
	was := p.wait.Load()
	p.wait.CompareAndSwap(was, was+(int64(d)-was)/8) // one that is lost to another does no harm
}

// grant is how many neighbours may come for each object that is asked for.
func (p *pace) grant() int {
	return int(min(max(p.wait.Load()/int64(time.Millisecond), leastGrant), mostGrant))
}
