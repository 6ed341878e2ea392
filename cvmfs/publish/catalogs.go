package publish

import (
	"context"
	"errors"
	"fmt"
	"os"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// load brings the rows of a mount's catalog into the tree.
func (t *Transaction) load(ctx context.Context, n *node, path string) error {
	if err := t.loadRows(ctx, n, path); err != nil {
		return fmt.Errorf("catalog %v of %q: %w", n.mount.digest, path, err)
	}
	return nil
}

func (t *Transaction) loadRows(ctx context.Context, n *node, path string) error {
	m := n.mount
	waiting := t.pending[m.digest]
	var plain string
	if waiting != nil {
		plain = waiting.plain
	} else {
		plain = t.temp("catalog")
		if err := t.repo.fetchCatalog(ctx, m.digest, plain); err != nil {
			return err
		}
		defer os.Remove(plain) // best effort: the folder is emptied at the end
	}
	c, err := catalog.Open(plain)
	if err != nil {
		return err
	}
	defer c.Close()
	if c.RootPrefix() != path {
		return fmt.Errorf("%w: its root is %q", catalog.ErrInvalid, c.RootPrefix())
	}
	if waiting == nil {
		m.revision = c.Revision()
		if m.base, err = c.Statistics(); err != nil {
			return err
		}
	}
	folders, err := readTree(ctx, c, n, path)
	if err != nil {
		return err
	}
	if err := t.readMounts(c, folders); err != nil {
		return err
	}
	m.loaded = true
	return nil
}

// readTree puts a catalog's rows below its root and gives its folders by the hashes of their paths.
func readTree(ctx context.Context, c *catalog.Catalog, root *node, path string) (map[hash.PathHash]*node, error) {
	type row struct {
		parent hash.PathHash
		*node
	}
	rootHash := hash.OfPath(path)
	var rows []row
	folders := map[hash.PathHash]*node{}
	links := map[uint32]*file{}
	err := c.Rows(ctx, func(path, parent hash.PathHash, e *catalog.Entry) error {
		if e.Flags&catalog.BindMount != 0 {
			return fmt.Errorf("%.60q: this publisher writes no repositories with bind mountpoints", e.Name)
		}
		n := &node{name: e.Name, file: &file{Entry: *e}}
		n.file.Flags &^= catalog.Mountpoint | catalog.NestedRoot
		if e.Group != 0 {
			if links[e.Group] == nil {
				n.file.linked = true
				links[e.Group] = n.file
			}
			n.file = links[e.Group]
		}
		if path == rootHash {
			root.file = n.file
			root.children = map[string]*node{}
			folders[path] = root
			return nil
		}
		if e.IsDir() {
			n.children = map[string]*node{}
			folders[path] = n
		}
		rows = append(rows, row{parent, n})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if folders[rootHash] == nil {
		return nil, fmt.Errorf("%w: no row for its root", catalog.ErrInvalid)
	}
	for _, r := range rows {
		parent := folders[r.parent]
		if parent == nil || parent.children[r.name] != nil {
			return nil, fmt.Errorf("%w: %.60q is in no folder, or there twice", catalog.ErrInvalid, r.name)
		}
		parent.children[r.name] = r.node
	}
	return folders, nil
}

// readMounts makes mounts of the folders at which other catalogs go on.
func (t *Transaction) readMounts(c *catalog.Catalog, folders map[hash.PathHash]*node) error {
	nested, err := c.Nested()
	if err != nil {
		return err
	}
	for _, below := range nested {
		n := folders[hash.OfPath(below.Path)]
		if n == nil || len(n.children) > 0 {
			return fmt.Errorf("%w: %q has a nested catalog and is no empty folder", catalog.ErrInvalid, below.Path)
		}
		n.children = nil
		n.mount = &mount{digest: below.Digest, size: below.Size, published: below.Digest}
		if waiting := t.pending[below.Digest]; waiting != nil {
			n.mount.published, n.mount.total = hash.Digest{}, waiting.total
		}
	}
	return nil
}

// writeCatalogs writes the catalog of a mount, those below it first, into tmp. They are stored with the commit.
func (t *Transaction) writeCatalogs(ctx context.Context, n *node, path string) error {
	m := n.mount
	subtree := m.base.Subtree.Sub(m.removed)
	var nested []catalog.Nested
	err := n.within(path, func(path string, c *node) error {
		if c.mount == nil {
			return nil
		}
		if c.mount.dirty {
			if err := t.writeCatalogs(ctx, c, path); err != nil {
				return err
			}
		}
		if c.mount.digest != c.mount.published {
			subtree = subtree.Add(c.mount.total).Sub(c.mount.base.Total())
		}
		nested = append(nested, catalog.Nested{Path: path, Digest: c.mount.digest, Size: c.mount.size})
		return nil
	})
	if err != nil {
		return err
	}
	if err := t.writeCatalog(ctx, n, path, nested, subtree); err != nil {
		return fmt.Errorf("catalog of %q: %w", path, err)
	}
	return nil
}

func (t *Transaction) writeCatalog(ctx context.Context, n *node, path string, nested []catalog.Nested,
	subtree catalog.Counters,
) error {
	m := n.mount
	t.mu.Lock()
	p := &pending{plain: t.temp("catalog"), stored: t.temp("stored")}
	t.mu.Unlock()
	properties := catalog.Properties{
		RootPrefix: path, Revision: m.revision + 1, LastModified: t.draft.Now, Previous: m.published,
		TTL: t.repo.settings.ttl(),
	}
	if path != "" {
		properties.TTL = 0
	}
	w, err := catalog.Create(p.plain, properties)
	if err != nil {
		return err
	}
	err = (&rowWriter{ctx, w, 1}).write(n, path)
	for i := 0; i < len(nested) && err == nil; i++ {
		err = w.AddNested(nested[i])
	}
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	stats, err := w.Finish(subtree)
	if err != nil {
		return err
	}
	p.total = stats.Total()
	if p.digest, p.size, err = compressFile(p.plain, p.stored, t.repo.algorithm); err != nil {
		return err
	}
	info, err := os.Stat(p.plain)
	if err != nil {
		return err
	}
	m.digest, m.size, m.total, m.dirty = p.digest, info.Size(), p.total, false
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pending[p.digest] = p
	t.order = append(t.order, p)
	return nil
}

// rowWriter writes a tree's rows folder by folder.
type rowWriter struct {
	ctx   context.Context
	w     *catalog.Writer
	group uint32 // number of the next group of hard links
}

// write writes the rows of the catalog whose root is n.
func (r *rowWriter) write(n *node, path string) error {
	parent := hash.PathHash{}
	flags := catalog.Flags(0)
	if path != "" {
		parent = hash.OfPath(path[:len(path)-len(n.name)-1])
		flags = catalog.NestedRoot
	}
	self := hash.OfPath(path)
	if err := r.row(n, self, parent, flags); err != nil {
		return err
	}
	return r.folder(n, path, self)
}

// folder writes what is in a folder, and then what is in the folders below.
func (r *rowWriter) folder(n *node, path string, self hash.PathHash) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	children := n.sorted()
	r.group = number(children, r.group)
	hashes := make([]hash.PathHash, len(children))
	for i, c := range children {
		flags := catalog.Flags(0)
		if c.mount != nil {
			flags = catalog.Mountpoint
		}
		hashes[i] = hash.OfPath(path + "/" + c.name)
		if err := r.row(c, hashes[i], self, flags); err != nil {
			return err
		}
	}
	for i, c := range children {
		if !c.isDir() || c.mount != nil {
			continue
		}
		if err := r.folder(c, path+"/"+c.name, hashes[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *rowWriter) row(n *node, path, parent hash.PathHash, flags catalog.Flags) error {
	if n.isDir() && n.children != nil { // otherwise the catalog isn't loaded, and the count is what it was
		n.file.Nlink = 2 + n.subfolders()
	}
	e := n.file.Entry
	e.Name = n.name
	e.Flags |= flags
	return r.w.AddHashed(path, parent, &e)
}
