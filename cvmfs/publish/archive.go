package publish

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/internal/layertar"
)

// ErrArchive is what every refusal of an archive's content wraps.
var ErrArchive = layertar.ErrArchive

const (
	maxName     = 255  // NAME_MAX
	maxLength   = 4095 // PATH_MAX without its NUL
	maxFollowed = 40   // symbolic links on one path, as in Linux
)

// builder makes a tree of an archive's entries, as if each were unpacked in turn: a later entry replaces an earlier one
// of the same name, but a folder is merged with a folder, and a path may lead through symbolic links of the archive
// itself. Folders the archive doesn't mention are root's, 0755, and as old as the entry that needed them.
type builder struct {
	root    *node
	own     *Attributes     // of the root's own entry
	rootAll []catalog.Xattr // its extended attributes
	newest  stamp           // of all entries
	bounds  bounds          // of what entries may make

	seen bool // there was an entry
}

// stamp is a time as rows have it.
type stamp struct {
	seconds int64
	nanos   int32
}

func (s stamp) after(o stamp) bool {
	return s.seconds > o.seconds || s.seconds == o.seconds && s.nanos > o.nanos
}

// bounds count folders that entries imply and names that they are looked for by: those of a [layertar.Reader].
type bounds interface {
	Imply() error
	Step() error
}

func newBuilder(b bounds) *builder {
	return &builder{root: newFolder("", 0, 0), newest: stamp{seconds: math.MinInt64}, bounds: b}
}

// add takes an entry into the tree. It gives the file if the entry's content is still to be read.
func (b *builder) add(e *layertar.Entry) (*file, error) {
	f, err := b.addEntry(e)
	if err != nil {
		return nil, fmt.Errorf("%w: %.300q: %w", ErrArchive, e.Name, err)
	}
	return f, nil
}

func (b *builder) addEntry(e *layertar.Entry) (*file, error) {
	if err := e.Showable(); err != nil {
		return nil, err
	}
	f := newFile(e)
	b.saw(f)
	if e.Name == "" {
		b.setRoot(f)
		return nil, nil
	}
	dir, name := cutLast(e.Name)
	parent, length, err := b.resolve(dir, f)
	if err != nil {
		return nil, err
	}
	if length+1+len(name) > maxLength {
		return nil, errTooLong
	}
	if e.Type == tar.TypeLink {
		return nil, b.link(parent, name, f, e)
	}
	if old := parent.children[name]; old != nil && old.isDir() && f.IsDir() {
		return nil, old.file.overwrite(f, e)
	}
	parent.children[name] = newNode(name, f)
	if f.IsRegular() {
		return f, nil
	}
	return nil, nil
}

var errTooLong = fmt.Errorf("leads to a path of more than %d bytes", maxLength)

// cutLast takes the last name off a path.
func cutLast(path string) (dir, base string) {
	slash := strings.LastIndexByte(path, '/')
	return path[:max(slash, 0)], path[slash+1:]
}

func newNode(name string, f *file) *node {
	n := &node{name: strings.Clone(name), file: f}
	if f.IsDir() {
		n.children = map[string]*node{}
	}
	return n
}

func (b *builder) saw(f *file) {
	b.seen = true
	if s := (stamp{f.Mtime, f.MtimeN}); s.after(b.newest) {
		b.newest = s
	}
}

// setRoot takes the entry of the layer's own folder.
func (b *builder) setRoot(f *file) {
	b.own = &Attributes{Mode: f.Mode &^ typeMask, UID: f.UID, GID: f.GID, Mtime: f.Mtime, MtimeN: uint32(f.MtimeN)}
	b.rootAll = f.xattrs()
}

// link takes a hard link. What has the name makes room first, also if it is the file, as where engines unpack layers;
// and what the entry says of the file holds for the file.
func (b *builder) link(parent *node, name string, said *file, e *layertar.Entry) error {
	delete(parent.children, name)
	dir, base := cutLast(e.Target)
	folder, _, err := b.resolve(dir, nil)
	var target *node
	if err == nil {
		if target = folder.children[base]; target == nil {
			err = errors.New("the archive has no such file before this entry")
		} else if target.isDir() {
			err = errors.New("it is a folder")
		}
	}
	if err == nil {
		err = target.file.overwrite(said, e)
	}
	if err != nil {
		return fmt.Errorf("hard link to %.300q: %w", e.Target, err)
	}
	target.file.linked = true
	parent.children[strings.Clone(name)] = &node{name: strings.Clone(name), file: target.file}
	return nil
}

