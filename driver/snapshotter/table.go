package snapshotter

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"

	"cvmfs-graphdriver/driver/lockorder"
)

// table is the snapshots there are, by name.
type table struct {
	mu    lockorder.Mutex // guards the following, and what snapshots say is guarded by it
	names map[string]*snapshot
	taken map[string]bool // names that snapshots get which are being committed
	lost  string          // the folder of a layer that may stand on any other; "" where there is none
}

// snapshot is one of them.
type snapshot struct {
	id     string
	parent *snapshot // nil if there is none
	below  string    // the name of parent, which never changes

	// guarded by table.mu
	record
	committed bool
	children  int
	hidden    bool // it is being made, or removed
	failed    bool // it couldn't be made, and what there is of it not removed
}

func (sn *snapshot) kind() snapshots.Kind {
	switch {
	case sn.committed:
		return snapshots.KindCommitted
	case sn.View:
		return snapshots.KindView
	}
	return snapshots.KindActive
}

func (sn *snapshot) info() snapshots.Info {
	return snapshots.Info{
		Kind: sn.kind(), Name: sn.Name, Parent: sn.below, Labels: maps.Clone(sn.Labels), Created: sn.Created,
		Updated: sn.Updated,
	}
}

func notFound(name string) error { return fmt.Errorf("snapshot %q: %w", name, errdefs.ErrNotFound) }

// add enters the snapshot that is about to be made of a record on top of a parent, "" for none.
func (t *table) add(r record, id, parent string) (*snapshot, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.names[r.Name] != nil || t.taken[r.Name] {
		return nil, fmt.Errorf("snapshot %q: %w", r.Name, errdefs.ErrAlreadyExists)
	}
	sn := &snapshot{id: id, record: r, hidden: true}
	if parent != "" {
		sn.parent = t.names[parent]
		switch {
		case sn.parent == nil || sn.parent.hidden:
			return nil, fmt.Errorf("parent of snapshot %q: %w", r.Name, notFound(parent))
		case !sn.parent.committed:
			return nil, fmt.Errorf("parent of snapshot %q: %q isn't committed: %w", r.Name, parent,
				errdefs.ErrInvalidArgument)
		}
		sn.parent.children++
		sn.below, sn.Below = parent, sn.parent.id
	}
	t.names[r.Name] = sn
	return sn, nil
}

// leave keeps the name of a snapshot that couldn't be made.
func (t *table) leave(sn *snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	sn.failed = true
}

// left returns the snapshot of that kind that has a name, nil if there is none.
func (t *table) left(name string) *snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	if sn := t.names[name]; sn != nil && sn.failed {
		return sn
	}
	return nil
}

// drop takes a snapshot out, unless somebody has done so.
func (t *table) drop(sn *snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.names[sn.Name] != sn {
		return
	}
	delete(t.names, sn.Name)
	if sn.parent != nil {
		sn.parent.children--
	}
}

// show makes a snapshot one that has been made, or stays.
func (t *table) show(sn *snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	sn.hidden = false
}

// hide makes a snapshot one that is about to go, unless others stand on it.
func (t *table) hide(sn *snapshot) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if sn.children > 0 {
		return fmt.Errorf("remove snapshot %q: others stand on it: %w", sn.Name, errdefs.ErrFailedPrecondition)
	}
	if sn.committed && t.lost != "" {
		return fmt.Errorf("remove snapshot %q: the layer in %s can't be read and may stand on it: remove that folder "+
			"and restart the snapshotter: %w", sn.Name, t.lost, errdefs.ErrFailedPrecondition)
	}
	sn.hidden = true
	return nil
}

// find returns a snapshot by its name, with what it is now.
func (t *table) find(name string) (*snapshot, snapshot, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	sn := t.names[name]
	if sn == nil || sn.hidden {
		return nil, snapshot{}, notFound(name)
	}
	return sn, *sn, nil
}

// take reserves the name that an active snapshot gets when it is committed.
func (t *table) take(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if name == "" {
		return fmt.Errorf("a committed snapshot needs a name: %w", errdefs.ErrInvalidArgument)
	}
	if t.names[name] != nil || t.taken[name] {
		return fmt.Errorf("snapshot %q: %w", name, errdefs.ErrAlreadyExists)
	}
	t.taken[name] = true
	return nil
}

// give gives a name back that was reserved.
func (t *table) give(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.taken, name)
}

// change makes a snapshot what a record says, under its name.
func (t *table) change(sn *snapshot, r record, committed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.names, sn.Name)
	delete(t.taken, r.Name)
	sn.record, sn.committed = r, committed
	t.names[r.Name] = sn
}

// list returns what there is of the snapshots that fit, in the order of their layers.
func (t *table) list(fits func(*snapshot) bool) (list []snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, sn := range t.names {
		if fits(sn) {
			list = append(list, *sn)
		}
	}
	return list
}

// ancestors returns what there is of the snapshots below one, its parent first.
func (t *table) ancestors(sn snapshot) (list []snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for below := sn.parent; below != nil; below = below.parent {
		list = append(list, *below)
	}
	return list
}

// infos returns what there is to say of snapshots that pass a filter, in the order of their names.
func (t *table) infos(filter filters.Filter) (infos []snapshots.Info) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(t.names)) {
		if sn := t.names[name]; !sn.hidden {
			if info := sn.info(); filter.Match(adapt(info)) {
				infos = append(infos, info)
			}
		}
	}
	return infos
}

// adapt has filters see what containerd's own snapshotters show them.
func adapt(info snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (value string, present bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "kind":
			return strings.ToLower(info.Kind.String()), true
		case "name":
			return info.Name, true
		case "parent":
			return info.Parent, true
		case "labels":
			value, present = info.Labels[strings.Join(path[1:], ".")]
		}
		return value, present
	})
}
