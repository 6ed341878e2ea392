package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/cvmfs/objectfs"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/view"
	"cvmfs-graphdriver/internal/overlayfs"
)

// Overlay is an overlay that shows a stack of layers: all that it stands on is mounted, and it isn't.
type Overlay struct {
	overlayfs.Spec
	Image string // key of the composed image in it; "" where no layer is thin
	View  View   // that shows the image; "" where there is none
}

// Mount shows a stack on a folder, which is made if it is missing, in the place of what is mounted there. Of a
// read-only stack the overlay is read-only. label is the SELinux context of all files, or "".
func (n *Node) Mount(ctx context.Context, stack layers.Stack, target, label string) (o Overlay, err error) {
	defer n.mounted.begin()(&err)
	c, err := n.configured()
	if err != nil {
		return Overlay{}, err
	}
	o, err = n.overlay(ctx, c, &stack, false)
	if err != nil {
		return Overlay{}, err
	}
	o.Label = label
	if o.Upper == "" {
		o.Lower = slices.Insert(o.Lower, 0, n.run("empty")) // a read-only overlay wants two layers at least
	}
	stale, err := n.cfg.Kernel.Mounted(target)
	if stale {
		err = n.cfg.Kernel.Unmount(target)
	}
	if err != nil {
		return Overlay{}, err
	}
	uid, gid := c.settings.IDs.RootPair()
	if err := mkdir(target, 0o700, uid, gid); err != nil && !errors.Is(err, fs.ErrExist) {
		return Overlay{}, err
	}
	return o, n.cfg.Kernel.Mount(target, &o.Spec)
}

// Overlay returns the overlay that shows a stack, for whoever mounts it. Of a read-only stack that may be a single
// layer, which the kernel takes for no overlay. The composed image is made if it isn't there, and taken into use; it
// and the overlays that share it are mounted when an overlay first needs them, and stay mounted.
func (n *Node) Overlay(ctx context.Context, stack layers.Stack) (Overlay, error) {
	return n.configuredOverlay(ctx, &stack, false)
}

// PlainOverlay is Overlay without data-only layers, whatever the kernel takes: the composed image is one of the lower
// layers, by way of a shared overlay. Such an overlay takes fewer words, and can be spelled by who knows no data-only
// layers; it costs every lookup a second one.
func (n *Node) PlainOverlay(ctx context.Context, stack layers.Stack) (Overlay, error) {
	return n.configuredOverlay(ctx, &stack, true)
}

func (n *Node) configuredOverlay(ctx context.Context, stack *layers.Stack, plain bool) (Overlay, error) {
	c, err := n.configured()
	if err != nil {
		return Overlay{}, err
	}
	return n.overlay(ctx, c, stack, plain)
}

func (n *Node) overlay(ctx context.Context, c *configuration, stack *layers.Stack, plain bool) (Overlay, error) {
	o := Overlay{Spec: overlayfs.Spec{Upper: stack.Upper, Work: stack.Work}}
	var err error
	if o.Lower, err = n.lower(c, stack); err != nil || stack.Thin == "" {
		return o, err
	}
	image, err := n.image(ctx, c, stack)
	if err != nil {
		return Overlay{}, err
	}
	n.objects.Used(image.Table) // they stay while it is mounted
	if stack.Upper != "" {      // of a container, or of what is to become one
		n.start(c, stack.Thin, image)
	}
	by := c.view
	by.stacked = by.stacked || plain
	o.Image, o.View = image.Key, by.view
	shown := n.shownAt(by, mappedName(image.Key, stack.IDs))
	o.Lower = append(o.Lower, filepath.Join(shown, n.folder()))
	if by.view == ViewFUSE {
		// What FUSE shows is asked for once, by a shared overlay, and not by that of each container: overlayfs looks
		// for an extended attribute of every file, which FUSE doesn't keep.
		if err := n.mapView(image.Key, stack.IDs); err != nil {
			return Overlay{}, err
		}
		return o, n.mountShared(shown, &overlayfs.Spec{
			Lower: []string{n.run("empty"), n.run("fuse", view.Folder, mappedName(image.Key, stack.IDs))},
		})
	}
	at, err := n.mountImage(image, stack.IDs)
	if err != nil {
		return Overlay{}, err
	}
	data := n.data(stack)
	if !by.stacked {
		o.Data = data
		return o, nil
	}
	// For kernels that take data-only layers in overlays with metacopy alone. In an overlay with an upper folder that
	// would leave files without content.
	return o, n.mountShared(shown, &overlayfs.Spec{Lower: []string{at}, Data: data, Metacopy: true})
}

// mountImage mounts a composed image, also with mapped owners if any are, and returns where.
func (n *Node) mountImage(image *images.Image, ids user.IdentityMapping) (at string, err error) {
	at = n.run("images", image.Key)
	err = n.mountOnce(at, func() error { return n.cfg.Kernel.MountImage(image.Meta, at) })
	if err != nil || ids.Empty() {
		return at, err
	}
	return n.mountMapped(at, n.run("images", mappedName(image.Key, ids)), ids)
}

