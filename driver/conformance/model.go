package conformance

import (
	"archive/tar"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"
)

// model is a view in memory, with the two things overlayfs does that a plain file system doesn't: a name that is
// written to in a layer above parts from the other names of its file, and only what a layer holds itself goes out with
// it.
type model struct {
	root  *node
	layer int // the one being written to
}

// node is a file or a folder. Names that share a node are hard links.
type node struct {
	entry           // without Path and Same
	body     string // of a file
	attrs    map[string]string
	children map[string]*node // of a folder
	layer    int              // in which this file was made or copied to
}

func newModel() *model { return &model{root: newDir(0)} }

func newDir(layer int) *node {
	return &node{entry: entry{Type: "d", Mode: 0o755}, children: map[string]*node{}, layer: layer}
}

// clone returns a model of the same view to which the next layer is written.
func (m *model) clone() *model {
	known := map[*node]*node{}
	var copied func(n *node) *node
	copied = func(n *node) *node {
		if known[n] == nil {
			c := *n
			c.attrs, c.children = maps.Clone(n.attrs), maps.Clone(n.children)
			for name, child := range c.children {
				c.children[name] = copied(child)
			}
			known[n] = &c
		}
		return known[n]
	}
	return &model{root: copied(m.root), layer: m.layer + 1}
}

// committed returns the view of an image made of this one: of what this layer holds the attributes that are not
// exported are gone.
func (m *model) committed() *model {
	c := m.clone()
	c.each(func(_ string, n *node) {
		if n.layer == m.layer {
			maps.DeleteFunc(n.attrs, func(name, _ string) bool { return name != "security.capability" })
		}
	})
	return c
}

// at returns the node of a path, nil where there is none.
func (m *model) at(name string) *node {
	n := m.root
	for part := range strings.SplitSeq(name, "/") {
		if part != "" && n != nil {
			n = n.children[part]
		}
	}
	return n
}

// put enters a node at a path whose folder is there.
func (m *model) put(name string, n *node) {
	m.at(parentOf(name)).children[path.Base(name)] = n
}

// create is put for something new: in a folder with the set-gid bit it has the folder's group.
func (m *model) create(name string, n *node) {
	if dir := m.at(parentOf(name)); dir.Mode&unix.S_ISGID != 0 {
		n.GID = dir.GID
	}
	m.put(name, n)
}

func (m *model) remove(name string) { delete(m.at(parentOf(name)).children, path.Base(name)) }

func parentOf(name string) string {
	dir, _ := path.Split(name)
	return strings.TrimSuffix(dir, "/")
}

// own gives the node of a path to be written to: copied up, so parted from its other names, if it is of a layer below.
func (m *model) own(name string) *node {
	n := m.at(name)
	if n.layer == m.layer || n.Type == "d" {
		return n
	}
	c := *n
	c.attrs, c.layer = maps.Clone(n.attrs), m.layer
	m.put(name, &c)
	return &c
}

// each visits all nodes below the root under all their names, in the order of a walk.
func (m *model) each(visit func(name string, n *node)) {
	var walk func(dir string, n *node)
	walk = func(dir string, n *node) {
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			child, name := n.children[name], path.Join(dir, name)
			visit(name, child)
			walk(name, child)
		}
	}
	walk("", m.root)
}

// names lists the paths whose node a test wants, sorted.
func (m *model) names(want func(n *node) bool) (names []string) {
	m.each(func(name string, n *node) {
		if want(n) {
			names = append(names, name)
		}
	})
	return names
}

// tree describes the view as tree does a real one.
func (m *model) tree() []entry {
	entries := []entry{m.root.entry}
	first := map[*node]string{}
	m.each(func(name string, n *node) {
		e := n.entry
		e.Path = name
		if e.Type == "-" {
			e.Content = summary(n.body)
		}
		var attrs []string
		for key, value := range n.attrs {
			attrs = append(attrs, quoted(key, value))
		}
		slices.Sort(attrs)
		e.Attrs = strings.Join(attrs, " ")
		if at, known := first[n]; known {
			e.Same = at
		} else {
			first[n] = name
		}
		entries = append(entries, e)
	})
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	return entries
}

// apply puts a layer on the view, as the format of image layers has it.
func (m *model) apply(items []item) {
	for _, i := range items {
		name := strings.TrimPrefix(path.Clean("/"+i.Name), "/")
		dir, base := m.folder(parentOf(name)), path.Base(name)
		switch {
		case name == "":
		case base == archive.WhiteoutOpaqueDir:
			maps.DeleteFunc(dir.children, func(_ string, n *node) bool { return n.layer != m.layer })
		case strings.HasPrefix(base, archive.WhiteoutPrefix):
			delete(dir.children, strings.TrimPrefix(base, archive.WhiteoutPrefix))
		case i.Typeflag == tar.TypeLink:
			dir.children[base] = m.at(path.Clean(i.Linkname))
		case i.Typeflag == tar.TypeDir:
			n := m.folder(name)
			n.Mode, n.UID, n.GID, n.layer = uint32(i.Mode), uint32(i.Uid), uint32(i.Gid), m.layer
		default:
			dir.children[base] = m.unpacked(i)
		}
	}
}

// folder returns the folder at a path, made where there is none.
func (m *model) folder(name string) *node {
	n := m.at(name)
	if n == nil || n.Type != "d" {
		parent := m.folder(parentOf(name))
		n = newDir(m.layer)
		parent.children[path.Base(name)] = n
	}
	return n
}

// unpacked returns the node of an archive's entry.
func (m *model) unpacked(i item) *node {
	n := &node{
		entry: entry{Mode: uint32(i.Mode), UID: uint32(i.Uid), GID: uint32(i.Gid), Mtime: i.ModTime.Unix()},
		layer: m.layer, attrs: map[string]string{},
	}
	switch i.Typeflag {
	case tar.TypeSymlink:
		n.Type, n.Content, n.Mode = "l", i.Linkname, 0
	case tar.TypeFifo:
		n.Type = "p"
	case tar.TypeChar:
		n.Type, n.Content = "c", numbers(i.Devmajor, i.Devminor)
	default:
		n.Type, n.body = "-", i.body
	}
	for key, value := range i.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			n.attrs[name] = value
		}
	}
	return n
}
