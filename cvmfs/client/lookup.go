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
	err := v.find(ctx, path, false, func(c *catalog.Catalog, _ mount) (err error) {
		e, err = c.Lookup(path)
		return err
	})
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
	err := v.find(ctx, path, true, func(c *catalog.Catalog, m mount) error {
		s.Mount, s.Catalog = m.path, m.digest
		return s.read(c, m)
	})
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
	m, err := v.mountOf(ctx, path)
	if err != nil {
		return hash.Digest{}, v.lookUpError(path, err)
	}
	return m.digest, nil
}

// List returns what is in a folder, sorted by the bytes of the names, without hidden entries. Mounts are answered from
// the catalog that lists them.
func (v *Revision) List(ctx context.Context, path string) ([]*Node, error) {
	var nodes []*Node
	err := v.find(ctx, path, true, func(c *catalog.Catalog, m mount) error {
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

// find descends to the catalog that a path is in and hands it to fn, more than once if a copy on disk turns out
// damaged. For a path that is a mount, inside chooses the nested catalog.
func (v *Revision) find(ctx context.Context, path string, inside bool,
	fn func(c *catalog.Catalog, m mount) error,
) error {
	if err := checkPath(path); err != nil {
		return err
	}
	for next := &v.root; next != nil; {
		m := *next
		err := v.repo.use(ctx, m, func(c *catalog.Catalog) error {
			n, ok, err := c.NestedFor(path)
			if err != nil {
				return err
			}
			if ok && (inside || n.Path != path) {
				next = mountFor(n) // strictly below m, so this ends
				return nil
			}
			next = nil
			return fn(c, m)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func mountFor(n catalog.Nested) *mount { return &mount{path: n.Path, digest: n.Digest, size: n.Size} }

// mountOf returns the catalog that a path goes on in, without asking for it.
func (v *Revision) mountOf(ctx context.Context, path string) (m mount, err error) {
	err = v.find(ctx, path, false, func(c *catalog.Catalog, at mount) error {
		m = at
		n, ok, err := c.NestedFor(path)
		if ok {
			m = *mountFor(n)
		}
		return err
	})
	return m, err
}
