package graphdriver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/internal/durable"
)

// openXattr, an extended attribute of a layer's folder, holds the record of a layer that is open.
const openXattr = "trusted.cvmfs-graphdriver.open"

// openLayer is the record of a layer that is mounted.
type openLayer struct {
	Refs       int       `json:"refs"` // how often it was got and not put
	Generation string    `json:"generation"`
	Image      string    `json:"image,omitempty"` // key of the composed image in the mount
	View       node.View `json:"view,omitempty"`  // that shows it
	Label      string    `json:"label,omitempty"` // SELinux context
}

// Get makes a layer's view ready and returns its folder. A read-only layer's is its own content: engines export layers
// from there. A read-write layer's is its mount, which stays until Put was called as often as Get.
func (d *Driver) Get(ctx context.Context, id, label string) (string, error) {
	if err := d.ready(); err != nil {
		return "", err
	}
	if err := layers.CheckID(id); err != nil {
		return "", err
	}
	defer d.locks.Lock(id)()
	stack, err := d.layers.Use(id)
	if err != nil {
		return "", err
	}
	if !stack.IsOverlay() {
		return stack.Content, nil
	}
	dir, err := d.mount(ctx, stack, label)
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	return dir, nil
}

// mount has a layer mounted unless it is, and counts one use of it.
func (d *Driver) mount(ctx context.Context, stack layers.Stack, label string) (string, error) {
	target := d.mountPoint(stack.ID)
	o, keep, err := d.resume(stack.ID, label)
	if err != nil {
		return "", err
	}
	if !keep {
		for _, l := range stack.Lower {
			d.retire(l.ID) // no overlay should have as upper what another has as lower
		}
		m, err := d.node.Mount(ctx, stack, target, label)
		if err != nil {
			return "", err
		}
		o.Generation, o.Image, o.View, o.Label = d.node.Generation(), m.Image, m.View, label
	}
	o.Refs++
	if err := d.saveOpen(stack.ID, o); err != nil {
		if !keep {
			err = errors.Join(err, d.node.Unmount(target))
		}
		return "", err
	}
	return target, nil
}

// resume returns the record of a layer, and whether its mount can be kept: it is there, and somebody answers for it.
// One nobody answers for was left by a crash. One of another generation has lost its data unless all of it is ordinary.
func (d *Driver) resume(id, label string) (o openLayer, keep bool, err error) {
	o = d.opened(id)
	if o.Refs == 0 {
		if o, keep = d.idle.take(id); o.Label != label {
			keep = false
		}
	}
	if o.Refs == 0 && !keep {
		return o, false, nil
	}
	mounted, err := d.node.Mounted(d.mountPoint(id))
	if !mounted {
		o.Refs = 0 // of another boot
	}
	return o, mounted && (o.Image == "" || o.Generation == d.node.Generation()), err
}

// Put gives back a layer that Get has given; one too many does nothing. The last one leaves it mounted for a moment, as
// engines that have created a container start it next, and don't wait for the kernel, which writes back all that is
// dirty in the file system.
func (d *Driver) Put(id string) error {
	if err := layers.CheckID(id); err != nil {
		return err
	}
	defer d.locks.Lock(id)()
	o := d.opened(id)
	switch o.Refs--; {
	case o.Refs > 0:
		return d.saveOpen(id, o)
	case o.Refs < 0 && d.idle.has(id):
		return nil
	case o.Refs < 0:
		return d.close(id) // of a record that was lost
	}
	if err := d.forget(id); err != nil {
		return d.close(id)
	}
	d.idle.add(id, o, func() { d.retire(id) })
	return nil
}

// close unmounts a layer and forgets that it was open. A record that can't be changed does no harm: what isn't mounted
// isn't open.
func (d *Driver) close(id string) error {
	if err := d.node.Unmount(d.mountPoint(id)); err != nil {
		return err
	}
	d.idle.take(id)
	if err := d.forget(id); err != nil {
		d.cfg.Log.Warn("a closed layer is still recorded as open", "layer", id, "err", err)
	}
	return nil
}

// forget makes a layer one that isn't open. Its record stays, for a file system takes far longer to remove an
// attribute.
func (d *Driver) forget(id string) error {
	d.stranded.closed(id)
	o := d.opened(id)
	if o.Refs == 0 {
		return nil
	}
	o.Refs = 0
	return d.saveOpen(id, o)
}

// detach closes the layers that are mounted and whose record fits.
func (d *Driver) detach(fits func(openLayer) bool) error {
	ids, err := d.mountPoints()
	if err != nil {
		return err
	}
	for _, id := range ids {
		unlock := d.locks.Lock(id)
		if fits(d.opened(id)) {
			err = d.close(id)
		}
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// openLayers returns the records of open layers by id.
func (d *Driver) openLayers() map[string]openLayer {
	open := map[string]openLayer{}
	ids, err := d.mountPoints()
	if err != nil {
		d.cfg.Log.Error("list open layers", "err", err)
	}
	for _, id := range ids {
		if o := d.opened(id); o.Refs > 0 {
			open[id] = o
		}
	}
	return open
}

// Mounts returns the open layers, for the node.
func (d *Driver) Mounts() (mounts []status.Mount) {
	open := d.openLayers()
	for _, id := range slices.Sorted(maps.Keys(open)) {
		o := open[id]
		mounts = append(mounts, status.Mount{
			Layer: id, Refs: o.Refs, Image: o.Image, Stale: o.Image != "" && o.Generation != d.node.Generation(),
		})
	}
	return mounts
}

// Kubernetes reports that Docker, which kubelet may be using, doesn't tell.
func (d *Driver) Kubernetes() bool { return false }

// ThinImage makes none: the engine takes images from whoever asks it, and a plugin doesn't.
func (d *Driver) ThinImage(context.Context, control.ImageToThin, func([]string) (control.ThinLayer, error)) (
	control.ThinImage, error,
) {
	return control.ThinImage{}, errors.New("the engine behind this node makes images itself")
}

// Names leaves it to the engine, which tells what GetMetadata says of an image to whoever inspects it.
func (d *Driver) Names(context.Context) (status.Names, error) { return status.Names{}, nil }

// Mapped returns nothing: the engine maps owners for all containers alike.
func (d *Driver) Mapped() ([]node.Mapped, error) { return nil, nil }

// Images returns the composed images that mounts read from, for the node: also those of idle layers, which count as
// used by nobody.
func (d *Driver) Images() (map[string]bool, error) {
	keys := map[string]bool{}
	ids, err := d.mountPoints()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		var o openLayer
		if err := durable.ReadRecord(d.layers.Folder(id), openXattr, &o); err != nil && !durable.IsNoRecord(err) {
			return nil, fmt.Errorf("an image may be used by layer %s: %w", id, err)
		}
		keys[o.Image] = true
	}
	return keys, nil
}

// mountPoints lists the layers that are mounted, or were when the machine went down.
func (d *Driver) mountPoints() (ids []string, err error) {
	entries, err := os.ReadDir(d.mountPoint(""))
	for _, e := range entries {
		if layers.CheckID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, err
}

// opened returns the record of a layer, the zero one if it isn't open.
func (d *Driver) opened(id string) openLayer {
	var o openLayer
	if err := durable.ReadRecord(d.layers.Folder(id), openXattr, &o); err != nil && !durable.IsNoRecord(err) {
		d.cfg.Log.Warn("a layer counts as one that isn't open", "layer", id, "err", err)
		return openLayer{}
	}
	return o
}

func (d *Driver) saveOpen(id string, o openLayer) error {
	return durable.WriteRecord(d.layers.Folder(id), openXattr, o)
}
