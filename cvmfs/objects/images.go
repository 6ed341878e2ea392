package objects

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Image is an image that names objects, as the store's user tells it.
type Image struct {
	Key     string
	Table   string // the table's file; its modification time is the image's last use
	Mounted bool
	Loaded  *Table // the table where it is in memory; else nil
}

// Images tells which images there are.
type Images interface {
	// Images lists all images on disk. An object that none of them names may go at any time.
	Images() ([]Image, error)
}

// pinAttribute of a table's file pins its image.
const pinAttribute = "user.cvmfs.pin"

// known is an image with what the store knows of it.
type known struct {
	Image
	used   time.Time
	pinned bool
}

// inUse reports whether no object of the image may go.
func (i *known) inUse() bool { return i.Mounted || i.pinned }

// table returns the objects that the image names.
func (i *known) table() (*Table, error) {
	if i.Loaded != nil {
		return i.Loaded, nil
	}
	t, err := OpenTable(i.Table)
	if err != nil && i.inUse() {
		err = fmt.Errorf("what image %s names, which is in use, isn't known, so nothing can be removed from the object "+
			"cache: stop its containers, remove it and pull it again: %w", i.Key, err)
	}
	return t, err
}

// images lists the images, the one used last first. Of what is mounted the last use is now.
func (s *Store) images() ([]known, error) {
	if s.cfg.Images == nil {
		return nil, nil
	}
	told, err := s.cfg.Images.Images()
	if err != nil {
		return nil, fmt.Errorf("images of the object store: %w", err)
	}
	list := make([]known, 0, len(told))
	for _, i := range told {
		k := known{Image: i, used: time.Now()}
		info, err := os.Stat(i.Table)
		switch {
		case err == nil:
			k.used = info.ModTime()
		case errors.Is(err, fs.ErrNotExist) && !i.Mounted:
			continue // removed meanwhile
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
		k.Mounted = k.Mounted || s.eviction.held(i.Key)
		_, err = unix.Getxattr(i.Table, pinAttribute, nil)
		k.pinned = err == nil
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b known) int { return b.used.Compare(a.used) })
	return list, nil
}

// image finds one of the images.
func (s *Store) image(key string) (known, error) {
	list, err := s.images()
	if err != nil {
		return known{}, err
	}
	i := slices.IndexFunc(list, func(i known) bool { return i.Key == key })
	if i < 0 {
		return known{}, fmt.Errorf("no composed image %s: %w", key, fs.ErrNotExist)
	}
	return list[i], nil
}

// Used tells that an image is about to be mounted, or has been unmounted. When it returns, none of the objects it names
// will be evicted, until Images says that it isn't mounted: at the earliest after a minute, in which it may be mounted.
// Their sizes are checked in the background, now and then.
func (s *Store) Used(t *Table) {
	touch(t.path)
	if s.eviction.hold(t) {
		s.tasks.start(func() { s.checkSizes(t) })
	}
	s.admission.unstick()
}

// touch sets an image's last use. That it can't is no harm but to the order of eviction.
func touch(table string) {
	now := time.Now()
	os.Chtimes(table, now, now) // said above
}

// touchMounted makes now the last use of what is mounted, so that the time of unmounting stays when nobody tells it. It
// returns what is mounted.
func (s *Store) touchMounted() (keys []string, err error) {
	list, err := s.images()
	for _, i := range list {
		if i.Mounted {
			touch(i.Table)
			keys = append(keys, i.Key)
		}
	}
	slices.Sort(keys)
	return keys, err
}

// Pin keeps all objects of an image that are here or come, or ends that.
func (s *Store) Pin(key string, pinned bool) error {
	i, err := s.image(key)
	if err != nil {
		return err
	}
	if pinned {
		err = unix.Setxattr(i.Table, pinAttribute, []byte("1"), 0)
	} else if err = unix.Removexattr(i.Table, pinAttribute); errors.Is(err, unix.ENODATA) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("pin image %s: %w", key, &fs.PathError{Op: "attribute of", Path: i.Table, Err: err})
	}
	s.eviction.forgetPlan()
	s.admission.unstick()
	return nil
}

// Forget tells that an image has been removed. Those of its objects that no other image names go in the background.
func (s *Store) Forget(t *Table) {
	s.dropParts(t)
	s.eviction.mu.Lock()
	s.eviction.forgotten = append(s.eviction.forgotten, t)
	s.eviction.mu.Unlock()
	s.admission.unstick()
	s.startEviction()
}

// dropParts gives up what is held and what is partly here of an image's objects. What another image names as well comes
// again.
func (s *Store) dropParts(t *Table) {
	names := make(map[string]bool, t.Len())
	for i := range t.Len() {
		names[t.name(i).String()] = true
	}
	s.partials.drop(func(name string, _ *partial) bool { return names[name] })
	h := &s.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, o := range h.m {
		if names[name] {
			s.giveUp(o)
		}
	}
}

// keyOf is the key of a table's image: the name of the folder it lies in.
func keyOf(t *Table) string { return filepath.Base(filepath.Dir(t.path)) }
