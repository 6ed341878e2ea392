package target

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/thin"
)

const (
	// catalogMarker makes its folder the root of a nested catalog.
	catalogMarker = ".cvmfscatalog"
	autoMarker    = ".cvmfsautocatalog"

	xattrPrefix    = "SCHILY.xattr."
	maxEntries     = 20_000_000
	maxDepth       = 512
	copyBufferSize = 1 << 20
	catalogXattr   = 255 // bytes of a name or a value, and number, that a catalog has place for
	maxTarget      = 4095
)

// extraction unpacks one archive into an empty folder.
type extraction struct {
	ctx     context.Context
	root    *os.File
	parent  *os.File // the folder the last entry was in
	at      string   // its path
	folders map[string]times
	links   map[string]*linked // files that have, or had, several names, by each name
	markers map[string]bool    // files that have the name of a marker of catalogs
	record  thin.Record
	stats   Stats
	buffer  []byte
}

// linked is one file with all its names.
type linked struct{ names map[string]bool }

// times are set when nothing is put into a folder any more.
type times struct{ atime, mtime time.Time }

// extract unpacks an archive into a folder and gives what a catalog of it has no place for. Whiteouts stay files.
func extract(ctx context.Context, archive io.Reader, dir string) (*thin.Record, Stats, error) {
	root, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, Stats{}, err
	}
	e := &extraction{
		ctx: ctx, root: root, parent: root, folders: map[string]times{}, links: map[string]*linked{}, markers: map[string]bool{},
		buffer: make([]byte, copyBufferSize),
	}
	err = e.run(tar.NewReader(archive))
	return &e.record, e.stats, errors.Join(err, e.close())
}

func (e *extraction) close() error {
	var err error
	if e.parent != e.root {
		err = e.parent.Close()
	}
	return errors.Join(err, e.root.Close())
}

func (e *extraction) run(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return e.finish()
		}
		if err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		if err := e.entry(h, r); err != nil {
			return fmt.Errorf("entry %.300q: %w", h.Name, needs(err))
		}
	}
}

// needs says what this process lacks.
func needs(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: owners, devices and attributes need root: run as root, on a file system that has them", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: this file system has no such extended attributes: use another", err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: make room and run again", err)
	}
	return err
}

// clean gives an entry's path relative to the root, "" for the root itself.
func clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("its name holds a NUL byte")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return "", errors.New("its name leads upwards")
		case len(part) > 255:
			return "", fmt.Errorf("a name of %d bytes, the limit is 255", len(part))
		}
		parts = append(parts, part)
	}
	if len(parts) > maxDepth {
		return "", fmt.Errorf("%d folders deep, the limit is %d", len(parts), maxDepth)
	}
	return strings.Join(parts, "/"), nil
}

func (e *extraction) entry(h *tar.Header, content io.Reader) error {
	if e.ctx.Err() != nil {
		return context.Cause(e.ctx)
	}
	if e.stats.Entries++; e.stats.Entries > maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return e.rootEntry(h)
	}
	if err := e.enter(parentOf(name)); err != nil {
		return err
	}
	base := path.Base(name)
	if err := e.clear(name, base, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		if err := e.link(name, base, h.Linkname); err != nil {
			return err
		}
		return e.linkAttributes(base, h)
	}
	if err := e.make(base, h, content); err != nil {
		return err
	}
	if base == catalogMarker || base == autoMarker {
		e.markers[name] = true
	}
	return e.attributes(name, base, h)
}

func parentOf(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i]
	}
	return ""
}

// enter opens the folder of a path, which it makes if need be, as the next entries' parent.
func (e *extraction) enter(dir string) error {
	if dir == e.at {
		return nil
	}
	at := e.root
	for part := range strings.SplitSeq(dir, "/") {
		if dir == "" {
			break
		}
		next, err := openFolderAt(at, part)
		if err != nil {
			return errors.Join(err, e.leave(at))
		}
		if err := e.leave(at); err != nil {
			return errors.Join(err, next.Close())
		}
		at = next
	}
	err := e.leave(e.parent)
	e.parent, e.at = at, dir
	return err
}

func (e *extraction) leave(dir *os.File) error {
	if dir == e.root {
		return nil
	}
	return dir.Close()
}

