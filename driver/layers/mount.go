package layers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/internal/overlayfs"
)

// Mount is what has to be mounted for a layer.
type Mount struct {
	Target  string          // folder that shows the layer
	Overlay *overlayfs.Spec // nil: Target is an ordinary folder, nothing to mount
	Key     string          // of the composed image it shows; "" where no layer is thin
	Image   *ImageMount     // to be mounted first, unless it is already; nil where there is none, or FUSE shows it
	Shared  *Shared         // likewise, then
}

// ImageMount is a composed image and where it is mounted for overlays to use.
type ImageMount struct{ Source, Target string }

// Shared is a read-only overlay of a composed image for the overlays of all containers to stand on. It does two things.
// For kernels that take data-only layers in overlays with metacopy alone, it has metacopy on: in an overlay with an
// upper folder that would leave files without content there. And what FUSE shows is asked for once, by this overlay,
// and not by that of each container: overlayfs looks for an extended attribute of every file, which FUSE doesn't keep.
type Shared struct {
	Target      string
	Lower, Data []string
}

// view is the view of the composed image.
func (m Mount) view() View {
	switch {
	case m.Key == "":
		return ""
	case m.Image == nil:
		return ViewFUSE
	}
	return ViewEROFS
}

// openXattr, an extended attribute of a layer's folder, holds the record of a layer that is open. The kernel changes it
// at once.
const openXattr = "trusted.cvmfs-graphdriver.open"

// open is the record of a layer that is mounted.
type open struct {
	Refs       int    `json:"refs"` // how often it was got and not put
	Generation string `json:"generation"`
	Image      string `json:"image,omitempty"` // key of the composed image in the mount
	View       View   `json:"view,omitempty"`  // that shows it
	Label      string `json:"label,omitempty"` // SELinux context
}

// Get makes a layer's view ready and gives its folder. A read-only layer's is its own content: engines export layers
// from there. A read-write layer's is its mount, which stays until Put was called as often as Get.
func (s *Store) Get(ctx context.Context, id, label string) (string, error) {
	_, settings, err := s.ready()
	if err != nil {
		return "", err
	}
	if err := checkID(id); err != nil {
		return "", err
	}
	defer s.locks.lock(id)()
	l, err := s.settled(id)
	if err != nil {
		return "", err
	}
	if !l.Writable || l.Parent == "" {
		return s.diff(id), nil
	}
	dir, err := s.get(ctx, id, l, label, settings)
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	return dir, nil
}

func (s *Store) get(ctx context.Context, id string, l *layer, label string, settings Settings) (string, error) {
	target := s.target(id)
	mounted, err := s.cfg.Mounter.Mounted(target)
	if err != nil {
		return "", err
	}
	o := s.opened(id)
	if !mounted {
		o.Refs = 0 // of another boot
	}
	resumed := false
	if o.Refs == 0 {
		if o, resumed = s.idle.take(id); o.Label != label {
			resumed = false
		}
	}
	// A mount nobody answers for was left by a crash. One of another generation has lost its data unless all of it is
	// ordinary.
	keep := mounted && (o.Refs > 0 || resumed) && (o.Image == "" || o.Generation == s.cfg.Generation)
	if !keep {
		m, err := s.mount(ctx, id, l, label)
		if err != nil {
			return "", err
		}
		if err := s.remount(m, mounted, settings); err != nil {
			return "", err
		}
		o.Generation, o.Image, o.View, o.Label = s.cfg.Generation, m.Key, m.view(), label
	}
	o.Refs++
	if err := s.saveOpen(id, o); err != nil {
		if !keep {
			err = errors.Join(err, s.cfg.Mounter.Unmount(target))
		}
		return "", err
	}
	return target, nil
}

// remount has a mount made, in the place of a stale one if there is one.
func (s *Store) remount(m Mount, stale bool, settings Settings) error {
	if stale {
		if err := s.cfg.Mounter.Unmount(m.Target); err != nil {
			return err
		}
	}
	uid, gid := settings.IDs.RootPair()
	if err := mkdir(m.Target, 0o700, uid, gid); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.cfg.Mounter.Mount(m)
}

// mount specifies the mount of a read-write layer.
func (s *Store) mount(ctx context.Context, id string, l *layer, label string) (Mount, error) {
	m, err := s.stack(ctx, l.Parent)
	if err != nil {
		return Mount{}, err
	}
	m.Target = s.target(id)
	m.Overlay.Upper, m.Overlay.Work, m.Overlay.Label = s.diff(id), s.dir(id, "work"), label
	return m, nil
}

// stack specifies the lower layers that show a layer, read-only, on top of its chain.
func (s *Store) stack(ctx context.Context, id string) (Mount, error) {
	lower, base, err := s.ordinary(id)
	if err != nil {
		return Mount{}, err
	}
	m := Mount{Overlay: &overlayfs.Spec{}}
	for _, id := range lower {
		s.retire(id) // no overlay should have as upper what another has as lower
		m.Overlay.Lower = append(m.Overlay.Lower, s.diff(id))
	}
	if base == "" {
		return m, nil
	}
	image, err := s.image(ctx, base)
	if err != nil {
		return Mount{}, err
	}
	m.Key = image.Key
	showing := s.current()
	m.Overlay.Lower = append(m.Overlay.Lower, s.shown(showing, image.Key))
	if showing.view == ViewFUSE {
		m.Shared = &Shared{
			Target: s.shown(showing, image.Key),
			Lower:  []string{s.run("empty"), s.run("fuse", "view", image.Key)},
		}
		return m, nil
	}
	sources, err := s.sources(base)
	if err != nil {
		return Mount{}, err
	}
	// The order matters: what is on disk first; then the gate, which brings an object to disk and finds nothing itself;
	// then the folder where it brought it; and last, as the last one decides the error a reader gets, the fetching file
	// system.
	data := []string{s.path("store")}
	for _, id := range sources {
		data = append(data, s.dir(id))
	}
	data = append(data, s.run("fuse", "gate"), s.path("fresh"), s.run("fuse", "data"))
	m.Image = &ImageMount{Source: image.Meta, Target: s.run("images", image.Key)}
	if showing.stacked {
		m.Shared = &Shared{Target: s.shown(showing, image.Key), Lower: []string{m.Image.Target}, Data: data}
	} else {
		m.Overlay.Data = data
	}
	return m, nil
}

