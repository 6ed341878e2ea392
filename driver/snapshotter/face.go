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

// inUse returns the layers that count as mounted, which show something thin, with the keys of their images.
func (s *Snapshotter) inUse() (map[string]string, error) {
	keys := map[string]string{}
	for _, sn := range s.table.list(func(sn *snapshot) bool { return !sn.committed && sn.parent != nil }) {
		stack, err := s.layers.Describe(sn.parent.id)
		if errors.Is(err, layers.ErrNoLayer) {
			continue // it is being removed
		}
		if err != nil {
			return nil, fmt.Errorf("an image may be used by layer %s: %w", sn.id, err)
		}
		keys[sn.id] = stack.Image
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
		mounts = append(mounts, status.Mount{Layer: id, Refs: 1, Image: keys[id]})
	}
	return mounts
}

// Images returns the composed images that they show.
func (f faceOf) Images() (map[string]bool, error) {
	keys, err := f.inUse()
	images := map[string]bool{}
	for _, key := range keys {
		images[key] = true
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
