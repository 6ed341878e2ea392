package layers

import (
	"maps"
	"slices"
	"time"
)

// linger is how long a layer stays mounted that nobody uses any more.
const linger = time.Second

// idle are the layers that stay mounted though nobody uses them, by id, with the records they had when they were open.
// On disk nothing tells of them. A layer becomes idle, and stops being so, with its lock held. The zero value is none.
type idle struct {
	mu     mutex
	layers map[string]idleLayer
}

type idleLayer struct {
	open
	end *time.Timer
}

// add makes a layer idle; end is called when that has lasted long enough.
func (i *idle) add(id string, o open, end func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.layers == nil {
		i.layers = map[string]idleLayer{}
	}
	i.layers[id] = idleLayer{o, time.AfterFunc(linger, end)}
}

// take makes a layer one that isn't idle, and reports whether it was.
func (i *idle) take(id string) (open, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	l, ok := i.layers[id]
	if ok {
		l.end.Stop()
		delete(i.layers, id)
	}
	return l.open, ok
}

func (i *idle) has(id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, ok := i.layers[id]
	return ok
}

func (i *idle) ids() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Keys(i.layers))
}

// retire unmounts a layer if it is idle. When it returns no unmount is under way either.
func (s *Store) retire(id string) {
	defer s.locks.lock(id)()
	if !s.idle.has(id) {
		return
	}
	if err := s.close(id); err != nil {
		s.cfg.Log.Error("unmount a layer that nobody uses any more", "layer", id, "err", err)
	}
}

// CloseIdle unmounts the layers that nobody uses any more and that are still mounted, as they are for a moment after
// the last Put.
func (s *Store) CloseIdle() {
	for _, id := range s.idle.ids() {
		s.retire(id)
	}
}
