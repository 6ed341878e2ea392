package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/thin"
)

// Composer makes the composed images of thin chains; *images.Composer is one.
type Composer interface {
	Compose(ctx context.Context, chain []images.Layer) (*images.Image, error)
	// Image returns an image, which is in use from then on: its objects can be fetched.
	Image(key string) (*images.Image, error)
	// Describe returns an image without taking it into use, and Peek its objects.
	Describe(key string) (*images.Image, error)
	Peek(key string) (*objects.Table, error)
	// Find returns the first file of an image whose content is an object; "" if none is.
	Find(ctx context.Context, key string, object objects.Ref) (string, error)
	Remove(key string) error
	// Profile returns the start profile that a descriptor names, RecordedProfile the one that KeepProfile was given, or
	// fs.ErrNotExist.
	Profile(ctx context.Context, key string, at *thin.Profile) (objects.Profile, error)
	RecordedProfile(key string) (objects.Profile, error)
	KeepProfile(key string, p objects.Profile) error
	// Sweep removes what is half-written, and returns the keys of the images there are. No Compose may be under way, of
	// whichever composer on the folder. One that has returned, also with an error, has left nothing running.
	Sweep() (keys []string, err error)
	// Close ends the use of a composer that another one has replaced. Its calls fail from then on.
	Close()
}

// Apply gives an empty layer its content, an uncompressed tar archive, and returns its size in bytes. What it says of
// archives that break off, package layers tells.
//
// A thin layer is composed right away. Where its repository can't be reached for now it is accepted, and composed when
// it is needed first; one that may not be used, or whose descriptor or folders are wrong, is refused.
func (n *Node) Apply(ctx context.Context, id, parent string, r io.Reader) (int64, error) {
	a, err := n.layers.Receive(ctx, id, parent, r)
	if err != nil {
		return 0, fmt.Errorf("apply layer %s: %w", id, err)
	}
	if a.Chain == nil {
		err = a.Commit("")
	} else {
		err = n.composeNew(ctx, a.ID, a.Chain, a.Commit)
	}
	if err = errors.Join(err, a.Close()); err != nil {
		return 0, fmt.Errorf("apply layer %s: %w", id, err)
	}
	return a.Size, nil
}

// composeNew composes the chain that ends with a new thin layer, and has commit make it one that names the image.
func (n *Node) composeNew(ctx context.Context, id string, chain []layers.Link, commit func(key string) error) error {
	c, err := n.configured()
	if err != nil {
		return err
	}
	image, err := n.compose(ctx, c, chain, commit)
	if err == nil {
		n.startSoon(c, chain, image)
	}
	if errors.Is(err, fetch.ErrUnavailable) { // it says nothing about the layer, only about the network at this moment
		n.cfg.Log.Warn("a repository can't be reached: the layer is accepted and composed when it is needed", "layer",
			id, "err", err)
		return commit("")
	}
	return err
}

// Commit makes what was written to a read-write layer the content of a read-only one, and brings it to disk. If it is
// a layer of an image, and is a thin image descriptor alone, it is thin, and composed as Apply does.
func (n *Node) Commit(ctx context.Context, id, parent string, ofImage bool) error {
	if err := n.commit(ctx, id, parent, ofImage); err != nil {
		return fmt.Errorf("commit layer %s: %w", id, err)
	}
	return nil
}

func (n *Node) commit(ctx context.Context, id, parent string, ofImage bool) error {
	if err := n.layers.CheckParent(id, parent); err != nil {
		return err
	}
	if err := durable.SyncFS(n.layers.Folder(id)); err != nil {
		return err
	}
	if !ofImage {
		return n.layers.Seal(id, false, "")
	}
	d, err := n.layers.Descriptor(id)
	if err != nil {
		return err
	}
	if d == nil {
		return n.layers.Seal(id, false, "")
	}
	chain, _, err := n.layers.Chain(parent)
	if err != nil {
		return err
	}
	chain = append(chain, layers.Link{Thin: d})
	return n.composeNew(ctx, id, chain, func(key string) error { return n.layers.Seal(id, true, key) })
}

// image returns the composed image that a stack stands on, composing it if it isn't there.
func (n *Node) image(ctx context.Context, c *configuration, stack *layers.Stack) (*images.Image, error) {
	if stack.Image != "" {
		if image, err := c.composer.Image(stack.Image); !errors.Is(err, images.ErrNoImage) {
			return image, err
		}
	}
	return n.imageOf(ctx, c, stack.Thin)
}

// imageOf composes the chain that ends with a thin layer, unless somebody has done so meanwhile.
func (n *Node) imageOf(ctx context.Context, c *configuration, thin string) (*images.Image, error) {
	defer n.composingThin.Lock(thin)()
	chain, key, err := n.layers.Chain(thin)
	if err != nil {
		return nil, err
	}
	if key != "" {
		if image, err := c.composer.Image(key); !errors.Is(err, images.ErrNoImage) {
			return image, err
		}
		n.cfg.Log.Warn("a composed image has gone and is made again", "layer", thin, "image", key)
	}
	image, err := n.compose(ctx, c, chain, func(key string) error { return n.layers.NameImage(thin, chain, key) })
	if err != nil {
		return nil, fmt.Errorf("compose layer %s: %w", thin, err)
	}
	return image, nil
}

