// Package lockordertest checks the order in which locks are taken.
package lockordertest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/lockorder"
)

// Watch returns a watcher that tells where locks are taken in another order than that of package lockorder. dir is
// the folder of the layers.
func Watch(dir string, wrong func(text string)) lockorder.Watcher {
	return &watcher{dir: dir, wrong: wrong, held: map[string][]heldLock{}}
}

// watcher checks the order in which each goroutine takes locks.
type watcher struct {
	dir   string
	wrong func(string)

	mu   sync.Mutex
	held map[string][]heldLock // by goroutine
}

type heldLock struct {
	rank lockorder.Rank
	name string
}

func (w *watcher) Taking(r lockorder.Rank, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := goroutine()
	for _, h := range w.held[g] {
		ancestor := r == lockorder.Mounts && h.rank == r && w.above(h.name, name)
		if h.rank >= r && !ancestor {
			w.wrong(fmt.Sprintf("the lock %q is taken with %q held", name, h.name))
		}
	}
	w.held[g] = append(w.held[g], heldLock{r, name})
}

func (w *watcher) Released(r lockorder.Rank, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := goroutine()
	for n, h := range w.held[g] {
		if h == (heldLock{r, name}) {
			w.held[g] = append(w.held[g][:n:n], w.held[g][n+1:]...)
			break
		}
	}
	if len(w.held[g]) == 0 {
		delete(w.held, g)
	}
}

// above reports whether a layer has another one among its ancestors.
func (w *watcher) above(id, ancestor string) bool {
	const deepest = 1024
	for range deepest {
		b := make([]byte, 4096)
		n, err := unix.Lgetxattr(filepath.Join(w.dir, id), "trusted.cvmfs-graphdriver.layer", b)
		var record struct{ Parent string }
		if err != nil || json.Unmarshal(b[:n], &record) != nil || record.Parent == "" {
			return false
		}
		if id = record.Parent; id == ancestor {
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
