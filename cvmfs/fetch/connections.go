package fetch

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Limits of connections to one server or proxy; docs/adr/0014 has the measurements.
const (
	// mostConnections are in use at once. What is more queues.
	mostConnections = 32
	// startFresh connections may be new at once, that is without an answer yet. A server takes new connections one
	// after another, from a queue that may be as short as five; what doesn't fit is dropped, and repeated by the kernel
	// only after a second.
	startFresh = 4
	// mostFresh is how far that grows where the way is long.
	mostFresh = 16
	// longWay is a round trip during which a server can take several connections.
	longWay = 2 * time.Millisecond
	// slowConnect is a connection whose first packet was dropped.
	slowConnect = 900 * time.Millisecond
	// holdFresh is how long after that the number doesn't grow.
	holdFresh = time.Minute
)

// Connections bounds the connections to each server and proxy. Fetchers of several repositories share it, as they have
// the same servers and proxies. Its zero value is ready.
type Connections struct {
	mu    sync.Mutex
	lanes map[string]*lane
}

// lane returns the lane to an address, host and port.
func (c *Connections) lane(addr string) *lane {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lanes == nil {
		c.lanes = map[string]*lane{}
	}
	l := c.lanes[addr]
	if l == nil {
		l = &lane{limit: startFresh}
		c.lanes[addr] = l
	}
	return l
}

// Queued returns how many requests wait for a connection now.
func (c *Connections) Queued() (n int) {
	c.mu.Lock()
	lanes := slices.Collect(maps.Values(c.lanes))
	c.mu.Unlock()
	for _, l := range lanes {
		l.mu.Lock()
		n += len(l.waiting)
		l.mu.Unlock()
	}
	return n
}

// lane is the connections to one server or proxy. They become more only by being answered: of new ones there are at
// most limit at once, or as many as are in use that were answered.
type lane struct {
	mu      sync.Mutex
	limit   int           // of fresh
	fresh   int           // slots whose connection has no answer yet
	busy    int           // slots
	dials   int           // being connected
	trip    time.Duration // the shortest connect; a busy host makes single ones long
	hold    time.Time     // until then limit doesn't grow
	worked  time.Time     // last answer
	waiting []*waiter     // in order of arrival, those who let others pass behind them
}

// waiter waits for a slot or for a dial.
type waiter struct {
	dial    bool
	patient bool          // it lets others pass
	ready   chan struct{} // closed when it's its turn
}

// patience is the key of a context's value.
type patience struct{}

// LetPass returns a context whose requests, where they wait for a connection, let those pass that others make: for what
// nobody waits for yet.
func LetPass(ctx context.Context) context.Context { return context.WithValue(ctx, patience{}, true) }

// LetsPass reports whether a context is one of LetPass.
func LetsPass(ctx context.Context) bool { return ctx.Value(patience{}) != nil }

// queue puts a waiter in its place. The caller holds mu.
func (l *lane) queue(w *waiter) {
	at := len(l.waiting)
	if !w.patient {
		if first := slices.IndexFunc(l.waiting, func(o *waiter) bool { return o.patient }); first >= 0 {
			at = first
		}
	}
	l.waiting = slices.Insert(l.waiting, at, w)
}

// free reports whether there is room for a slot or a dial.
func (l *lane) free(dial bool) bool {
	if dial {
		return l.dials < l.limit
	}
	fresh := l.limit
	if time.Now().After(l.hold) {
		fresh = max(fresh, l.busy-l.fresh) // who answers so many at once takes as many more
	}
	return l.busy < mostConnections && l.fresh < fresh
}

func (l *lane) take(dial bool) {
	if dial {
		l.dials++
		return
	}
	l.busy++
	l.fresh++
}

// wake lets in who waited longest and has room now. It is called with mu held.
func (l *lane) wake() {
	rest := l.waiting[:0]
	for _, w := range l.waiting {
		if !l.free(w.dial) {
			rest = append(rest, w)
			continue
		}
		l.take(w.dial)
		close(w.ready)
	}
	clear(l.waiting[len(rest):])
	l.waiting = rest
}

// wait waits for room and takes it.
func (l *lane) wait(ctx context.Context, dial bool) (waited bool, err error) {
	l.mu.Lock()
	if l.free(dial) {
		l.take(dial)
		l.mu.Unlock()
		return false, nil
	}
	w := &waiter{dial: dial, patient: LetsPass(ctx), ready: make(chan struct{})}
	l.queue(w)
	l.mu.Unlock()
	select {
	case <-w.ready:
		return true, nil
	case <-ctx.Done():
		l.forget(w)
		return true, context.Cause(ctx)
	}
}

// forget takes a waiter off the queue, or gives back what it got just now.
func (l *lane) forget(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, other := range l.waiting {
		if other == w {
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			return
		}
	}
	if w.dial {
		l.dials--
	} else {
		l.busy--
		l.fresh--
	}
	l.wake()
}

// slot is the right to have one request under way.
type slot struct {
	lane        *lane
	fresh, over bool // guarded by lane.mu
}

// enter waits for a slot. Without a lane there is nothing to wait for.
func (l *lane) enter(ctx context.Context) (s *slot, waited bool, err error) {
	if l == nil {
		return nil, false, nil
	}
	if waited, err = l.wait(ctx, false); err != nil {
		return nil, waited, err
	}
	return &slot{lane: l, fresh: true}, waited, nil
}

// proved records that the connection is one that was answered before, or is answered now.
func (s *slot) proved(answer bool) {
	if s == nil {
		return
	}
	l := s.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if answer {
		l.worked = now
	}
	if !s.fresh || s.over {
		return
	}
	s.fresh = false
	l.fresh--
	if answer && now.After(l.hold) && (l.limit < startFresh || l.trip >= longWay && l.limit < mostFresh) {
		l.limit++
	}
	l.wake()
}

// leave gives the slot back.
func (s *slot) leave() {
	if s == nil {
		return
	}
	l := s.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.over {
		return
	}
	s.over = true
	l.busy--
	if s.fresh {
		l.fresh--
	}
	l.wake()
}

// answeredSince reports whether anything came from there after a time.
func (l *lane) answeredSince(t time.Time) bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.worked.After(t)
}

// connect dials, with others or after them, and draws its conclusions from how that went.
func (l *lane) connect(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	if _, err := l.wait(ctx, true); err != nil {
		return nil, err
	}
	start := time.Now()
	c, err := dial(ctx)
	l.connected(ctx, time.Since(start), err)
	return c, err
}

func (l *lane) connected(ctx context.Context, took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dials--
	switch {
	case err == nil && took < slowConnect:
		l.trip = min(cmp.Or(l.trip, took), took)
	case err == nil, errors.Is(err, syscall.ECONNREFUSED), ctx.Err() == nil:
		l.limit = max(1, l.limit/2)
		l.hold = time.Now().Add(holdFresh)
	}
	l.wake()
}
