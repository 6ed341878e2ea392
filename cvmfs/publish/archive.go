package publish

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
)

// ErrArchive is what every refusal of an archive's content wraps.
var ErrArchive = errors.New("archive of the layer")

const (
	maxName     = 255     // NAME_MAX
	maxLength   = 4095    // PATH_MAX without its NUL, of paths and of symbolic links' targets
	maxFollowed = 40      // symbolic links on one path, as in Linux
	maxValue    = 1 << 16 // XATTR_SIZE_MAX
	xattrPrefix = "SCHILY.xattr."
)

// builder makes a tree of an archive's entries, as if each were unpacked in turn: a later entry replaces an earlier one of the
// same name, but a folder is merged with a folder, and a path may lead through symbolic links of the archive itself. Folders
// the archive doesn't mention are root's, 0755, and as old as the entry that needed them.
type builder struct {
	root    *node
	own     *Attributes     // of the root's own entry
	rootAll []catalog.Xattr // its extended attributes
	newest  stamp           // of all entries

	entries    int
	mostOfThem int
	bytes      int64 // plain bytes of files
	mostBytes  int64
}

// stamp is a time as rows have it.
type stamp struct {
	seconds int64
	nanos   int32
}

func (s stamp) after(o stamp) bool {
	return s.seconds > o.seconds || s.seconds == o.seconds && s.nanos > o.nanos
}

func newBuilder(o LayerOptions) *builder {
	return &builder{
		root: newFolder("", 0, 0), newest: stamp{seconds: math.MinInt64}, mostOfThem: o.MaxEntries, mostBytes: o.MaxBytes,
	}
}

// add takes an entry into the tree. It gives the file if the entry's content is still to be read.
func (b *builder) add(h *tar.Header) (*file, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil
	}
	f, err := b.addEntry(h)
	if err != nil {
		return nil, fmt.Errorf("%w: %.300q: %w", ErrArchive, h.Name, err)
	}
	return f, nil
}

func (b *builder) addEntry(h *tar.Header) (*file, error) {
	if b.entries++; b.entries > b.mostOfThem {
		return nil, fmt.Errorf("more than %d entries", b.mostOfThem)
	}
	names, err := components(h.Name)
	if err != nil {
		return nil, err
	}
	if h.Typeflag == tar.TypeLink {
		return nil, b.link(names, h)
	}
	f, err := newFile(h)
	if err != nil {
		return nil, err
	}
	if b.bytes += f.Size; f.IsRegular() && b.bytes > b.mostBytes {
		return nil, fmt.Errorf("more than %d bytes of files", b.mostBytes)
	}
	b.saw(f)
	if len(names) == 0 {
		return nil, b.setRoot(f)
	}
	parent, length, err := b.resolve(names[:len(names)-1], f)
	if err != nil {
		return nil, err
	}
	name := names[len(names)-1]
	if length+1+len(name) > maxLength {
		return nil, fmt.Errorf("leads to a path of more than %d bytes", maxLength)
	}
	if old := parent.children[name]; old != nil && old.isDir() && f.IsDir() {
		old.file.overwrite(f)
		return nil, nil
	}
	n := &node{name: strings.Clone(name), file: f}
	if f.IsDir() {
		n.children = map[string]*node{}
	}
	parent.children[n.name] = n
	if f.IsRegular() {
		return f, nil
	}
	return nil, nil
}

func (b *builder) saw(f *file) {
	if s := (stamp{f.Mtime, f.MtimeN}); s.after(b.newest) {
		b.newest = s
	}
}

// setRoot takes the entry of the layer's own folder.
func (b *builder) setRoot(f *file) error {
	if !f.IsDir() {
		return errors.New("the layer's root is not a folder")
	}
	b.own = &Attributes{Mode: f.Mode &^ typeMask, UID: f.UID, GID: f.GID, Mtime: f.Mtime, MtimeN: uint32(f.MtimeN)}
	b.rootAll = f.xattrs()
	return nil
}