// ordinary returns a layer and its ancestors, topmost first, down to the topmost thin one: base, "" if none is.
func (s *Store) ordinary(id string) (ids []string, base string, err error) {
	err = s.descend(id, func(id string, l *layer) bool {
		if l.Thin {
			base = id
			return false
		}
		ids = append(ids, id)
		return true
	})
	return ids, base, err
}

// sources returns the ordinary layers whose files are in the composed image of a thin layer.
func (s *Store) sources(id string) (ids []string, err error) {
	err = s.descend(id, func(id string, l *layer) bool {
		if !l.Thin {
			ids = append(ids, id)
		}
		return true
	})
	return ids, err
}

// chain returns a layer and its ancestors, bottom to top, as they are composed.
func (s *Store) chain(id string) ([]images.Layer, error) {
	var chain []images.Layer
	var failed error
	err := s.descend(id, func(id string, l *layer) bool {
		c := images.Layer{ID: id, Diff: s.diff(id)}
		if l.Thin {
			c = images.Layer{}
			if c.Thin, failed = readDescriptor(s.diff(id)); failed != nil {
				failed = fmt.Errorf("layer %s: %w", id, failed)
			}
		}
		chain = append(chain, c)
		return failed == nil
	})
	slices.Reverse(chain)
	return chain, errors.Join(err, failed)
}

// descend visits a layer and its ancestors until visit says false.
func (s *Store) descend(id string, visit func(id string, l *layer) bool) error {
	for range maxDepth {
		if id == "" {
			return nil
		}
		l, err := s.load(id)
		if err != nil {
			return err
		}
		if !visit(id, l) {
			return nil
		}
		id = l.Parent
	}
	return fmt.Errorf("layer %s: more than %d ancestors", id, maxDepth)
}

// Put returns back a layer that Get has given; one too many does nothing. The last one leaves it mounted for a moment,
// as engines that have created a container start it next, and don't wait for the kernel, which writes back all that is
// dirty in the file system.
func (s *Store) Put(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	defer s.locks.lock(id)()
	o := s.opened(id)
	switch o.Refs--; {
	case o.Refs > 0:
		return s.saveOpen(id, o)
	case o.Refs < 0 && s.idle.has(id):
		return nil
	case o.Refs < 0:
		return s.close(id) // of a record that was lost
	}
	if err := s.forget(id); err != nil {
		return s.close(id)
	}
	s.idle.add(id, o, func() { s.retire(id) })
	return nil
}

// close unmounts a layer and forgets that it was open. A record that can't be changed does no harm: what isn't mounted
// isn't open.
func (s *Store) close(id string) error {
	if err := s.unmount(s.target(id)); err != nil {
		return err
	}
	s.idle.take(id)
	if err := s.forget(id); err != nil {
		s.cfg.Log.Warn("a closed layer is still recorded as open", "layer", id, "err", err)
	}
	return nil
}

// forget makes a layer one that isn't open. Its record stays, for a file system takes far longer to remove an
// attribute.
func (s *Store) forget(id string) error {
	s.stranded.closed(id)
	o := s.opened(id)
	if o.Refs == 0 {
		return nil
	}
	o.Refs = 0
	return s.saveOpen(id, o)
}

// detach closes the layers that are mounted and whose record fits.
func (s *Store) detach(fits func(open) bool) error {
	ids, err := s.mountPoints()
	if err != nil {
		return err
	}
	for _, id := range ids {
		unlock := s.locks.lock(id)
		if fits(s.opened(id)) {
			err = s.close(id)
		}
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// loadOpenImages has the images of open layers loaded, as their containers may ask for objects before any layer is got
// again.
func (s *Store) loadOpenImages() {
	composer, _, err := s.ready()
	if err != nil {
		return
	}
	for id, o := range s.openLayers() {
		if o.Image == "" {
			continue
		}
		if _, err := composer.Image(o.Image); err != nil {
			s.cfg.Log.Error("a container's image can't be used: files it has not read yet will be missing", "layer", id,
				"image", o.Image, "err", err)
		}
	}
}

// openLayers returns the records of open layers by id.
func (s *Store) openLayers() map[string]open {
	layers := map[string]open{}
	ids, err := s.mountPoints()
	if err != nil {
		s.cfg.Log.Error("list open layers", "err", err)
	}
	for _, id := range ids {
		if o := s.opened(id); o.Refs > 0 {
			layers[id] = o
		}
	}
	return layers
}

// mountPoints lists the layers that are mounted, or were when the machine went down.
func (s *Store) mountPoints() (ids []string, err error) {
	entries, err := os.ReadDir(s.path("mnt"))
	for _, e := range entries {
		if validID.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, err
}

// opened returns the record of a layer, the zero one if it isn't open.
func (s *Store) opened(id string) open {
	var o open
	err := readRecord(s.dir(id), openXattr, &o)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODATA) {
		s.cfg.Log.Warn("a layer counts as one that isn't open", "layer", id, "err", err)
		return open{}
	}
	return o
}

func (s *Store) saveOpen(id string, o open) error { return writeRecord(s.dir(id), openXattr, o) }

func (s *Store) target(id string) string { return s.path("mnt", id) }