// folder is where a composed image has its files; "" is its root.
func (n *Node) folder() string {
	if n.cfg.Nested {
		return images.Folder
	}
	return ""
}

// data returns the data-only layers of an overlay of a composed image. Their order matters: what is on disk first; then
// the gate, which brings an object to disk and finds nothing itself; then the folder where it brought it; and last, as
// the last one decides the error a reader gets, the fetching file system.
func (n *Node) data(stack *layers.Stack) []string {
	return slices.Concat([]string{n.Path("store")}, stack.Data,
		[]string{n.run("fuse", objectfs.Gate), n.Path("fresh"), n.run("fuse", objectfs.Data)})
}

// mountShared mounts a shared overlay unless it is.
func (n *Node) mountShared(target string, s *overlayfs.Spec) error {
	return n.mountOnce(target, func() error { return n.cfg.Kernel.Mount(target, s) })
}

// mountOnce makes a folder and mounts on it, unless something is mounted there.
func (n *Node) mountOnce(target string, mount func() error) error {
	n.mounting.Lock()
	defer n.mounting.Unlock()
	mounted, err := n.cfg.Kernel.Mounted(target)
	if mounted || err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	return mount()
}

// Mounted reports whether something is mounted at a folder; at a missing one nothing is.
func (n *Node) Mounted(dir string) (bool, error) { return n.cfg.Kernel.Mounted(dir) }

// Unmount detaches what is mounted on a folder and removes the folder. One that isn't there is no error.
func (n *Node) Unmount(dir string) error { return n.unmount(dir) }

func (n *Node) unmount(dir string) error {
	if err := n.cfg.Kernel.Unmount(dir); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unmountAll does so for the folders in a folder.
func (n *Node) unmountAll(dir string) error {
	return n.unmountBut(dir, func(string) bool { return false })
}

// unmountBut does so for those that are not to stay.
func (n *Node) unmountBut(dir string, stays func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if stays(e.Name()) {
			continue
		}
		if err := n.unmount(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// UnmountImages takes off what is mounted for overlays to use, of which none may be mounted any more.
func (n *Node) UnmountImages() error {
	return errors.Join(n.unmountAll(n.run("shared")), n.unmountAll(n.run("images")), n.unmountAll(n.run("mapped")))
}

// UnmountUnused takes off what is mounted for overlays to use and belongs to no image that the face's mounts read from.
// What is mounted on top of it keeps it; an overlay that is asked for later has it mounted again.
func (n *Node) UnmountUnused() error {
	c, err := n.configured()
	if err != nil {
		return err
	}
	n.mounting.Lock() // an overlay whose layers are in the face's account already waits, and finds them gone
	defer n.mounting.Unlock()
	used, err := c.face.Images()
	if err != nil {
		return err
	}
	mapped, err := c.face.Mapped()
	if err != nil {
		return err
	}
	owners := map[string]bool{}
	for _, m := range mapped {
		owners[ownersName(m.IDs)], used[mappedName(m.Image, m.IDs)] = true, true
	}
	return errors.Join(n.unmountShown(func(name string) bool { return used[name] }),
		n.unmountBut(n.run("mapped"), func(name string) bool { return owners[name] }))
}

// unmountShown takes off what shows composed images, but for those that are to stay by their names, see shownAt.
func (n *Node) unmountShown(stays func(name string) bool) error {
	for _, dir := range []string{n.run("shared"), n.run("images")} {
		err := n.unmountBut(dir, func(entry string) bool {
			name := shownName(entry)
			if stays(name) {
				return true
			}
			if key, owners, mapped := strings.Cut(name, "."); mapped {
				n.view.Unmap(key, owners)
			}
			return false
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// View has a layer and its chain mounted for us alone, read-only, until release is called. "" is the empty view.
func (n *Node) View(ctx context.Context, id string) (dir string, release func(), err error) {
	if _, err := n.configured(); err != nil {
		return "", nil, err
	}
	if id == "" {
		return n.run("empty"), func() {}, nil
	}
	stack, err := n.layers.UseReadOnly(id)
	if err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(n.run("views"), ""); err != nil {
		return "", nil, err
	}
	release = func() {
		if err := n.unmount(dir); err != nil {
			n.cfg.Log.Warn("unmount a view", "layer", id, "err", err)
		}
	}
	if _, err := n.Mount(ctx, stack, dir, ""); err != nil {
		release()
		return "", nil, err
	}
	return dir, release, nil
}

// mkdir makes a folder with exactly this mode and owner.
func mkdir(path string, mode fs.FileMode, uid, gid int) error {
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	return errors.Join(os.Chown(path, uid, gid), os.Chmod(path, mode))
}
