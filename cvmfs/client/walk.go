package client

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// Node is an entry and where it stands.
type Node struct {
	Path string
	*catalog.Entry
	// nodes of one walk with the same value other than 0 are one file; that they are equal is not checked
	Link    uint64
	Catalog hash.Digest // the catalog the row came from: for a mount, the nested one
}

const (
	downloadsAhead = 16 // nested catalogs a walk gets before it needs them
	tablesAhead    = 3  // of those, how many it holds in memory
)

// Walk visits everything below path, its own node first, then depth first, the entries of a folder sorted by the bytes
// of their names. Nested catalogs are joined and got ahead of time; hidden entries are passed over; what is attached by
// bind mounts of other revisions is not entered. The walk ends with the first error, one of fn's included.
//
// Errors: fs.ErrNotExist if there is no such path; ErrIncomplete, ErrInconsistent and catalog.ErrInvalid for faults of
// the repository.
func (v *Revision) Walk(ctx context.Context, path string, fn func(*Node) error) error {
	return v.walk(ctx, &walker{top: path, fn: fn})
}

// WalkSorted visits the same in the order of the paths' bytes, so that "/a-b" comes between "/a" and "/a/b".
func (v *Revision) WalkSorted(ctx context.Context, path string, fn func(*Node) error) error {
	return v.walk(ctx, &walker{top: path, sorted: true, fn: fn})
}

// WalkOn visits what Walk does, hidden entries too, and goes on where it can't: failed is told of a folder that can't
// be entered, whose error says why, and the walk passes over what is below it. It ends with the first error of fn's or
// failed's, with the context, and if path itself can't be read.
func (v *Revision) WalkOn(ctx context.Context, path string, fn func(*Node) error,
	failed func(path string, err error) error,
) error {
	return v.walk(ctx, &walker{top: path, fn: fn, failed: failed})
}

