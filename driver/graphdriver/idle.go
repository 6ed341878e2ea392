package graphdriver

import (
	"maps"
	"slices"
	"time"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/lockorder"
)

// linger is how long a layer stays mounted that nobody uses any more.
const linger = time.Second

// idleLayers are the layers that stay mounted though nobody uses them, by id, with the records they had when they were
// open. On disk nothing tells of them. A layer becomes idle, and stops being so, with its lock held. The zero value is
// none.
type idleLayers struct {
	mu     lockorder.Mutex
	layers map[string]idleLayer
}

type idleLayer struct {
	openLayer
	end *time.Timer
}

// add makes a layer idle; end is called when that has lasted long enough.
func (i *idleLayers) add(id string, o openLayer, end func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.layers == nil {
		i.layers = map[string]idleLayer{}
	}
	i.layers[id] = idleLayer{o, time.AfterFunc(linger, end)}
}

// take makes a layer one that isn't idle, and reports whether it was.
func (i *idleLayers) take(id string) (openLayer, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	l, ok := i.layers[id]
	if ok {
		l.end.Stop()
		delete(i.layers, id)
	}
	return l.openLayer, ok
}

func (i *idleLayers) has(id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, ok := i.layers[id]
	return ok
}

func (i *idleLayers) ids() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Keys(i.layers))
}

// retire unmounts a layer if it is idle. When it returns no unmount is under way either.
func (d *Driver) retire(id string) {
	defer d.locks.Lock(id)()
	if !d.idle.has(id) {
		return
	}
	if err := d.close(id); err != nil {
		d.cfg.Log.Error("unmount a layer that nobody uses any more", "layer", id, "err", err)
	}
}

// CloseIdle unmounts the layers that nobody uses any more and that are still mounted, as they are for a moment after
// the last Put.
func (d *Driver) CloseIdle() {
	for _, id := range d.idle.ids() {
		d.retire(id)
	}
}

// retireChains unmounts the idle ones of some layers and of their ancestors, which are to be lower layers of an
// overlay.
func (d *Driver) retireChains(ids ...string) {
	for _, id := range ids {
		stack, err := d.layers.Describe(id)
		if err != nil {
			continue // whoever asked is told by what comes next
		}
		for _, l := range append(stack.Lower, layers.Folder{ID: id}) {
			d.retire(l.ID)
		}
	}
}
