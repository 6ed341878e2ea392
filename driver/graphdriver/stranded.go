package graphdriver

import (
	"context"
	"maps"
	"slices"
	"time"

	"cvmfs-graphdriver/driver/lockorder"
	"cvmfs-graphdriver/driver/node"
)

// strandedImages are the images of the open layers of a former generation, with these layers. Their mounts have lost
// the file system that fetches, and the containers in them live on: in the erofs view they find what arrives on disk.
// The zero value is none.
type strandedImages struct {
	mu     lockorder.Mutex
	images map[string]*strandedImage
}

type strandedImage struct {
	layers map[string]bool
	done   context.Context // ends when no layer is open any more
	drop   context.CancelFunc
}

func (s *strandedImages) add(layer, image string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.images[image]
	if i == nil {
		i = &strandedImage{layers: map[string]bool{}}
		i.done, i.drop = context.WithCancel(context.Background())
		if s.images == nil {
			s.images = map[string]*strandedImage{}
		}
		s.images[image] = i
	}
	i.layers[layer] = true
}

// closed reports whether a layer isn't open any more.
func (s *strandedImages) closed(layer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, i := range s.images {
		if delete(i.layers, layer); len(i.layers) == 0 {
			i.drop()
			delete(s.images, key)
		}
	}
}

// helped reports whether an image needs nothing more.
func (s *strandedImages) helped(image string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.images[image]; i != nil {
		i.drop()
		delete(s.images, image)
	}
}

// list returns the keys of images, with what ends when nobody needs them any more.
func (s *strandedImages) list() map[string]context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := map[string]context.Context{}
	for key, i := range s.images {
		list[key] = i.done
	}
	return list
}

// strand finds the layers a former life has left open.
func (d *Driver) strand() {
	for id, o := range d.openLayers() {
		if o.Image == "" || o.Generation == d.node.Generation() {
			continue
		}
		mounted, err := d.node.Mounted(d.mountPoint(id))
		switch {
		case err != nil:
			d.cfg.Log.Warn("an open layer can't be looked at", "layer", id, "err", err)
		case mounted && o.View == node.ViewFUSE:
			d.cfg.Log.Error("a container has lost its files, which FUSE served, as the whole plugin was restarted: restart it", "layer", id)
		case mounted:
			d.stranded.add(id, o.Image)
		}
	}
}

// Between two attempts to fetch what stranded layers miss; doubled each time.
const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
)

// Run fetches what layers miss that were open when the plugin as a whole, and with it its FUSE mount, was restarted
// without the engine's knowing. It tries until all of it is here or the layers are closed, which the engine's next Init
// does; then, or when ctx ends, it returns.
func (d *Driver) Run(ctx context.Context) {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		images := d.stranded.list()
		for _, key := range slices.Sorted(maps.Keys(images)) {
			d.help(ctx, key, images[key], pause)
		}
		if len(d.stranded.list()) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// help fetches what an image lacks, as long as a stranded layer is open.
func (d *Driver) help(ctx context.Context, key string, open context.Context, pause time.Duration) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(open, end)()
	log := d.cfg.Log.With("image", key)
	log.Info("fetch what containers miss whose plugin was restarted")
	began := time.Now()
	done, err := d.cfg.Objects.Complete(ctx, key)
	log = log.With("objects", done.Fetched, "bytes", done.Bytes, "failed", done.Failed, "took",
		time.Since(began).Round(time.Millisecond))
	switch {
	case ctx.Err() != nil:
		log.Info("nobody needs the rest of it now")
	case err != nil || done.Failed > 0:
		log.Warn("containers whose plugin was restarted still miss files: restart them, or wait", "again", pause, "err",
			err)
	default:
		log.Info("fetched all that containers missed")
		d.stranded.helped(key)
	}
}

// recount makes every mount that was found count for one Get. It is for the beginning of an engine's life: that engine
// has called Get for nothing yet, and a container that outlived the former one will be put once. What the former engine
// got and didn't put, or got twice as the answer was lost in a crash and it asked again, is so made good.
func (d *Driver) recount() error {
	for id := range d.openLayers() {
		if err := d.recountOne(id); err != nil {
			return err
		}
	}
	return nil
}

func (d *Driver) recountOne(id string) error {
	defer d.locks.Lock(id)()
	o := d.opened(id)
	mounted, err := d.node.Mounted(d.mountPoint(id))
	switch {
	case err != nil:
		return err
	case !mounted:
		return d.close(id)
	case o.Refs > 1:
		d.cfg.Log.Info("a mount the former engine left counts for one use", "layer", id, "counted", o.Refs)
		o.Refs = 1
		return d.saveOpen(id, o)
	}
	return nil
}
