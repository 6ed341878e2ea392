package sink

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/thin"
)

// native is a repository of our own publisher.
type native struct {
	repo    *publish.Repository
	entries int // Options.MaxEntries
}

func openNative(dir string, o Options) (Sink, error) {
	repo, err := publish.Open(dir, publish.Options{Chunk: o.Chunk})
	if err != nil {
		return nil, err
	}
	return &native{repo, o.MaxEntries}, nil
}

// Native is the sink of a publisher's folder that is open already.
func Native(repo *publish.Repository) Sink { return &native{repo: repo} }

// Publisher returns the publisher's folder that a sink is; nil if it is none.
func Publisher(s Sink) *publish.Repository {
	if n, ok := s.(*native); ok {
		return n.repo
	}
	return nil
}

func (n *native) FQRN() string   { return n.repo.FQRN() }
func (n *native) String() string { return "native:" + n.repo.Dir() }

func (n *native) Begin(ctx context.Context) (Transaction, error) {
	t, err := n.repo.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &nativeTransaction{t: t, entries: n.entries}, nil
}

type nativeTransaction struct {
	t        *publish.Transaction
	entries  int // Options.MaxEntries
	revision uint64
}

func (n *nativeTransaction) Has(ctx context.Context, path string) (bool, error) {
	return n.t.Has(ctx, path)
}

func (n *nativeTransaction) Layer(ctx context.Context, path string, archive io.Reader,
	read func(Stats) (*File, error),
) (Stats, error) {
	layer, err := n.t.Ingest(ctx, path, archive, publish.LayerOptions{MaxEntries: n.entries})
	if err != nil {
		return Stats{}, err
	}
	record, err := encodeRecord(recordOf(&layer.Leftover))
	if err == nil && record != nil {
		err = n.t.WriteFile(ctx, path+thin.RecordSuffix, record, 0o644)
	}
	s := layer.Stats
	stats := Stats{
		Entries: int64(s.Entries), Files: int64(s.Files), Bytes: s.Bytes,
		ReusedFiles: int64(s.ReusedFiles), ReusedBytes: s.ReusedBytes, Stored: s.NewBytes,
		LeftOut: int64(s.LeftOut), Notes: layer.Notes,
	}
	if err == nil {
		err = writeFile(ctx, n, stats, read)
	}
	return stats, err
}

// recordOf is what the publisher's catalogs had no place for, as the driver reads it.
func recordOf(l *publish.Leftover) *thin.Record {
	r := &thin.Record{Links: l.Links, Markers: l.Markers}
	if a := l.Root; a != nil {
		r.Root = &thin.Attributes{Mode: a.Mode, UID: a.UID, GID: a.GID, Mtime: a.Mtime, MtimeN: a.MtimeN}
	}
	for path, attrs := range l.Xattrs {
		if r.Xattrs == nil {
			r.Xattrs = map[string][]thin.Xattr{}
		}
		for _, x := range attrs {
			r.Xattrs[path] = append(r.Xattrs[path], thin.Xattr{Name: x.Name, Value: x.Value})
		}
	}
	return r
}

func (n *nativeTransaction) ReadFile(ctx context.Context, path string) ([]byte, error) {
	return n.t.ReadFile(ctx, path)
}

// WriteFile makes no markers of catalogs: the publisher knows where it needs which.
func (n *nativeTransaction) WriteFile(ctx context.Context, path string, content []byte) error {
	if strings.HasSuffix(path, "/"+catalog.Marker) {
		return nil
	}
	return n.t.WriteFile(ctx, path, content, 0o644)
}

func (n *nativeTransaction) List(ctx context.Context, path string) ([]Entry, error) {
	listed, err := n.t.List(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []Entry
	for _, l := range listed {
		all = append(all, Entry(l))
	}
	return all, err
}

func (n *nativeTransaction) Recut(ctx context.Context, layers []string, cut publish.Cut,
	at func(made map[string]catalog.Entry) (CutFolder, error),
) error {
	return n.t.Recut(ctx, layers, cut, at)
}

func (n *nativeTransaction) Remove(ctx context.Context, path string) error {
	if err := n.t.Remove(ctx, path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (n *nativeTransaction) Commit(ctx context.Context, description string) error {
	s, err := n.t.Commit(ctx, publish.CommitOptions{Description: description})
	if err == nil {
		n.revision = s.Revision
	}
	return err
}

func (n *nativeTransaction) Revision() uint64 { return n.revision }

func (n *nativeTransaction) Abort() error { return n.t.Abort() }
