package snapshotter

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"

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

// show returns what shows a snapshot that isn't committed, with all mounted that it stands on. Layers that can't be had
// any more are replaced.
func (s *Snapshotter) show(ctx context.Context, sn snapshot) (shown, error) {
	for {
		found, err := s.look(ctx, sn)
		if err == nil {
			return found, nil
		}
		if err := s.replaceGone(ctx, sn, err); err != nil {
			return shown{}, err
		}
	}
}

// look is show for layers that can all be had.
func (s *Snapshotter) look(ctx context.Context, sn snapshot) (shown, error) {
	if sn.parent == nil {
		return shown{folder: s.layers.Content(sn.id), readOnly: sn.View}, nil
	}
	use, id := s.layers.Use, sn.id
	if sn.View {
		use, id = s.layers.UseReadOnly, sn.parent.id
	}
	stack, err := use(id)
	if err != nil {
		return shown{}, err
	}
	stack.IDs = sn.ids()
	o, err := s.node.Overlay(ctx, stack)
	if err == nil && len(o.Data) > 0 && (tooLong(o) || readsLowers(sn.Name)) {
		o, err = s.node.PlainOverlay(ctx, stack)
	}
	if err != nil {
		return shown{}, asRefusal(err)
	}
	if sn.View && len(o.Lower) == 1 && len(o.Data) == 0 {
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
