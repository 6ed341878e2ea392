package sink

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/internal/layertar"
	"cvmfs-graphdriver/thin"
)

// extraction unpacks one archive into an empty folder.
type extraction struct {
	dir    string
	record thin.Record
	stats  Stats
	xattrs map[uint64]*attributes // of inodes that the archive gives any
	linked bool                   // there are hard links
	marked bool                   // there are files that have the name of a marker of catalogs
	late   bool                   // there are extended attributes that a catalog has no place for
}

// attributes are the extended attributes of an inode, sorted by name.
type attributes struct {
	all  []thin.Xattr
	late bool // a catalog has no place for them, or the file system
}

// extract unpacks an archive of at most so many entries, 0 being layertar.MaxEntries, into a folder, and gives what a
// catalog of it has no place for. Whiteouts stay files.
func extract(ctx context.Context, archive io.Reader, dir string, entries int) (*thin.Record, Stats, error) {
	e := &extraction{dir: dir, xattrs: map[uint64]*attributes{}}
	r := layertar.NewReader(archive)
	r.MaxEntries, r.MaxBytes = cmp.Or(entries, layertar.MaxEntries), layertar.MaxBytes
	err := layertar.Unpack(ctx, dir, r, layertar.Options{
		Recorded: true, Seen: (*layertar.Entry).Showable, Done: e.done,
		Implied: e.implied,
	})
	if err == nil {
		err = e.finish()
	}
	e.stats.Entries = int64(r.Entries())
	notes, all := r.Notes()
	e.stats.Notes, e.stats.LeftOut = notes, int64(all)
	return &e.record, e.stats, needs(err)
}

// needs says what this process lacks.
func needs(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: owners, devices and attributes need root: run as root, on a file system that has them",
			err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: make room and run again", err)
	}
	return err
}

// done takes note of an entry that is in place.
func (e *extraction) done(h *layertar.Entry, at layertar.Place) error {
	if h.Name == "" {
		e.rootEntry(h)
		return nil
	}
	switch h.Type {
	case tar.TypeReg:
		e.stats.Files++
		e.stats.Bytes += h.Size
		e.stats.Stored += h.Size
	case tar.TypeLink:
		e.linked = true
	}
	e.marked = e.marked || catalog.IsMarker(at.Base)
	if len(h.Xattrs) == 0 && len(e.xattrs) == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at.Dir, at.Base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: at.Path, Err: err}
	}
	if at.Made {
		delete(e.xattrs, st.Ino) // of a file that is gone
	}
	return e.addXattrs(st.Ino, h, at.Lost)
}

// implied takes note of a folder that no entry describes: it may have the inode of a file that is gone.
func (e *extraction) implied(dir int) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	delete(e.xattrs, st.Ino)
	return nil
}

// addXattrs adds an entry's extended attributes to those of its inode. All together must find room in a composed image.
func (e *extraction) addXattrs(inode uint64, h *layertar.Entry, lost bool) error {
	if len(h.Xattrs) == 0 {
		return nil
	}
	a := e.xattrs[inode]
	if a == nil {
		a = &attributes{}
		e.xattrs[inode] = a
	}
	a.late = a.late || lost
	for _, x := range recorded(h.Xattrs) {
		a.late = a.late || len(x.Name) > catalog.MaxXattrs || len(x.Value) > catalog.MaxXattrs
		i, there := slices.BinarySearchFunc(a.all, x, func(a,
			b thin.Xattr,
		) int {
			return strings.Compare(a.Name, b.Name)
		})
		if there {
			a.all[i] = x
		} else {
			a.all = slices.Insert(a.all, i, x)
		}
	}
	a.late = a.late || len(a.all) > catalog.MaxXattrs
	e.late = e.late || a.late
	merged := layertar.Entry{Type: tar.TypeReg}
	for _, x := range a.all {
		merged.Xattrs = append(merged.Xattrs, layertar.Xattr{Name: x.Name, Value: string(x.Value)})
	}
	return merged.Showable()
}

func recorded(attrs []layertar.Xattr) (out []thin.Xattr) {
	for _, x := range attrs {
		out = append(out, thin.Xattr{Name: x.Name, Value: []byte(x.Value)})
	}
	return out
}

// rootEntry notes what the archive says of the layer's root: the folder itself belongs to whoever publishes it.
func (e *extraction) rootEntry(h *layertar.Entry) {
	uid, gid := h.Owner(0, 0)
	e.record.Root = &thin.Attributes{
		Mode: h.Mode, UID: uid, GID: gid, Mtime: h.Mtime.Unix(),
		MtimeN: uint32(h.Mtime.Nanosecond()),
	}
	if attrs := recorded(h.Xattrs); len(attrs) > 0 {
		e.noteXattrs("", attrs)
	}
}

func (e *extraction) noteXattrs(name string, attrs []thin.Xattr) {
	if e.record.Xattrs == nil {
		e.record.Xattrs = map[string][]thin.Xattr{}
	}
	e.record.Xattrs[name] = attrs
}

// finish gathers what is to be recorded, by the names that are left, and puts the marker of the layer's catalog.
func (e *extraction) finish() error {
	if e.linked || e.marked || e.late {
		if err := e.gather(); err != nil {
			return err
		}
	}
	if slices.Contains(e.record.Markers, catalog.Marker) {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(e.dir, catalog.Marker), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// gather walks what was unpacked. Hard links are recorded where they reach over several folders: a catalog keeps those
// within one.
func (e *extraction) gather() error {
	root, err := os.OpenRoot(e.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	links := map[uint64][]string{}
	err = fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := root.Lstat(name)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if catalog.IsMarker(path.Base(name)) {
			e.record.Markers = append(e.record.Markers, name)
		}
		if a := e.xattrs[st.Ino]; a != nil && a.late {
			e.noteXattrs(name, a.all)
		}
		if st.Nlink > 1 && !info.IsDir() {
			links[st.Ino] = append(links[st.Ino], name)
		}
		return nil
	})
	for _, group := range links {
		slices.Sort(group)
		if slices.ContainsFunc(group, func(p string) bool { return path.Dir(p) != path.Dir(group[0]) }) {
			e.record.Links = append(e.record.Links, group)
		}
	}
	slices.SortFunc(e.record.Links, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	slices.Sort(e.record.Markers)
	return err
}
