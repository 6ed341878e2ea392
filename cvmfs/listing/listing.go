// Package listing lists what is in a revision of a repository as people and other programs see it: in the order of the
// paths, with hard links named, and with the SHA-256 of each file if that is wanted.
package listing

import (
	"context"
	"crypto/sha256"
	"io"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/client"
)

// readers is how many files are read at the same time: most are small, and what takes time is the way to the server.
const readers = 64

// Options say what is listed.
type Options struct {
	Recursive bool // all below a folder; otherwise what is in it
	Content   bool // every file is read, for its SHA-256
}

// Item is what is listed.
type Item struct {
	*client.Node
	SameAs string        // the first path of its hard-link group; "" if it's in none
	Sum    []byte        // SHA-256 of the content; nil if it isn't read
	err    error         // of reading
	ready  chan struct{} // closed when Sum or err is there
}

// List shows what is at a path, sorted by the bytes of the paths. Of a file that can't be read the error ends the
// listing, after all items before it were shown.
func List(ctx context.Context, v *client.Revision, path string, o Options, show func(*Item) error) error {
	l := &listing{Options: o, revision: v, show: show, first: map[uint64]string{}}
	if !o.Recursive {
		return l.run(ctx, l.folder(path))
	}
	return l.run(ctx, func(ctx context.Context, fn func(*client.Node) error) error {
		return v.WalkSorted(ctx, path, fn)
	})
}

// listing shows nodes in their order while their contents are read at the same time.
type listing struct {
	Options
	revision *client.Revision
	show     func(*Item) error
	first    map[uint64]string // by hard-link group: the first path seen
}

// folder returns what a listing that isn't recursive shows: what is in a folder, or the one entry that isn't a folder.
func (l *listing) folder(path string) func(context.Context, func(*client.Node) error) error {
	return func(ctx context.Context, fn func(*client.Node) error) error {
		e, err := l.revision.Lookup(ctx, path)
		if err != nil {
			return err
		}
		if !e.IsDir() {
			return fn(&client.Node{Path: path, Entry: e})
		}
		nodes, err := l.revision.List(ctx, path)
		for _, n := range nodes {
			if err == nil {
				err = fn(n)
			}
		}
		return err
	}
}

// run shows what nodes brings. No more than readers files are open and their number again of lines is held back.
func (l *listing) run(ctx context.Context, nodes func(context.Context, func(*client.Node) error) error) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan *Item, readers)
	reading := make(chan struct{}, readers)
	g.Go(func() error {
		defer close(queue)
		return nodes(ctx, func(n *client.Node) error {
			i := &Item{Node: n, SameAs: l.link(n), ready: make(chan struct{})}
			if l.Content && n.IsRegular() {
				if err := send(ctx, reading, struct{}{}); err != nil {
					return err
				}
				g.Go(func() error {
					i.Sum, i.err = digest(ctx, l.revision, n)
					close(i.ready)
					<-reading
					return nil
				})
			} else {
				close(i.ready)
			}
			return send(ctx, queue, i)
		})
	})
	g.Go(func() error {
		for i := range queue {
			if <-i.ready; i.err != nil {
				return i.err
			}
			if err := l.show(i); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

func send[T any](ctx context.Context, c chan<- T, v T) error {
	select {
	case c <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// link returns the first path of a node's hard-link group. Nodes come in order, so it's the first in order.
func (l *listing) link(n *client.Node) string {
	if n.Link == 0 || n.Nlink < 2 {
		return ""
	}
	if _, ok := l.first[n.Link]; !ok {
		l.first[n.Link] = n.Path
	}
	return l.first[n.Link]
}

// digest reads a file.
func digest(ctx context.Context, v *client.Revision, n *client.Node) ([]byte, error) {
	content, err := v.Open(ctx, n.Path, n.Entry)
	if err != nil {
		return nil, err
	}
	defer content.Close() // was only read from
	h := sha256.New()
	if _, err := io.Copy(h, content); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