// resolve finds a folder. Those that the archive didn't mention are made, as old as by, unless by is nil. It gives the
// length of the folder's path, too. Like the kernel in the layer's root, it follows symbolic links and goes no higher
// than the root.
func (b *builder) resolve(path string, by *file) (at *node, length int, err error) {
	steps := strings.Split(path, "/")
	chain := []*node{b.root}
	for followed := 0; len(steps) > 0; {
		if err := b.bounds.Step(); err != nil {
			return nil, 0, err
		}
		name := steps[0]
		steps = steps[1:]
		at := chain[len(chain)-1]
		next := at.children[name]
		if next != nil && by != nil && !next.isDir() && next.givesWay() {
			next = nil
		}
		switch {
		case name == "" || name == ".":
		case name == "..":
			chain = chain[:max(len(chain)-1, 1)]
		case next == nil && by == nil:
			return nil, 0, fmt.Errorf("leads through %.100q, which isn't there", name)
		case next == nil:
			if pathLength(chain)+1+len(name) > maxLength {
				return nil, 0, errTooLong
			}
			if err := b.bounds.Imply(); err != nil {
				return nil, 0, err
			}
			next = newFolder(strings.Clone(name), by.Mtime, by.MtimeN)
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
			steps = slices.Concat(strings.Split(next.file.Target, "/"), steps)
		default:
			return nil, 0, fmt.Errorf("leads through %.100q, which isn't a folder", name)
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

// givesWay reports what a folder replaces without an entry that says so: whiteouts, be they files or devices.
func (n *node) givesWay() bool {
	return layertar.IsWhiteoutName(n.name) || n.file.Type() == typeChar && n.file.Rdev == 0
}

// newFile takes what an entry says of its file; of a hard link's, all but what it is.
func newFile(e *layertar.Entry) *file {
	f := &file{Entry: catalog.Entry{Mode: e.Mode, Nlink: 1, Mtime: e.Mtime.Unix(), MtimeN: int32(e.Mtime.Nanosecond())}}
	f.UID, f.GID = e.Owner(0, 0)
	switch e.Type {
	case tar.TypeReg:
		f.Mode |= typeFile
		f.Size = e.Size
	case tar.TypeDir:
		f.Mode |= typeDir
		f.Size = folderSize
	case tar.TypeSymlink:
		f.Mode |= typeLink
		f.Target = e.Target
		f.Size = int64(len(f.Target))
	case tar.TypeChar:
		f.Mode |= typeChar
		f.Rdev = e.Device()
	case tar.TypeBlock:
		f.Mode |= typeBlock
		f.Rdev = e.Device()
	case tar.TypeFifo:
		f.Mode |= typeFifo
	}
	f.setXattrs(xattrsOf(e.Xattrs))
	return f
}

func xattrsOf(attrs []layertar.Xattr) (out []catalog.Xattr) {
	for _, x := range attrs {
		out = append(out, catalog.Xattr{Name: x.Name, Value: []byte(x.Value)})
	}
	return out
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

// xattrs returns the whole list.
func (f *file) xattrs() []catalog.Xattr {
	if f.all != nil {
		return f.all
	}
	return f.Xattrs
}

// overwrite sets attributes anew, as an entry has them and by says it: owners, permissions and time are replaced,
// extended attributes added. All together must find room in a composed image.
func (f *file) overwrite(by *file, e *layertar.Entry) error {
	f.UID, f.GID = e.Owner(f.UID, f.GID)
	f.Mtime, f.MtimeN = by.Mtime, by.MtimeN
	if f.Type() != typeLink {
		f.Mode = f.Type() | e.Mode
	}
	merged := layertar.Entry{Type: tar.TypeReg}
	all := map[string][]byte{}
	for _, x := range slices.Concat(f.xattrs(), by.xattrs()) {
		all[x.Name] = x.Value
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if layertar.Has(typeflag(f), name) {
			merged.Xattrs = append(merged.Xattrs, layertar.Xattr{Name: name, Value: string(all[name])})
		}
	}
	if err := merged.Showable(); err != nil {
		return err
	}
	f.setXattrs(xattrsOf(merged.Xattrs))
	return nil
}

// typeflag is a file's type as in archives.
func typeflag(f *file) byte {
	switch f.Type() {
	case typeFile:
		return tar.TypeReg
	case typeDir:
		return tar.TypeDir
	case typeLink:
		return tar.TypeSymlink
	}
	return tar.TypeChar
}
