package client

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// table is a whole catalog in memory, in a form the garbage collector needn't look into: about 120 bytes a row and its
// name.
type table struct {
	mount  mount
	rows   []row   // sorted by parent and name
	text   []byte  // names and link targets
	extras []extra // what few rows have

	// What a walk makes of it.
	number   uint64         // of the table, from 1
	nested   []mount        // in the order they are met
	position map[string]int // in nested, by path
	loads    []*load        // of nested, as far as begun
}

// row is a catalog.Entry without pointers.
type row struct {
	parent, path hash.PathHash
	size, mtime  int64 // size is the device number of a device
	text         uint32
	extra        uint32 // index in extras plus 1; 0: none
	mode         uint32
	uid, gid     uint32
	nlink, group uint32
	mtimeN       int32
	flags        catalog.Flags
	target       uint16 // length; it follows the name
	name         uint8  // length
	compression  hash.Compression
	digest       hash.Digest
}

type extra struct {
	xattrs []catalog.Xattr
	chunks []catalog.Chunk
}

// loadTable reads a catalog into memory.
func (r *Repository) loadTable(ctx context.Context, m mount) (*table, error) {
	var t *table
	err := r.use(ctx, m, func(c *catalog.Catalog) error {
		t = &table{mount: m}
		nested, err := c.Nested()
		if err != nil {
			return err
		}
		for _, n := range nested {
			t.nested = append(t.nested, *mountFor(n))
		}
		return c.Rows(ctx, t.add)
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(t.rows, func(a, b row) int {
		return cmp.Or(comparePaths(a.parent, b.parent), strings.Compare(t.name(&a), t.name(&b)))
	})
	return t, nil
}

func comparePaths(a, b hash.PathHash) int {
	if a.P1 != b.P1 {
		return cmp.Compare(a.P1, b.P1)
	}
	return cmp.Compare(a.P2, b.P2)
}

// compareWalk orders paths as a walk meets them: component by component, which is as if "/" came before all other
// bytes.
func compareWalk(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			switch byte('/') {
			case a[i]:
				return -1
			case b[i]:
				return 1
			}
			return cmp.Compare(a[i], b[i])
		}
	}
	return cmp.Compare(len(a), len(b))
}

// add takes a row in.
func (t *table) add(path, parent hash.PathHash, e *catalog.Entry) error {
	w := row{
		parent: parent, path: path, size: e.Size, mtime: e.Mtime, text: uint32(len(t.text)),
		mode: e.Mode, uid: e.UID, gid: e.GID, nlink: e.Nlink, group: e.Group, mtimeN: e.MtimeN, flags: e.Flags,
		target: uint16(len(e.Target)), name: uint8(len(e.Name)), compression: e.Compression, digest: e.Digest,
	}
	if e.Rdev != 0 {
		w.size = int64(e.Rdev)
	}
	if len(e.Xattrs) > 0 || len(e.Chunks) > 0 {
		t.extras = append(t.extras, extra{xattrs: e.Xattrs, chunks: e.Chunks})
		w.extra = uint32(len(t.extras))
	}
	t.text = append(append(t.text, e.Name...), e.Target...)
	t.rows = append(t.rows, w)
	return nil
}

func (t *table) name(w *row) string  { return string(t.bytes(w)) }
func (t *table) bytes(w *row) []byte { return t.text[w.text : w.text+uint32(w.name)] }

// node makes row i what a walk hands out.
func (t *table) node(i int, path string) *Node {
	w := &t.rows[i]
	end := w.text + uint32(w.name)
	e := &catalog.Entry{
		Name: t.name(w), Mode: w.mode, UID: w.uid, GID: w.gid, Size: w.size, Mtime: w.mtime, MtimeN: w.mtimeN,
		Nlink: w.nlink, Group: w.group, Target: string(t.text[end : end+uint32(w.target)]), Flags: w.flags,
		Digest: w.digest, Compression: w.compression,
	}
	switch e.Type() {
	case 0o020000, 0o060000:
		e.Size, e.Rdev = 0, uint64(w.size)
	}
	if w.extra > 0 {
		e.Xattrs, e.Chunks = t.extras[w.extra-1].xattrs, t.extras[w.extra-1].chunks
	}
	n := &Node{Path: path, Entry: e, Catalog: t.mount.digest}
	if e.Group != 0 {
		n.Link = t.number<<32 | uint64(e.Group)
	}
	return n
}

// find returns the row of a path, which must stand where its path says. It is -1 if there is none.
func (t *table) find(path string) int {
	cut := strings.LastIndexByte(path, '/')
	var parent hash.PathHash
	if cut >= 0 {
		parent = hash.OfPath(path[:cut])
	}
	name := []byte(path[cut+1:])
	i, ok := slices.BinarySearchFunc(t.rows, parent, func(w row, p hash.PathHash) int {
		return cmp.Or(comparePaths(w.parent, p), bytes.Compare(t.bytes(&w), name))
	})
	if !ok || t.rows[i].path != hash.OfPath(path) {
		return -1
	}
	return i
}

// children returns the rows of the folder path, which lie between the two indices.
func (t *table) children(path string) (from, to int, err error) {
	parent := hash.OfPath(path)
	from, _ = slices.BinarySearchFunc(t.rows, parent, func(w row,
		p hash.PathHash,
	) int {
		return comparePaths(w.parent, p)
	})
	for to = from; to < len(t.rows) && t.rows[to].parent == parent; to++ {
		name := t.name(&t.rows[to])
		switch {
		case len(path)+1+len(name) > maxPath:
			return 0, 0, fmt.Errorf("%w: path of more than %d bytes at %.100q", ErrInconsistent, maxPath, path)
		case t.rows[to].path != hash.OfPath(path+"/"+name):
			return 0, 0, fmt.Errorf("%w: the row of %q has the hash of another path", ErrInconsistent, path+"/"+name)
		case to > from && string(t.bytes(&t.rows[to-1])) == name:
			return 0, 0, fmt.Errorf("%w: %q twice", ErrInconsistent, path+"/"+name)
		}
	}
	return from, to, nil
}
