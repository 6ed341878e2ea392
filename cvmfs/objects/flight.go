package objects

import (
	"context"
	"errors"
	"sync"
)

var errClosed = errors.New("the object store is closed")

// tasks are goroutines to wait for in the end. The zero value is ready.
type tasks struct {
	mu     sync.Mutex
	closed bool
	group  sync.WaitGroup
}

// start runs fn, unless it is too late.
func (t *tasks) start(fn func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.group.Go(fn)
	}
	return !t.closed
}

// wait waits for all, and lets no more start.
func (t *tasks) wait() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.group.Wait()
}

// flights are fetches under way, by what they fetch. The zero value is ready.
type flights struct {
	mu sync.Mutex
	m  map[string]*flight
}

type flight struct {
	done      chan struct{}
	err       error // set before done is closed
	cancel    context.CancelFunc
	waiters   int
	abandoned bool // cancelled; it still has to come to its end, so that no two ever write one place
}

// join waits for the flight of that key and gives its error. If there is none it starts one with fly, whose context
// lives as long as anybody waits, and no longer than life.
func (g *flights) join(ctx, life context.Context, work *tasks, key string, fly func(context.Context) error) error {
	for ctx.Err() == nil {
		f, mine := g.board(life, work, key, fly)
		select {
		case <-f.done:
			if mine {
				return f.err
			}
		case <-ctx.Done():
			if mine {
				g.leave(f)
			}
			return context.Cause(ctx)
		}
	}
	return context.Cause(ctx)
}

// board returns the flight of that key. It is not the caller's to share where all have left it.
func (g *flights) board(life context.Context, work *tasks, key string,
	fly func(context.Context) error,
) (f *flight, mine bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.m[key]; f != nil {
		if !f.abandoned {
			f.waiters++
		}
		return f, !f.abandoned
	}
	ctx, cancel := context.WithCancel(life)
	f = &flight{done: make(chan struct{}), cancel: cancel, waiters: 1}
	if g.m == nil {
		g.m = map[string]*flight{}
	}
	g.m[key] = f
	started := work.start(func() {
		defer cancel()
		f.err = context.Cause(ctx)
		if f.err == nil {
			f.err = fly(ctx)
		}
		g.mu.Lock()
		delete(g.m, key)
		g.mu.Unlock()
		close(f.done)
	})
	if !started {
		cancel()
		delete(g.m, key)
		f.err = errClosed
		close(f.done)
	}
	return f, true
}

// leave is a waiter's going. The last one ends the flight.
func (g *flights) leave(f *flight) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.abandoned = true
		f.cancel()
	}
}
