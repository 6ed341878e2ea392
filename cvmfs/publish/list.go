package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// List gives the names in a folder, sorted, without the publisher's markers. The error is fs.ErrNotExist if there is nothing at the
// path.
func (t *Transaction) List(ctx context.Context, path string) ([]string, error) {
	names, err := t.list(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", path, err)
	}
	return names, nil
}

func (t *Transaction) list(ctx context.Context, path string) ([]string, error) {
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
	var names []string
	for _, c := range n.sorted() {
		if !isMarker(c.name) {
			names = append(names, c.name)
		}
	}
	return names, nil
}
