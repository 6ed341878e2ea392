package layers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/images"
)

// image returns the composed image of the chain that ends with a thin layer, composing it if it isn't there.
func (s *Store) image(ctx context.Context, id string) (*images.Image, error) {
	composer, _, err := s.ready()
	if err != nil {
		return nil, err
	}
	defer s.locks.lock(id)()
	l, err := s.load(id)
	if err != nil {
		return nil, err
	}
	if l.Image != "" {
		image, err := composer.Image(l.Image)
		if !errors.Is(err, images.ErrNoImage) {
			return image, err
		}
		s.cfg.Log.Warn("a composed image has gone and is made again", "layer", id, "image", l.Image)
	}
	chain, err := s.chain(id)
	if err != nil {
		return nil, err
	}
	image, err := s.compose(ctx, chain, func(key string) error {
		l.Image = key
		return s.claimImage(key, func() error { return s.save(id, l) })
	})
	if err != nil {
		return nil, fmt.Errorf("compose layer %s: %w", id, err)
	}
	return image, nil
}

// compose returns the composed image of a chain once claim has made a layer name it. An image that goes before, as
// another layer that named it is removed, is composed again: claim then gives images.ErrNoImage.
func (s *Store) compose(ctx context.Context, chain []images.Layer,
	claim func(key string) error,
) (*images.Image, error) {
	s.beginCompose()
	defer s.endCompose()
	for {
		composer, _, err := s.ready()
		if err != nil {
			return nil, err
		}
		image, err := composer.Compose(ctx, chain)
		if err != nil {
			return nil, err
		}
		if err = claim(image.Key); err == nil {
			return image, nil
		}
		if !errors.Is(err, images.ErrNoImage) {
			return nil, err
		}
	}
}

// beginCompose holds off sweeps: an image that has just been composed has no name yet.
func (s *Store) beginCompose() {
	s.images.Lock()
	defer s.images.Unlock()
	s.composing++
}

// endCompose sweeps after the last of several, which may all have come to nothing: the layer was removed meanwhile, the
// caller has gone, the record couldn't be written.
func (s *Store) endCompose() {
	s.images.Lock()
	defer s.images.Unlock()
	s.composing--
	s.sweepImages()
}

// claimImage runs name, which makes a layer name an image, while the image can't go; images.ErrNoImage if it has gone.
// The caller holds the layer's lock.
func (s *Store) claimImage(key string, name func() error) error {
	s.images.Lock()
	defer s.images.Unlock()
	composer, _, err := s.ready()
	if err != nil {
		return err
	}
	if _, err := composer.Image(key); err != nil {
		return err
	}
	return name()
}

// releaseImage removes an image unless somebody names it.
func (s *Store) releaseImage(key string) {
	s.images.Lock()
	defer s.images.Unlock()
	if composer, _, err := s.ready(); err == nil { // else the sweep that comes with Init sees to it
		s.removeUnnamed(composer, []string{key})
	}
}

// sweepImages removes the images nobody names, unless some are being composed. The caller holds images.
func (s *Store) sweepImages() {
	composer, _, err := s.ready()
	if err != nil || s.composing > 0 {
		return
	}
	keys, err := composer.Sweep()
	if err == nil {
		keys, err = s.mountedImages(keys)
	}
	if err != nil {
		s.cfg.Log.Warn("what nobody needs of composed images can't be looked for", "err", err)
	}
	s.removeUnnamed(composer, keys)
}

// removeUnnamed removes those of some images that nobody names. What fails is left to the next sweep: no caller has any
// use for an error. The caller holds images.
func (s *Store) removeUnnamed(composer Composer, keys []string) {
	named, err := s.namedImages()
	for _, key := range keys {
		if err == nil && !named[key] {
			s.cfg.Log.Info("remove a composed image that no layer names", "image", key)
			err = s.removeImage(composer, key)
		}
	}
	if err != nil {
		s.cfg.Log.Warn("composed images that no layer names stay on disk for now", "err", err)
	}
}

// mountedImages adds the keys of the images that are, or were, mounted for overlays to use.
func (s *Store) mountedImages(keys []string) ([]string, error) {
	for _, dir := range []string{s.run("images"), s.run("shared")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			key, _, _ := strings.Cut(e.Name(), ".") // see shown
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// namedImages returns the images that a layer was composed to, or that a mounted one reads from. A record that can't be
// read may name any image: that is an error.
func (s *Store) namedImages() (map[string]bool, error) {
	named := map[string]bool{}
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		l, err := s.load(id)
		if errors.Is(err, ErrNoLayer) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("an image may be named by a layer that can't be read, remove that: %w", err)
		}
		named[l.Image] = true
	}
	ids, err = s.mountPoints()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		var o open // also of an idle layer, which counts as used by nobody
		err := readRecord(s.dir(id), openXattr, &o)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODATA) {
			return nil, fmt.Errorf("an image may be used by layer %s: %w", id, err)
		}
		named[o.Image] = true
	}
	return named, nil
}

// removeImage removes an image, and first what is mounted of it.
func (s *Store) removeImage(composer Composer, key string) error {
	for _, by := range []chosen{{view: ViewFUSE}, {view: ViewEROFS, stacked: true}, {view: ViewEROFS}} {
		if err := s.unmount(s.shown(by, key)); err != nil {
			return err
		}
	}
	return composer.Remove(key)
}