// link takes a hard link. What its entry says of the file holds for the file, as it does where engines unpack layers.
func (b *builder) link(names []string, h *tar.Header) error {
	attributes := *h
	attributes.Typeflag, attributes.Size = tar.TypeReg, 0
	said, err := newFile(&attributes)
	if err != nil {
		return err
	}
	to, err := components(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %.300q: %w", h.Linkname, err)
	}
	if len(names) == 0 || len(to) == 0 {
		return fmt.Errorf("hard link to %.300q: one of them is the layer's root", h.Linkname)
	}
	folder, _, err := b.resolve(to[:len(to)-1], nil)
	var target *node
	if err == nil {
		if target = folder.children[to[len(to)-1]]; target == nil {
			err = errors.New("the archive has no such file before this entry")
		} else if target.isDir() {
			err = errors.New("it is a folder")
		}
	}
	if err != nil {
		return fmt.Errorf("hard link to %.300q: %w", h.Linkname, err)
	}
	parent, length, err := b.resolve(names[:len(names)-1], said)
	if err != nil {
		return err
	}
	name := names[len(names)-1]
	if length+1+len(name) > maxLength {
		return fmt.Errorf("leads to a path of more than %d bytes", maxLength)
	}
	said.Mode = said.Mode&^typeMask | target.file.Type()
	if target.file.Type() == typeLink {
		said.Mode = target.file.Mode
	}
	target.file.overwrite(said)
	b.saw(said)
	if parent.children[name] == target {
		return nil
	}
	target.file.linked = true
	parent.children[strings.Clone(name)] = &node{name: strings.Clone(name), file: target.file}
	return nil
}

// step is a component of a path that is still to be gone.
type step struct {
	name     string
	ofTarget bool // comes from a symbolic link's target, so nothing is made for it
}

// resolve finds a folder. Those that the archive didn't mention are made, as old as by, unless by is nil. It gives the length of
// the folder's path, too. Like the kernel in the layer's root, it follows symbolic links and goes no higher than the root.
func (b *builder) resolve(names []string, by *file) (at *node, length int, err error) {
	steps := make([]step, 0, len(names))
	for _, name := range names {
		steps = append(steps, step{name: name})
	}
	chain := []*node{b.root}
	for followed := 0; len(steps) > 0; {
		s := steps[0]
		steps = steps[1:]
		at := chain[len(chain)-1]
		next := at.children[s.name]
		switch {
		case s.name == "" || s.name == ".":
		case s.name == "..":
			chain = chain[:max(len(chain)-1, 1)]
		case next == nil && (by == nil || s.ofTarget):
			return nil, 0, fmt.Errorf("leads through %.100q, which isn't there", s.name)
		case next == nil:
			if pathLength(chain)+1+len(s.name) > maxLength {
				return nil, 0, fmt.Errorf("leads to a path of more than %d bytes", maxLength)
			}
			next = newFolder(strings.Clone(s.name), by.Mtime, by.MtimeN)
			at.children[next.name] = next
			chain = append(chain, next)
		case next.isDir():
			chain = append(chain, next)
		case next.file.Type() == typeLink:
			if followed++; followed > maxFollowed {
				return nil, 0, fmt.Errorf("leads through more than %d symbolic links", maxFollowed)
			}
			if strings.HasPrefix(next.file.Target, "/") {
				chain = chain[:1]
			}
			steps = slices.Concat(targetSteps(next.file.Target), steps)
		default:
			return nil, 0, fmt.Errorf("leads through %.100q, which isn't a folder", s.name)
		}
	}
	return chain[len(chain)-1], pathLength(chain), nil
}

func pathLength(chain []*node) (n int) {
	for _, folder := range chain[1:] {
		n += 1 + len(folder.name)
	}
	return n
}

func targetSteps(target string) (steps []step) {
	for name := range strings.SplitSeq(target, "/") {
		steps = append(steps, step{name, true})
	}
	return steps
}

// components takes an entry's path apart: a slash in front, "." and empty names say nothing.
func components(path string) ([]string, error) {
	if len(path) > maxLength {
		return nil, fmt.Errorf("a path of %d bytes, the limit is %d", len(path), maxLength)
	}
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		switch {
		case name == "" || name == ".":
			continue
		case name == "..":
			return nil, errors.New(`a path with ".."`)
		case len(name) > maxName:
			return nil, fmt.Errorf("a name of %d bytes, the limit is %d", len(name), maxName)
		case strings.IndexByte(name, 0) >= 0:
			return nil, errors.New("a name with a NUL")
		}
		names = append(names, name)
	}
	return names, nil
}

// newFile takes what an entry says of its file.
func newFile(h *tar.Header) (*file, error) {
	f := &file{Entry: catalog.Entry{
		Mode: uint32(h.Mode & 0o7777), Nlink: 1, Mtime: h.ModTime.Unix(), MtimeN: int32(h.ModTime.Nanosecond()),
	}}
	for _, id := range []struct {
		what string
		from int
		to   *uint32
	}{{"owner", h.Uid, &f.UID}, {"group", h.Gid, &f.GID}} {
		if id.from < 0 || int64(id.from) >= math.MaxUint32 { // the last one is nobody's: chown(2) takes it for "as it is"
			return nil, fmt.Errorf("%s %d is no id", id.what, id.from)
		}
		*id.to = uint32(id.from)
	}
	if err := f.setType(h); err != nil {
		return nil, err
	}
	attrs, err := xattrsOf(h)
	if err != nil {
		return nil, err
	}
	f.setXattrs(attrs)
	return f, nil
}

