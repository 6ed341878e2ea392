package snapshotter

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/internal/durable"
)

// used is what a layer that counts as mounted shows: the key of the image, and the name of the snapshot.
type used struct{ image, name string }

// inUse returns the layers that count as mounted, which show something thin.
func (s *Snapshotter) inUse() (map[string]used, error) {
	keys := map[string]used{}
	for _, sn := range s.table.list(func(sn *snapshot) bool { return !sn.committed && sn.parent != nil }) {
		stack, err := s.layers.Describe(sn.parent.id)
		if errors.Is(err, layers.ErrNoLayer) {
			continue // it is being removed
		}
		if err != nil {
			return nil, fmt.Errorf("an image may be used by layer %s: %w", sn.id, err)
		}
		keys[sn.id] = used{stack.Image, sn.Name}
	}
	return keys, nil
}

// faceOf answers the node's questions. It is a type of its own, as containerd's Mounts is another one.
type faceOf struct{ *Snapshotter }

// Mounts returns the layers of active snapshots and views that show something thin.
func (f faceOf) Mounts() (mounts []status.Mount) {
	keys, err := f.inUse()
	if err != nil {
		f.cfg.Log.Error("list snapshots in use", "err", err)
	}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		mounts = append(mounts, status.Mount{Layer: id, Refs: 1, Image: keys[id].image, Name: keys[id].name})
	}
	return mounts
}

// Images returns the composed images that they show.
func (f faceOf) Images() (map[string]bool, error) {
	keys, err := f.inUse()
	images := map[string]bool{}
	for _, key := range keys {
		images[key.image] = true
	}
	return images, err
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
