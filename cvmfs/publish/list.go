package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"cvmfs-graphdriver/cvmfs/catalog"
)

// Listed is a name in a folder.
type Listed struct {
	Name   string
	Folder bool
}

// List returns what is in a folder, sorted by name, without the publisher's markers. The error is fs.ErrNotExist if
// there is nothing at the path.
func (t *Transaction) List(ctx context.Context, path string) ([]Listed, error) {
	all, err := t.list(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", path, err)
	}
	return all, nil
}

func (t *Transaction) list(ctx context.Context, path string) ([]Listed, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.find(ctx, path)
	switch {
	case err != nil:
		return nil, err
	case n == nil:
		return nil, fs.ErrNotExist
	case !n.isDir():
		return nil, errors.New("not a folder")
	}
	if n.mount != nil && !n.mount.loaded {
		if err := t.load(ctx, n, path); err != nil {
			return nil, err
		}
	}
	var all []Listed
	for _, c := range n.sorted() {
		if !catalog.IsMarker(c.name) {
			all = append(all, Listed{c.name, c.isDir()})
		}
	}
	return all, nil
}
