package layers

import (
	"bytes"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
)

// Linger is how long a layer stays mounted that nobody uses any more.
const Linger = linger

// WatchLocks has a store that is opened with cfg tell where it takes locks in another order than the one that is
// written down.
func WatchLocks(cfg *Config, wrong func(text string)) {
	cfg.watch = &lockOrder{root: cfg.Root, wrong: wrong, held: map[string][]heldLock{}}
}

// lockOrder checks the order in which each goroutine takes locks.
type lockOrder struct {
	root  string
	wrong func(string)

	mu   sync.Mutex
	held map[string][]heldLock // by goroutine
}

type heldLock struct {
	rank rank
	name string
}

func (o *lockOrder) Taking(r rank, name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	g := goroutine()
	for _, h := range o.held[g] {
		if h.rank >= r && !(r == rankLayer && h.rank == rankLayer && o.above(h.name, name)) {
			o.wrong(fmt.Sprintf("the lock %q is taken with %q held", name, h.name))
		}
	}
	o.held[g] = append(o.held[g], heldLock{r, name})
}

func (o *lockOrder) Released(r rank, name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	g := goroutine()
	for n, h := range o.held[g] {
		if h == (heldLock{r, name}) {
			o.held[g] = append(o.held[g][:n:n], o.held[g][n+1:]...)
			break
		}
	}
	if len(o.held[g]) == 0 {
		delete(o.held, g)
	}
}

// above reports whether a layer has another one among its ancestors.
func (o *lockOrder) above(id, ancestor string) bool {
	for range maxDepth {
		var l layer
		if readRecord(filepath.Join(o.root, "layers", id), recordXattr, &l) != nil || l.Parent == "" {
			return false
		}
		if id = l.Parent; id == ancestor {
			return true
		}
	}
	return false
}

// goroutine names the one that calls.
func goroutine() string {
	b := make([]byte, 64)
	return string(bytes.Fields(b[:runtime.Stack(b, false)])[1])
}