// setType sets the type and what goes with it.
func (f *file) setType(h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		f.Mode |= typeFile
		f.Size = h.Size
		if f.Size < 0 {
			return fmt.Errorf("a size of %d bytes", f.Size)
		}
	case tar.TypeDir:
		f.Mode |= typeDir
		f.Size = folderSize
	case tar.TypeSymlink:
		f.Mode |= typeLink
		f.Target = h.Linkname
		if f.Target == "" || len(f.Target) > maxLength || strings.IndexByte(f.Target, 0) >= 0 {
			return fmt.Errorf("a symbolic link with a target of %d bytes, want 1 to %d and no NUL", len(f.Target), maxLength)
		}
		f.Size = int64(len(f.Target))
	case tar.TypeChar, tar.TypeBlock:
		f.Mode |= typeChar
		if h.Typeflag == tar.TypeBlock {
			f.Mode = f.Mode&^typeMask | typeBlock
		}
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > math.MaxInt32 || h.Devminor > math.MaxUint32 {
			return fmt.Errorf("device %d/%d", h.Devmajor, h.Devminor)
		}
		f.Rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeFifo:
		f.Mode |= typeFifo
	default:
		return fmt.Errorf("type %q is unknown", h.Typeflag)
	}
	return nil
}

// xattrsOf gives an entry's extended attributes, sorted. Those of the overlay file system tell of the host the image was made on.
func xattrsOf(h *tar.Header) ([]catalog.Xattr, error) {
	var attrs []catalog.Xattr
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		if name == "" || len(name) > maxName || strings.IndexByte(name, 0) >= 0 || len(value) > maxValue {
			return nil, fmt.Errorf("extended attribute %.60q of %d bytes: no Linux takes it", name, len(value))
		}
		attrs = append(attrs, catalog.Xattr{Name: name, Value: []byte(value)})
	}
	slices.SortFunc(attrs, func(a, b catalog.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return attrs, nil
}

// setXattrs sets a sorted list; what fits into a row, and the whole where that isn't all.
func (f *file) setXattrs(attrs []catalog.Xattr) {
	var fit []catalog.Xattr
	for _, a := range attrs {
		if a.Fits() && len(fit) < catalog.MaxXattrs {
			fit = append(fit, a)
		}
	}
	f.Xattrs, f.all = fit, nil
	if len(fit) < len(attrs) {
		f.all = attrs
	}
}

// xattrs gives the whole list.
func (f *file) xattrs() []catalog.Xattr {
	if f.all != nil {
		return f.all
	}
	return f.Xattrs
}

// overwrite sets attributes anew: owners, permissions and time are replaced, extended attributes added.
func (f *file) overwrite(by *file) {
	f.Mode, f.UID, f.GID, f.Mtime, f.MtimeN = by.Mode, by.UID, by.GID, by.Mtime, by.MtimeN
	added := by.xattrs()
	if len(added) == 0 {
		return
	}
	merged := slices.Clone(added)
	for _, old := range f.xattrs() {
		if !slices.ContainsFunc(added, func(a catalog.Xattr) bool { return a.Name == old.Name }) {
			merged = append(merged, old)
		}
	}
	slices.SortFunc(merged, func(a, b catalog.Xattr) int { return strings.Compare(a.Name, b.Name) })
	f.setXattrs(merged)
}

// archiveReader hands an archive's bytes to archive/tar and remembers how they ended: that package takes an archive cut off
// between two entries for a whole one.
type archiveReader struct {
	from  io.Reader
	ended bool // the bytes were over when more were asked for
	block [512]byte
	fill  int  // bytes of block
	zero  bool // the last whole block was all zero
}

func (r *archiveReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	r.track(p[:n])
	if errors.Is(err, io.EOF) {
		r.ended = true
	}
	return n, err
}

// track keeps the last block in view; only a short read needs to be looked at byte by byte.
func (r *archiveReader) track(p []byte) {
	for len(p) > 0 {
		n := copy(r.block[r.fill:], p)
		r.fill += n
		p = p[n:]
		if r.fill == len(r.block) {
			r.zero = r.block == [512]byte{}
			r.fill = 0
			if skip := len(p) / len(r.block) * len(r.block); skip > len(r.block) {
				p = p[skip-len(r.block):]
			}
		}
	}
}

// marked tells whether the archive, whose entries are over, had its end marker: at least one block of zeros.
func (r *archiveReader) marked() bool { return !r.ended || r.zero && r.fill == 0 }

// readError says what an error of archive/tar means.
func readError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
		return fmt.Errorf("%w: truncated or damaged: %w", ErrArchive, err)
	}
	return fmt.Errorf("read archive of the layer: %w", err)
}
