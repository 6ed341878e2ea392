package layers

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/overlayfs"
)

// Compare lists what a layer changes against its parent, whose view is mounted at a folder. The answer is that of
// comparing the two views name by name.
func (s *Store) Compare(id, view string) ([]archive.Change, error) {
	root, err := os.OpenRoot(s.diff(id))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	c := &comparison{diff: root, view: view}
	if _, err := c.dir(".", true, false); err != nil {
		return nil, err
	}
	return c.changes, nil
}

// Size returns the bytes of the files in a layer, each hard link counted once.
func (s *Store) Size(id string) (int64, error) { return treeSize(s.diff(id)) }

// comparison is a diff folder and the view it was made on. The container may be changing the diff folder, so that is
// reached through os.Root only; the view is ours.
type comparison struct {
	diff    *os.Root
	view    string
	changes []archive.Change
}

// dir compares a folder of the diff and reports whether anything in it changes. below reports whether the view has a
// folder there, hidden whether it shows nothing of it because the folder or one above it is opaque.
func (c *comparison) dir(name string, below, hidden bool) (changed bool, err error) {
	f, err := c.diff.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if below && !hidden {
		v, err := fgetxattr(f, overlayfs.XattrOpaque)
		if err != nil {
			return false, err
		}
		hidden = bytes.Equal(v, []byte("y"))
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return false, err
	}
	for _, n := range names {
		entry, err := c.entry(path.Join(name, n), below, hidden)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a container deletes while we look
		}
		if err != nil {
			return false, err
		}
		changed = changed || entry
	}
	if !below || !hidden {
		return changed, nil
	}
	gone, err := c.hiddenNames(name, names)
	return changed || gone, err
}

// hiddenNames reports as deleted what an opaque folder doesn't have again.
func (c *comparison) hiddenNames(name string, kept []string) (changed bool, err error) {
	entries, err := os.ReadDir(filepath.Join(c.view, name))
	if err != nil {
		return false, err
	}
	again := make(map[string]bool, len(kept))
	for _, n := range kept {
		again[n] = true
	}
	for _, e := range entries {
		if !again[e.Name()] {
			c.add(path.Join(name, e.Name()), archive.ChangeDelete)
			changed = true
		}
	}
	return changed, nil
}

// entry compares one name of the diff and what lies below it.
func (c *comparison) entry(name string, below, hidden bool) (changed bool, err error) {
	now, err := c.diff.Lstat(name)
	if err != nil {
		return false, err
	}
	var old fs.FileInfo
	if below {
		if old, err = os.Lstat(filepath.Join(c.view, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	switch {
	case isWhiteout(now) && old == nil:
		return false, nil
	case isWhiteout(now):
		c.add(name, archive.ChangeDelete)
		return true, nil
	}
	at := len(c.changes)
	if now.IsDir() {
		if changed, err = c.dir(name, old != nil && old.IsDir(), hidden); err != nil {
			return false, err
		}
	}
	switch {
	case old == nil:
		c.insert(at, name, archive.ChangeAdd)
	case changed || differ(old, now) || !bytes.Equal(c.oldCapability(name), c.newCapability(name, now)):
		c.insert(at, name, archive.ChangeModify)
	default:
		return false, nil
	}
	return true, nil
}

func (c *comparison) add(name string, kind archive.ChangeType) {
	c.insert(len(c.changes), name, kind)
}

func (c *comparison) insert(at int, name string, kind archive.ChangeType) {
	c.changes = slices.Insert(c.changes, at, archive.Change{Path: "/" + name, Kind: kind})
}

// differ compares two files by what stat(2) says of them, by the rules of the engine: of folders the times don't count,
// and a time without nanoseconds equals any other in its second, as archives hold whole seconds.
func differ(a, b fs.FileInfo) bool {
	s, t := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	if s.Mode != t.Mode || s.Uid != t.Uid || s.Gid != t.Gid || s.Rdev != t.Rdev {
		return true
	}
	if a.IsDir() {
		return false
	}
	x, y := a.ModTime(), b.ModTime()
	sameTime := x.Equal(y) || x.Unix() == y.Unix() && (x.Nanosecond() == 0 || y.Nanosecond() == 0)
	return s.Size != t.Size || !sameTime
}

// oldCapability returns the file capability in the view. It doesn't open the file, which would fetch its content.
func (c *comparison) oldCapability(name string) []byte {
	b := make([]byte, 64)
	n, err := unix.Lgetxattr(filepath.Join(c.view, name), capabilityXattr, b)
	if err != nil {
		return nil // most files have none; one that can't be read counts as none, as it does for the engine
	}
	return b[:n]
}

func (c *comparison) newCapability(name string, info fs.FileInfo) []byte {
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := c.diff.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil // deleted or replaced meanwhile
	}
	defer f.Close()
	b, err := fgetxattr(f, capabilityXattr)
	if err != nil {
		return nil // as above
	}
	return b
}