// compose returns the composed image of a chain once name has made a layer name it. An image that goes before, as
// another layer that named it is removed, is composed again.
func (n *Node) compose(
	ctx context.Context, c *configuration, chain []layers.Link, name func(key string) error,
) (image *images.Image, err error) {
	defer n.composed.begin()(&err)
	n.beginCompose()
	claimed := false
	defer func() { n.endCompose(claimed) }()
	for {
		image, err := c.composer.Compose(ctx, partsOf(chain))
		if err != nil {
			return nil, err
		}
		if err = n.claim(c, image.Key, name); err == nil {
			claimed = true
			return image, nil
		}
		if !errors.Is(err, images.ErrNoImage) {
			return nil, err
		}
	}
}

// partsOf returns a chain as composers want it.
func partsOf(chain []layers.Link) []images.Layer {
	parts := make([]images.Layer, len(chain))
	for i, link := range chain {
		parts[i] = images.Layer(link)
	}
	return parts
}

// beginCompose holds off sweeps: an image that has just been composed has no name yet.
func (n *Node) beginCompose() {
	n.naming.Lock()
	defer n.naming.Unlock()
	n.composing++
}

// endCompose sweeps after the last of several if one of them has come to nothing: the layer was removed meanwhile, the
// caller has gone, the record couldn't be written.
func (n *Node) endCompose(claimed bool) {
	n.naming.Lock()
	defer n.naming.Unlock()
	n.composing--
	n.sweepDue = n.sweepDue || !claimed
	if n.sweepDue {
		n.sweepImages()
	}
}

// claim runs name, which makes a layer name an image, while the image can't go; images.ErrNoImage if it has gone.
func (n *Node) claim(c *configuration, key string, name func(key string) error) error {
	n.naming.Lock()
	defer n.naming.Unlock()
	if _, err := c.composer.Image(key); err != nil {
		return err
	}
	return name(key)
}

// Remove deletes a layer that isn't mounted, and its composed image unless somebody else names that.
func (n *Node) Remove(id string) error {
	key, err := n.layers.Remove(id)
	if key == "" || err != nil {
		return err
	}
	n.naming.Lock()
	defer n.naming.Unlock()
	if c, err := n.configured(); err == nil { // else the sweep that comes with Configure sees to it
		n.removeUnnamed(c, []string{key})
	}
	return nil
}

// useMounted takes the images into use that mounts read from, as their containers may ask for objects before any layer
// is mounted again.
func (n *Node) useMounted(c *configuration) {
	for _, m := range c.face.Mounts() {
		if m.Image == "" {
			continue
		}
		if _, err := c.composer.Image(m.Image); err != nil {
			n.cfg.Log.Error("a container's image can't be used: files it has not read yet will be missing", "layer", m.Layer,
				"image", m.Image, "err", err)
		}
	}
	n.mapViews(c)
}

// sweepImages removes the images nobody names; while some are being composed it is put off. The caller holds naming.
func (n *Node) sweepImages() {
	c, err := n.configured()
	if n.sweepDue = err != nil || n.composing > 0; n.sweepDue {
		return
	}
	keys, err := c.composer.Sweep()
	if err == nil {
		keys, err = n.addMounted(keys)
	}
	if err != nil {
		n.cfg.Log.Warn("what nobody needs of composed images can't be looked for", "err", err)
	}
	n.removeUnnamed(c, keys)
}

// removeUnnamed removes those of some images that nobody names. What fails is left to the next sweep: no caller has any
// use for an error. The caller holds naming.
func (n *Node) removeUnnamed(c *configuration, keys []string) {
	named, err := n.layers.Images()
	var mounted map[string]bool
	if err == nil {
		mounted, err = c.face.Images()
	}
	for _, key := range keys {
		if err == nil && !named[key] && !mounted[key] {
			n.cfg.Log.Info("remove a composed image that no layer names", "image", key)
			err = n.removeImage(c, key)
		}
	}
	if err != nil {
		n.cfg.Log.Warn("composed images that no layer names stay on disk for now", "err", err)
	}
}

// addMounted adds the keys of the images that are, or were, mounted for overlays to use.
func (n *Node) addMounted(keys []string) ([]string, error) {
	for _, dir := range []string{n.run("images"), n.run("shared")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			keys = append(keys, keyOf(e.Name()))
		}
	}
	return keys, nil
}

// removeImage removes an image, first what is mounted of it, and then the objects that only it named.
func (n *Node) removeImage(c *configuration, key string) error {
	err := n.unmountShown(func(name string) bool { return keyOf(name) != key })
	if err != nil {
		return err
	}
	n.starts.stop(key) // else it would go on to fetch what nobody needs
	defer n.starts.forget(key)
	t, unreadable := c.composer.Peek(key)
	if err := c.composer.Remove(key); err != nil || unreadable != nil {
		return err
	}
	n.objects.Forget(t)
	return nil
}
