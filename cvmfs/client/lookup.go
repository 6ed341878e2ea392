package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// Lookup finds the entry of a path. A mount is answered from the catalog above it. The error is fs.ErrNotExist only if
// the catalog that would have the path was read and doesn't have it.
func (v *Revision) Lookup(ctx context.Context, path string) (*catalog.Entry, error) {
	var e *catalog.Entry
	m, err := v.mountOf(ctx, path, false)
	if err == nil {
		err = v.repo.use(ctx, m, func(c *catalog.Catalog) (err error) {
			e, err = c.Lookup(path)
			return err
		})
	}
	if err != nil {
		return nil, v.lookUpError(path, err)
	}
	return e, nil
}

// lookUpError says what a look-up failed of. That a path isn't there needs no more words, such as the catalog's file.
func (v *Revision) lookUpError(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = fs.ErrNotExist
	}
	return fmt.Errorf("look up %q in %s, revision %d: %w", path, v.FQRN, v.Number, err)
}

// Stat is an entry and what belongs to it.
type Stat struct {
	Node
	Mount      string           // where the catalog begins that has the row; the path itself, if that is a mount
	Same       []string         // the paths in the same folder that are the same file, by hard links
	Statistics catalog.Counters // of a mount: all from there on
}

// Stat returns what is known of a path. A mount is answered from the catalog that goes on there.
func (v *Revision) Stat(ctx context.Context, path string) (*Stat, error) {
	s := &Stat{Node: Node{Path: path}}
	m, err := v.mountOf(ctx, path, true)
	if err == nil {
		s.Mount, s.Catalog = m.path, m.digest
		err = v.repo.use(ctx, m, func(c *catalog.Catalog) error { return s.read(c, m) })
	}
	if err != nil {
		return nil, v.lookUpError(path, err)
	}
	return s, nil
}

func (s *Stat) read(c *catalog.Catalog, m mount) (err error) {
	if s.Entry, err = c.Lookup(s.Path); err != nil {
		return err
	}
	s.Link = uint64(s.Group)
	if s.Path == m.path {
		all, err := c.Statistics()
		s.Statistics = all.Total()
		return err
	}
	if s.Group == 0 {
		return nil
	}
	s.Same = nil
	nodes, err := listing(c, m, s.Path[:strings.LastIndexByte(s.Path, '/')])
	for _, n := range nodes {
		if n.Group == s.Group && n.Path != s.Path {
			s.Same = append(s.Same, n.Path)
		}
	}
	return err
}

// Holder returns the catalog that lists what is in a folder. As catalogs name nested ones and objects by content, an
// equal holder means that nothing in the folder has changed.
func (v *Revision) Holder(ctx context.Context, path string) (hash.Digest, error) {
	m, err := v.mountOf(ctx, path, true)
	if err != nil {
		return hash.Digest{}, v.lookUpError(path, err)
	}
	return m.digest, nil
}

// List returns what is in a folder, sorted by the bytes of the names, without hidden entries. Mounts are answered from
// the catalog that lists them.
func (v *Revision) List(ctx context.Context, path string) ([]*Node, error) {
	var nodes []*Node
	m, err := v.mountOf(ctx, path, true)
	if err == nil {
		err = v.repo.use(ctx, m, func(c *catalog.Catalog) error {
			e, err := c.Lookup(path)
			if err != nil {
				return err
			}
			if !e.IsDir() {
				return fmt.Errorf("%q is not a folder", path)
			}
			nodes, err = listing(c, m, path)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("list %q in %s, revision %d: %w", path, v.FQRN, v.Number, err)
	}
	return nodes, nil
}

func listing(c *catalog.Catalog, m mount, path string) ([]*Node, error) {
	entries, err := c.List(path)
	if err != nil {
		return nil, err
	}
	var nodes []*Node
	for _, e := range entries {
		if e.Flags&catalog.Hidden == 0 {
			nodes = append(nodes, &Node{Path: path + "/" + e.Name, Entry: e, Link: uint64(e.Group), Catalog: m.digest})
		}
	}
	return nodes, nil
}

// mountOf descends to the catalog a path is in. For a path that is a mount, inside chooses the nested catalog.
func (v *Revision) mountOf(ctx context.Context, path string, inside bool) (mount, error) {
	if err := checkPath(path); err != nil {
		return mount{}, err
	}
	for m := v.root; ; {
		next := m
		err := v.repo.use(ctx, m, func(c *catalog.Catalog) error {
			nested, err := c.Nested()
			for _, n := range nested {
				// All are strictly below m, so this ends.
				child := mount{path: n.Path, digest: n.Digest, size: n.Size}
				if child.holds(path) && (inside || path != n.Path) {
					next = child
				}
			}
			return err
		})
		if err != nil || next == m {
			return m, err
		}
		m = next
	}
}
