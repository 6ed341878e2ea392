package publish

import (
	"maps"
	"slices"
	"strings"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// node is a name in a tree that is being edited or built.
type node struct {
	name     string
	file     *file
	children map[string]*node // of a folder; nil in a mount whose catalog isn't loaded
	mount    *mount           // of a folder at which a nested catalog goes on, and of the root
}

// file is what a node names. Hard links are nodes with the same file.
type file struct {
	catalog.Entry // its Name and Flags, but for Hidden and the like, are set when it is written

	linked bool            // more than one node had it at some time
	all    []catalog.Xattr // all extended attributes, where a row can't hold them
}

// mount is a catalog of a tree.
type mount struct {
	digest hash.Digest // of the stored form; zero: not written yet
	size   int64       // plain bytes of it

	loaded bool // its rows are in the tree
	dirty  bool // they are not what is stored

	// What the newest revision has; zero for a catalog that isn't in it.
	published hash.Digest
	revision  uint64
	base      catalog.Statistics

	total   catalog.Counters // of the catalog and all below, once it is written
	removed catalog.Counters // of the catalogs below that base counts and that were removed
}

const (
	typeMask   = 0o170000
	typeDir    = 0o040000
	typeFile   = 0o100000
	typeLink   = 0o120000
	typeChar   = 0o020000
	typeBlock  = 0o060000
	typeFifo   = 0o010000
	folderSize = 4096 // bytes a folder's row says
)

// newFolder returns an empty folder, 0755 and root's.
func newFolder(name string, mtime int64, mtimeN int32) *node {
	return &node{name: name, children: map[string]*node{}, file: &file{Entry: catalog.Entry{
		Mode: typeDir | 0o755, Size: folderSize, Mtime: mtime, MtimeN: mtimeN,
	}}}
}

func (n *node) isDir() bool { return n.file.IsDir() }

// sorted returns a folder's children by name.
func (n *node) sorted() []*node {
	return slices.SortedFunc(maps.Values(n.children), func(a, b *node) int { return strings.Compare(a.name, b.name) })
}

// subfolders counts them, mounts included.
func (n *node) subfolders() (count uint32) {
	for _, c := range n.children {
		if c.isDir() {
			count++
		}
	}
	return count
}

// within calls fn for each node below n that has a row in the same catalog, folders before what is in them, in the
// order of names. path is n's own.
func (n *node) within(path string, fn func(path string, n *node) error) error {
	for _, c := range n.sorted() {
		below := path + "/" + c.name
		if err := fn(below, c); err != nil {
			return err
		}
		if c.mount != nil {
			continue
		}
		if err := c.within(below, fn); err != nil {
			return err
		}
	}
	return nil
}

// number returns hard-link groups in a folder the numbers from first on, and files their link count. A file all of
// whose other names are gone is an ordinary one again. The files must have no names elsewhere.
func number(children []*node, first uint32) (next uint32) {
	names := map[*file]uint32{}
	for _, c := range children {
		if c.isDir() {
			continue
		}
		c.file.Group, c.file.Nlink = 0, 1
		if c.file.linked {
			names[c.file]++
		}
	}
	for _, c := range children {
		if count := names[c.file]; count > 1 && c.file.Group == 0 {
			c.file.Group, c.file.Nlink = first, count
			first++
		}
	}
	return first
}
