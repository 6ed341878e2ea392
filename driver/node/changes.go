package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/go-archive"
)

// Changes lists what a layer changes, sorted by path: against its parent or, as engines' own drivers allow, against any
// other layer or against nothing (""). The answers are those of comparing the two views name by name.
func (n *Node) Changes(ctx context.Context, id, other string) ([]archive.Change, error) {
	changes, err := n.changes(ctx, id, other)
	if err != nil {
		return nil, fmt.Errorf("changes of layer %s: %w", id, err)
	}
	slices.SortFunc(changes, func(a, b archive.Change) int { return strings.Compare(a.Path, b.Path) })
	return changes, nil
}

func (n *Node) changes(ctx context.Context, id, other string) ([]archive.Change, error) {
	before, release, err := n.View(ctx, other)
	if err != nil {
		return nil, err
	}
	defer release()
	if n.layers.CheckParent(id, other) == nil {
		return n.layers.Compare(id, before)
	}
	after, release, err := n.View(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	return archive.ChangesDirs(after, before)
}

// DiffSize returns the bytes of the files a layer changes against another; against its parent that is what Apply
// reported.
func (n *Node) DiffSize(ctx context.Context, id, other string) (int64, error) {
	size, err := n.diffSize(ctx, id, other)
	if err != nil {
		return 0, fmt.Errorf("size of layer %s: %w", id, err)
	}
	return size, nil
}

func (n *Node) diffSize(ctx context.Context, id, other string) (int64, error) {
	if n.layers.CheckParent(id, other) == nil {
		return n.layers.Size(id)
	}
	changes, err := n.changes(ctx, id, other)
	if err != nil {
		return 0, err
	}
	after, release, err := n.View(ctx, id)
	if err != nil {
		return 0, err
	}
	defer release()
	return archive.ChangesSize(after, changes), nil
}
