package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/internal/overlayfs"
)

// maxOptions is how many bytes the options of an overlay with data-only layers may have. The kernel takes a page, and
// who mounts it may add a few; without such layers containerd has a way of its own to shorten them.
const maxOptions = 4096 - 512

// shown is what shows a snapshot: a folder, or an overlay.
type shown struct {
	overlayfs.Spec
	folder   string // "" for an overlay
	readOnly bool
}

// show returns what shows a snapshot that was made under a key, with all mounted that it stands on.
func (s *Snapshotter) show(ctx context.Context, sn *snapshot, key string, view bool) (shown, error) {
	if sn.parent == nil {
		return shown{folder: s.layers.Content(sn.id), readOnly: view}, nil
	}
	use, id := s.layers.Use, sn.id
	if view {
		use, id = s.layers.UseReadOnly, sn.parent.id
	}
	stack, err := use(id)
	if err != nil {
		return shown{}, err
	}
	o, err := s.node.Overlay(ctx, stack)
	if err == nil && len(o.Data) > 0 && (tooLong(o) || readsLowers(key)) {
		o, err = s.node.PlainOverlay(ctx, stack)
	}
	if err != nil {
		return shown{}, err
	}
	if view && len(o.Lower) == 1 && len(o.Data) == 0 {
		return shown{folder: o.Lower[0], readOnly: true}, nil // one layer makes no overlay
	}
	return shown{Spec: o.Spec}, nil
}

func tooLong(o node.Overlay) bool {
	options, err := o.ClassicOptions()
	return err == nil && len(strings.Join(options, ",")) > maxOptions
}

// mounts spells what shows a snapshot for containerd.
func (s shown) mounts() ([]mount.Mount, error) {
	if s.folder == "" {
		options, err := s.ClassicOptions()
		return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, err
	}
	access := "rw"
	if s.readOnly {
		access = "ro"
	}
	return []mount.Mount{{Type: "bind", Source: s.folder, Options: []string{access, "rbind"}}}, nil
}

// sameRoot gives the root folder of a new layer owner and mode of what is below it, which it hides.
func sameRoot(below, upper string) error {
	info, err := os.Stat(below)
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	return errors.Join(os.Chown(upper, int(st.Uid), int(st.Gid)), os.Chmod(upper, info.Mode()))
}

// refuseMapped refuses a snapshot whose files are to have other owners.
func refuseMapped(key string, labels map[string]string) error {
	for _, label := range []string{snapshots.LabelSnapshotUIDMapping, snapshots.LabelSnapshotGIDMapping} {
		if value, ok := labels[label]; ok {
			return fmt.Errorf("snapshot %q: the label %s=%s asks for owners to be mapped, which this snapshotter "+
				"doesn't do: take remap-ids out of its capabilities in containerd's configuration: %w", key, label,
				value, errdefs.ErrNotImplemented)
		}
	}
	return nil
}
