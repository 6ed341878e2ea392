package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/internal/program"
)

// readers is how many files are read at the same time: most are small, and what takes time is the way to the server.
const readers = 64

// repoLsCommand lists what is in a repository.
func repoLsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ls",
		Usage:     "list what is in a repository's newest revision",
		ArgsUsage: "FQRN[/PATH]",
		Description: `Lists a folder, or all below it with -R, sorted by the bytes of the paths. Everything is verified: signatures, catalogs,
and with --content each file. Nothing is kept, so that each call shows what the servers have at the time.

With --json, each line is an object with sorted keys: device ("MAJOR:MINOR"), gid, mode (octal), mtime, nlink, path, same_inode_as
(the first path of a hard-link group), sha256 (with --content), size (files), target (symbolic links, variables replaced), type,
uid, xattrs_hex. Bytes that aren't UTF-8 are written as \udc80 to \udcff, which is what Python's os.fsencode takes.`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"R"}, Usage: "list everything below"},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object a line"},
			&cli.BoolFlag{Name: "content", Usage: "read every file and give its SHA-256"},
		}, repoFlags()...),
		Action: repoLs,
	}
}

func repoLs(c *cli.Context) (err error) {
	if c.NArg() != 1 {
		return program.Usagef(c, "want one argument, FQRN[/PATH]")
	}
	fqrn, path := folderArg(c.Args().First())
	r, v, closeAll, err := newest(c, fqrn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	out := bufio.NewWriterSize(c.App.Writer, 64<<10)
	l := &listing{
		revision: v,
		content:  c.Bool("content"),
		print:    func(i *item) error { return printPlain(out, i, r.Expand) },
		first:    map[uint64]string{},
	}
	if c.Bool("json") {
		l.print = func(i *item) error { return printJSON(out, i, r.Expand) }
	}
	nodes := l.folder(path)
	if c.Bool("recursive") {
		nodes = func(ctx context.Context, fn func(*client.Node) error) error { return v.WalkSorted(ctx, path, fn) }
	}
	err = l.run(c.Context, nodes)
	return errors.Join(err, out.Flush())
}

// listing prints nodes in their order while their contents are read at the same time.
type listing struct {
	revision *client.Revision
	content  bool
	print    func(*item) error
	first    map[uint64]string // by hard-link group: the first path seen
}

// item is a line to be.
type item struct {
	*client.Node
	sameAs string        // the first path of its hard-link group; "" if it's in none
	sum    []byte        // SHA-256 of the content; nil if it isn't read
	err    error         // of reading
	ready  chan struct{} // closed when sum or err is there
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

// run prints what nodes brings. No more than readers files are open and their number again of lines is held back.
func (l *listing) run(ctx context.Context, nodes func(context.Context, func(*client.Node) error) error) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan *item, readers)
	reading := make(chan struct{}, readers)
	g.Go(func() error {
		defer close(queue)
		return nodes(ctx, func(n *client.Node) error {
			i := &item{Node: n, sameAs: l.link(n), ready: make(chan struct{})}
			if l.content && n.IsRegular() {
				if err := send(ctx, reading, struct{}{}); err != nil {
					return err
				}
				g.Go(func() error {
					i.sum, i.err = digest(ctx, l.revision, n.Entry)
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
			if err := l.print(i); err != nil {
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
func digest(ctx context.Context, v *client.Revision, e *catalog.Entry) ([]byte, error) {
	content, err := v.Open(ctx, e)
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
