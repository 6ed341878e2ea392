package snapshotter

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/internal/durable"
)

// use is what a layer that counts as mounted shows, and the name of its snapshot.
type use struct {
	node.Mapped
	name string
}

// inUse returns the layers that count as mounted and stand on others, with what they show.
func (s *Snapshotter) inUse() (map[string]use, error) {
	used := map[string]use{}
	for _, sn := range s.table.list(func(sn *snapshot) bool { return !sn.committed && sn.parent != nil }) {
		stack, err := s.layers.Describe(sn.parent.id)
		if errors.Is(err, layers.ErrNoLayer) {
			continue // it is being removed
		}
		if err != nil {
			return nil, fmt.Errorf("an image may be used by layer %s: %w", sn.id, err)
		}
		used[sn.id] = use{node.Mapped{IDs: sn.ids(), Image: stack.Image}, sn.Name}
	}
	return used, nil
}

// faceOf answers the node's questions. It is a type of its own, as containerd's Mounts is another one.
type faceOf struct{ *Snapshotter }

// Mounts returns the layers of active snapshots and views that show something thin.
func (f faceOf) Mounts() (mounts []status.Mount) {
	used, err := f.inUse()
	if err != nil {
		f.cfg.Log.Error("list snapshots in use", "err", err)
	}
	for _, id := range slices.Sorted(maps.Keys(used)) {
		mounts = append(mounts, status.Mount{Layer: id, Refs: 1, Image: used[id].Image, Name: used[id].name})
	}
	return mounts
}

// Images returns the composed images that they show.
func (f faceOf) Images() (map[string]bool, error) {
	used, err := f.inUse()
	images := map[string]bool{}
	for _, u := range used {
		images[u.Image] = true
	}
	return images, err
}

// Mapped returns what they show with mapped owners.
func (f faceOf) Mapped() (mapped []node.Mapped, err error) {
	used, err := f.inUse()
	for _, u := range used {
		if !u.IDs.Empty() {
			mapped = append(mapped, u.Mapped)
		}
	}
	return mapped, err
}

// leaveMounts takes off what a former life has mounted for snapshots that have gone. It is tried again by Cleanup.
func (s *Snapshotter) leaveMounts() error {
	if err := s.node.UnmountUnused(); err != nil {
		s.cfg.Log.Warn("take off what no snapshot needs", "err", err)
	}
	return nil
}

// Kubernetes reports whether there are snapshots of kubelet's.
func (f faceOf) Kubernetes() bool {
	return len(f.table.list(func(sn *snapshot) bool { return strings.HasPrefix(sn.Name, "k8s.io/") })) > 0
}

// leaveGeneration takes off what a former life has mounted for overlays to use, if the FUSE mount has changed since:
// that is what it reads from.
func (s *Snapshotter) leaveGeneration() error {
	file := s.node.Path("state", "generation")
	former, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(former) == s.node.Generation() {
		return nil
	}
	if err := s.node.UnmountImages(); err != nil {
		return err
	}
	return durable.Replace(file, 0o600, []byte(s.node.Generation()))
}
