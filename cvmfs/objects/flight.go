package objects

import (
	"context"
	"errors"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

var errClosed = errors.New("the object store is closed")

// tasks are what runs beside its callers, to be waited for in the end. The zero value is ready. A goroutine that has
// done its task takes the next one, for a while: a new one would have to grow its stack again, a tenth of what fetching
// a small object costs.
type tasks struct {
	mu       sync.Mutex
	closed   bool
	running  sync.WaitGroup // tasks
	idle     []idler        // goroutines without a task, the one that came last at the end
	sweeping bool           // sweep is to come
}

// idler is a goroutine without a task since some time. Its channel has room for one; closed, it ends the goroutine.
type idler struct {
	next  chan func()
	since time.Time
}

const (
	idleTasks = 64              // goroutines that wait for a task, at most
	idleTime  = 5 * time.Second // for which they do, at least; at most twice as long
)

// start runs fn, unless it is too late.
func (t *tasks) start(fn func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.running.Add(1)
	if n := len(t.idle); n > 0 {
		t.idle[n-1].next <- fn // nobody else knows it any more
		t.idle = t.idle[:n-1]
	} else {
		go t.work(fn)
	}
	return true
}

// work runs fn, and what comes after it.
func (t *tasks) work(fn func()) {
	next := make(chan func(), 1)
	for fn != nil {
		fn()
		fn = t.next(next)
	}
}

// next ends a task and waits for another; nil if there is none.
func (t *tasks) next(next chan func()) func() {
	t.mu.Lock()
	wait := !t.closed && len(t.idle) < idleTasks
	if wait {
		t.idle = append(t.idle, idler{next, time.Now()})
		if !t.sweeping {
			t.sweeping = true
			time.AfterFunc(idleTime, t.sweep)
		}
	}
	t.mu.Unlock()
	t.running.Done()
	if !wait {
		return nil
	}
	return <-next
}

// sweep ends the goroutines that had nothing to do for long. There is one timer for all: one for each wait would wake
// the scheduler for each task.
func (t *tasks) sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := 0
	for old < len(t.idle) && time.Since(t.idle[old].since) >= idleTime {
		close(t.idle[old].next)
		old++
	}
	t.idle = slices.Delete(t.idle, 0, old)
	if t.sweeping = len(t.idle) > 0; t.sweeping {
		time.AfterFunc(idleTime, t.sweep)
	}
}

// wait waits for all, and lets no more start.
func (t *tasks) wait() {
	t.mu.Lock()
	t.closed = true
	for _, i := range t.idle {
		close(i.next)
	}
	t.idle = nil
	t.mu.Unlock()
	t.running.Wait()
}

// flights are fetches under way, by what they fetch. The zero value is ready.
type flights struct {
	mu    sync.Mutex
	m     map[string]*flight
	ended atomic.Int64 // so many have, before they were taken out of m
}

type flight struct {
	done      chan struct{}
	err       error // set before done is closed
	cancel    context.CancelFunc
	waiters   int
	abandoned bool // cancelled; it still has to come to its end, so that no two ever write one place
}

// has reports whether a flight is under way.
func (g *flights) has(key string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.m[key] != nil
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

// whenAsked returns a context that has fn called each time that a flight that is begun with it sends a request. What
// somebody waits for isn't to share the way with what nobody does: that is to be asked for behind it.
func (s *Store) whenAsked(ctx context.Context, fn func()) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		// It is called before the last of the request has left the buffer, which goes out once it returns.
		WroteRequest: func(httptrace.WroteRequestInfo) { s.tasks.start(fn) },
	})
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
		g.ended.Add(1)
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
