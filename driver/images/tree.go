package images

import (
	"sort"
	"strings"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/erofs"
	"cvmfs-graphdriver/internal/layertar"
)

// inode is a file, folder, link or device of the merged tree. Hard links share one.
type inode struct {
	erofs.Node                 // without children and redirect, both filled in on writing
	redirect   string          // where the content of a non-empty regular file lies
	object     *objects.Object // what to fetch for it; nil for files of ordinary layers
	repo       string          // the repository that has the object
	met        bool            // flatten has come to it by one of its names

	opaque   bool // a folder with overlayfs' mark: hides everything the layers below have in it
	whiteout bool // overlayfs' mark: hides its name in the layers below
}

// node is a name in a tree. A layer's tree also holds what the layer removes from those below.
type node struct {
	*inode
	children map[string]*node // of a folder, never nil then
	removed  map[string]bool  // names the folder hides from the layers below
	recorded bool             // the root of a layer whose record tells its attributes
}

func newDir(i *inode) *node { return &node{inode: i, children: map[string]*node{}} }

func (n *node) isDir() bool { return n.children != nil }

// remove records a whiteout.
func (n *node) remove(name string) {
	if n.removed == nil {
		n.removed = map[string]bool{}
	}
	n.removed[name] = true
}

// merge lays the layer upper over the tree n, folder by folder. Whiteouts act on what is below only, never on what the
// same layer adds under that name.
func (n *node) merge(upper *node) {
	n.inode = upper.inode
	if upper.opaque {
		clear(n.children)
	}
	for name := range upper.removed {
		delete(n.children, name)
	}
	for name, u := range upper.children {
		if l := n.children[name]; l != nil && l.isDir() && u.isDir() {
			l.merge(u)
		} else {
			n.children[name] = u
		}
	}
}

// sorted returns a folder's names in byte order.
func (n *node) sorted() []string {
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// The marks of overlayfs, which layers have that were taken from an upper folder as it is.
const (
	overlayOpaque   = "overlay.opaque"
	overlayWhiteout = "overlay.whiteout"
)

// overlayXattr returns the name without its name space if it is an instruction to overlayfs.
func overlayXattr(name string) (string, bool) {
	for _, space := range []string{"trusted.", "user."} {
		if rest, ok := strings.CutPrefix(name, space); ok && strings.HasPrefix(rest, "overlay.") {
			return rest, true
		}
	}
	return "", false
}

// takeMarks moves overlayfs' instructions out of the extended attributes: two of them mean something in a layer, none
// may reach the kernel.
func (i *inode) takeMarks() {
	kept := i.Xattrs[:0]
	for _, x := range i.Xattrs {
		switch mark, is := overlayXattr(x.Name); {
		case !is:
			kept = append(kept, x)
		case mark == overlayOpaque && x.Value == "y":
			i.opaque = i.Mode&typeMask == typeDir
		case mark == overlayWhiteout && i.isRegular() && i.Size == 0:
			i.whiteout = true
		}
	}
	i.Xattrs = kept
	i.whiteout = i.whiteout || i.Mode&typeMask == typeChar && i.Rdev == 0
}

const (
	typeMask    = 0o170000
	typeDir     = 0o040000
	typeRegular = 0o100000
	typeChar    = 0o020000
)

func (i *inode) isRegular() bool { return i.Mode&typeMask == typeRegular }

// builder makes a layer's tree of entries that come depth first, a folder before what it holds.
type builder struct {
	published bool // marks mean nothing
	root      *node
	open      []openDir // the folders from the root to the last entry
	skip      string    // the children of this folder belong to a mark and are left out
}

type openDir struct {
	path string
	node *node
}

// add enters the entry at path ("" for the layer's root, else "/a/b").
func (b *builder) add(path string, i *inode) {
	if b.skip != "" && strings.HasPrefix(path, b.skip+"/") {
		return
	}
	i.takeMarks()
	n := &node{inode: i}
	if i.Mode&typeMask == typeDir {
		n = newDir(i)
	}
	if path == "" {
		b.root, b.open = n, []openDir{{"", n}}
		return
	}
	slash := strings.LastIndexByte(path, '/')
	for b.open[len(b.open)-1].path != path[:slash] {
		b.open = b.open[:len(b.open)-1]
	}
	parent, name := b.open[len(b.open)-1].node, path[slash+1:]
	if !b.published && b.mark(parent, path, name, i) {
		return
	}
	parent.children[name] = n
	if n.isDir() {
		b.open = append(b.open, openDir{path, n})
	}
}

// mark notes what an entry means for the layers below, and reports whether it means anything.
func (b *builder) mark(parent *node, path, name string, i *inode) bool {
	switch {
	case name == layertar.WhiteoutOpaque:
		parent.opaque, b.skip = true, path
	case strings.HasPrefix(name, layertar.WhiteoutMeta):
		b.skip = path // other marks of AUFS mean nothing outside it
	case strings.HasPrefix(name, layertar.WhiteoutPrefix):
		parent.remove(name[len(layertar.WhiteoutPrefix):])
		b.skip = path
	case i.whiteout:
		parent.remove(name)
	default:
		return false
	}
	return true
}