func (v *Revision) walk(ctx context.Context, w *walker) error {
	path := w.top
	m, err := v.mountOf(ctx, path)
	var t *table
	if err == nil {
		t, err = v.repo.loadTable(ctx, m)
	}
	if err != nil {
		return v.walkError(path, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	w.ctx, w.revision = ctx, v
	w.downloads, w.tables = make(chan struct{}, downloadsAhead), make(chan struct{}, tablesAhead)
	defer w.running.Wait()
	defer cancel()
	w.enter(t)
	i := t.find(path)
	if i < 0 {
		return v.walkError(path, fs.ErrNotExist)
	}
	n, inside, err := w.visit(t, i, path)
	if err != nil || !n.IsDir() || inside == nil {
		return err
	}
	return w.folder(inside, path)
}

// lost deals with a folder that can't be entered.
func (w *walker) lost(path string, err error) error {
	if w.failed == nil || w.ctx.Err() != nil {
		return w.revision.walkError(path, err)
	}
	return w.failed(path, err)
}

func (v *Revision) walkError(path string, err error) error {
	return fmt.Errorf("walk %q in %s, revision %d: %w", path, v.FQRN, v.Number, err)
}

// walker is one walk.
type walker struct {
	ctx      context.Context
	revision *Revision
	top      string
	sorted   bool
	fn       func(*Node) error
	failed   func(path string, err error) error // nil: a failure ends the walk, and hidden entries are passed over

	entered   uint64        // tables so far
	downloads chan struct{} // a token for each download ahead
	tables    chan struct{} // a token for each table in memory that is ahead
	running   sync.WaitGroup
}

// enter begins with a table: the catalogs nested in it are got ahead.
func (w *walker) enter(t *table) {
	w.entered++
	t.number = w.entered
	below := t.nested[:0]
	for _, m := range t.nested {
		if (mount{path: w.top}).holds(m.path) {
			below = append(below, m)
		}
	}
	t.nested = below
	order := compareWalk
	if w.sorted {
		order = strings.Compare
	}
	slices.SortFunc(t.nested, func(a, b mount) int { return order(a.path, b.path) })
	t.position = make(map[string]int, len(t.nested))
	for i, m := range t.nested {
		t.position[m.path] = i
	}
	w.ahead(t, 0)
}

// subtree is a folder that was visited and is still to be entered.
type subtree struct {
	name string
	t    *table
	path string
}

// folder visits what is in a folder. In sorted order a subtree waits for siblings whose names sort before its own name
// with a slash; these lie on a stack, as each begins with the name below it.
func (w *walker) folder(t *table, path string) error {
	from, to, err := t.children(path)
	if err != nil {
		return w.lost(path, fmt.Errorf("catalog %v: %w", t.mount.digest, err))
	}
	var waiting []subtree
	for i := from; i < to; i++ {
		if t.rows[i].flags&catalog.Hidden != 0 && w.failed == nil {
			continue
		}
		name := t.name(&t.rows[i])
		if waiting, err = w.settle(waiting, name); err != nil {
			return err
		}
		n, inside, err := w.visit(t, i, path+"/"+name)
		if err != nil {
			return err
		}
		if n.IsDir() && inside != nil {
			waiting = append(waiting, subtree{name: name, t: inside, path: n.Path})
		}
	}
	_, err = w.settle(waiting, "")
	return err
}

// settle enters the waiting subtrees that come before the sibling next; all if there is none.
func (w *walker) settle(waiting []subtree, next string) ([]subtree, error) {
	for len(waiting) > 0 {
		s := waiting[len(waiting)-1]
		if w.sorted && next != "" && next < s.name+"/" {
			break
		}
		waiting = waiting[:len(waiting)-1]
		if err := w.folder(s.t, s.path); err != nil {
			return nil, err
		}
	}
	return waiting, nil
}

// visit hands out a node and gives the table its content is in; nil if that is lost.
func (w *walker) visit(t *table, i int, path string) (*Node, *table, error) {
	if w.ctx.Err() != nil {
		return nil, nil, w.revision.walkError(path, context.Cause(w.ctx))
	}
	n := t.node(i, path)
	if n.Flags&catalog.Mountpoint != 0 {
		inside, err := w.nested(t, path)
		if err != nil {
			return n, nil, w.lost(path, err)
		}
		t = inside
		n = t.node(t.find(path), path)
	}
	return n, t, w.fn(n)
}

// nested returns the table that goes on at path. Its row for path is a folder.
func (w *walker) nested(t *table, path string) (*table, error) {
	i, ok := t.position[path]
	if !ok {
		return nil, fmt.Errorf("catalog %v: %w: it names no nested catalog for the mount", t.mount.digest,
			ErrInconsistent)
	}
	w.ahead(t, i)
	inside, err := t.loads[i].take(w)
	t.loads[i] = nil
	if err != nil {
		return nil, err
	}
	if root := inside.find(path); root < 0 || !inside.node(root, path).IsDir() {
		return nil, fmt.Errorf("catalog %v: %w: its root is not a folder %q", inside.mount.digest, ErrInconsistent,
			path)
	}
	w.enter(inside)
	return inside, nil
}

// load is a catalog on its way into memory.
type load struct {
	wanted chan struct{} // closed when the walk has come to it
	token  bool          // of walker.tables
	done   chan struct{}
	table  *table
	err    error
}

// ahead begins to load nested catalogs, from number i on.
func (w *walker) ahead(t *table, i int) {
	for n := len(t.loads); n < min(i+downloadsAhead, len(t.nested)); n++ {
		l := &load{wanted: make(chan struct{}), done: make(chan struct{})}
		t.loads = append(t.loads, l)
		w.running.Go(func() {
			defer close(l.done)
			l.table, l.err = l.run(w, t.nested[n])
		})
	}
}

// run downloads and then, as soon as there is room for one more table or the walk waits for this one, reads.
func (l *load) run(w *walker, m mount) (*table, error) {
	w.downloads <- struct{}{} // given back soon after the context ends
	err := w.revision.repo.bring(w.ctx, m)
	<-w.downloads
	if err != nil {
		return nil, err
	}
	select {
	case w.tables <- struct{}{}:
		l.token = true
	case <-l.wanted:
	case <-w.ctx.Done():
		return nil, context.Cause(w.ctx)
	}
	return w.revision.repo.loadTable(w.ctx, m)
}

// take waits for the table.
func (l *load) take(w *walker) (*table, error) {
	close(l.wanted)
	<-l.done
	if l.token {
		<-w.tables
	}
	return l.table, l.err
}