// openFolderAt opens a folder in another, following no link. One that isn't there is made, 0755 and root's.
func openFolderAt(at *os.File, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(int(at.Fd()), name, flags, 0)
	if errors.Is(err, unix.ENOENT) {
		if err = unix.Mkdirat(int(at.Fd()), name, 0o755); err == nil {
			fd, err = unix.Openat(int(at.Fd()), name, flags, 0)
		}
		if err == nil {
			err = unix.Fchmod(fd, 0o755) // whatever the umask
		}
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("it is below %.100q, which is no folder in this archive", name)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// clear makes room for an entry that comes again: the later one wins. A folder stays a folder.
func (e *extraction) clear(name, base string, folder bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(e.parent.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR && folder {
		delete(e.record.Xattrs, name)
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		e.forget(name)
		return unix.Unlinkat(int(e.parent.Fd()), base, 0)
	}
	e.forgetBelow(name)
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", e.parent.Fd()))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(base), root.Close())
}

// forget drops what was noted of a path. The other names of its file are still one.
func (e *extraction) forget(name string) {
	delete(e.folders, name)
	delete(e.record.Xattrs, name)
	delete(e.markers, name)
	if file := e.links[name]; file != nil {
		delete(file.names, name)
		delete(e.links, name)
	}
}

// forgetBelow drops what was noted of a folder and of all in it.
func (e *extraction) forgetBelow(folder string) {
	e.forget(folder)
	forgetIn(e, e.folders, folder)
	forgetIn(e, e.record.Xattrs, folder)
	forgetIn(e, e.markers, folder)
	forgetIn(e, e.links, folder)
}

func forgetIn[V any](e *extraction, noted map[string]V, folder string) {
	for name := range noted {
		if strings.HasPrefix(name, folder+"/") {
			e.forget(name)
		}
	}
}

// link makes another name of a file that came earlier.
func (e *extraction) link(name, base, target string) error {
	old, err := clean(target)
	if err != nil {
		return fmt.Errorf("hard link to %.100q: %w", target, err)
	}
	if old == "" || old == name {
		return fmt.Errorf("hard link to %.100q: no other file", target)
	}
	parent, at := e.parent, e.at
	e.parent, e.at = e.root, ""
	err = e.enter(parentOf(old))
	if err == nil {
		err = unix.Linkat(int(e.parent.Fd()), path.Base(old), int(parent.Fd()), base, 0)
	}
	if e.parent != parent {
		err = errors.Join(err, e.leave(e.parent))
	}
	e.parent, e.at = parent, at
	if err != nil {
		return fmt.Errorf("hard link to %.100q: %w", target, err)
	}
	file := e.links[old]
	if file == nil {
		file = &linked{map[string]bool{old: true}}
		e.links[old] = file
	}
	e.links[name], file.names[name] = file, true
	if attrs, late := e.record.Xattrs[old]; late {
		e.record.Xattrs[name] = attrs
	}
	return nil
}

// make makes what an entry names, without its attributes.
func (e *extraction) make(base string, h *tar.Header, content io.Reader) error {
	fd := int(e.parent.Fd())
	device := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor > math.MaxUint32 {
		return fmt.Errorf("device %d:%d", h.Devmajor, h.Devminor)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return e.file(base, content)
	case tar.TypeDir:
		err := unix.Mkdirat(fd, base, 0o700)
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxTarget {
			return fmt.Errorf("symbolic link to a path of %d bytes", len(h.Linkname))
		}
		return unix.Symlinkat(h.Linkname, fd, base)
	case tar.TypeChar:
		return unix.Mknodat(fd, base, unix.S_IFCHR|0o600, int(device))
	case tar.TypeBlock:
		return unix.Mknodat(fd, base, unix.S_IFBLK|0o600, int(device))
	case tar.TypeFifo:
		return unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0)
	default:
		return fmt.Errorf("an entry of type %q: this program doesn't know it", h.Typeflag)
	}
}

func (e *extraction) file(base string, content io.Reader) error {
	fd, err := unix.Openat(int(e.parent.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, content, e.buffer)
	e.stats.Files++
	e.stats.Bytes += n
	e.stats.Stored += n
	return errors.Join(err, f.Close())
}

// linkAttributes gives a file the owner, mode and time of one more link's entry, as engines and our own publisher do. The owner is
// left alone where it is right already: setting it takes a program's capabilities away.
func (e *extraction) linkAttributes(base string, h *tar.Header) error {
	fd := int(e.parent.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if int(st.Uid) != h.Uid || int(st.Gid) != h.Gid {
		if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, err)
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(fd, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	return setTimes(fd, base, timesOf(h))
}

// attributes sets owner, mode, extended attributes and times, in the order in which one doesn't undo the other.
func (e *extraction) attributes(name, base string, h *tar.Header) error {
	fd := int(e.parent.Fd())
	if !isID(h.Uid) || !isID(h.Gid) {
		return fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(fd, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	if err := e.xattrs(name, fmt.Sprintf("/proc/self/fd/%d/%s", fd, base), h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		e.folders[name] = timesOf(h)
		return nil
	}
	return setTimes(fd, base, timesOf(h))
}

// isID tells what can be a user or a group: the kernel takes the greatest number for "leave it".
func isID(id int) bool { return id >= 0 && id < math.MaxUint32 }

func timesOf(h *tar.Header) times {
	t := times{h.AccessTime, h.ModTime}
	if t.atime.IsZero() {
		t.atime = t.mtime
	}
	return t
}

func setTimes(fd int, base string, t times) error {
	ts := make([]unix.Timespec, 2)
	for i, v := range []time.Time{t.atime, t.mtime} {
		ts[i] = unix.Timespec{Sec: v.Unix(), Nsec: int64(v.Nanosecond())}
	}
	if err := unix.UtimesNanoAt(fd, base, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("times: %w", err)
	}
	return nil
}

// xattrsOf gives an entry's extended attributes, sorted. Those of overlay file systems would be taken for the layer's own marks.
func xattrsOf(h *tar.Header) []thin.Xattr {
	var attrs []thin.Xattr
	for key, value := range h.PAXRecords {
		name, found := strings.CutPrefix(key, xattrPrefix)
		if found && !strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.") {
			attrs = append(attrs, thin.Xattr{Name: name, Value: []byte(value)})
		}
	}
	sort.Slice(attrs, func(i, j int) bool { return attrs[i].Name < attrs[j].Name })
	return attrs
}

// xattrs sets an entry's extended attributes and notes those that a catalog has no place for.
func (e *extraction) xattrs(name, file string, h *tar.Header) error {
	attrs := xattrsOf(h)
	late := len(attrs) > catalogXattr
	for _, x := range attrs {
		if err := unix.Lsetxattr(file, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("extended attribute %.100q: %w", x.Name, err)
		}
		late = late || len(x.Name) > catalogXattr || len(x.Value) > catalogXattr
	}
	if late {
		e.noteXattrs(name, attrs)
	}
	return nil
}

func (e *extraction) noteXattrs(name string, attrs []thin.Xattr) {
	if e.record.Xattrs == nil {
		e.record.Xattrs = map[string][]thin.Xattr{}
	}
	e.record.Xattrs[name] = attrs
}

// rootEntry notes what the archive says of the layer's root: the folder itself belongs to whoever publishes it.
func (e *extraction) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return errors.New("the root is no folder")
	}
	e.record.Root = &thin.Attributes{
		Mode: uint32(h.Mode) & 0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid),
		Mtime: h.ModTime.Unix(), MtimeN: uint32(h.ModTime.Nanosecond()),
	}
	if attrs := xattrsOf(h); len(attrs) > 0 {
		e.noteXattrs("", attrs)
	}
	return nil
}

// finish sets the folders' times, the deepest first, and puts the marker of the layer's catalog.
func (e *extraction) finish() error {
	var names []string
	for name := range e.folders {
		names = append(names, name)
	}
	sort.Sort(sort.Reverse(sort.StringSlice(names)))
	for _, name := range names {
		if err := e.enter(parentOf(name)); err != nil {
			return err
		}
		if err := setTimes(int(e.parent.Fd()), path.Base(name), e.folders[name]); err != nil {
			return fmt.Errorf("folder %.300q: %w", name, err)
		}
	}
	e.gatherLinks()
	e.record.Markers = slices.Sorted(maps.Keys(e.markers))
	if e.markers[catalogMarker] {
		return nil
	}
	fd, err := unix.Openat(int(e.root.Fd()), catalogMarker, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("%s: %w", catalogMarker, err)
	}
	return unix.Close(fd)
}

// gatherLinks notes the groups of hard links that reach over several folders: a catalog keeps those within one.
func (e *extraction) gatherLinks() {
	for first, file := range e.links {
		group := slices.Sorted(maps.Keys(file.names))
		across := slices.ContainsFunc(group, func(p string) bool { return parentOf(p) != parentOf(group[0]) })
		if group[0] == first && across {
			e.record.Links = append(e.record.Links, group)
		}
	}
	sort.Slice(e.record.Links, func(i, j int) bool { return e.record.Links[i][0] < e.record.Links[j][0] })
}
