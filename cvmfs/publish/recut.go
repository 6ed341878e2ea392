package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/pack"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

// Cut says what is to become of a file: a name, and where its chunks end, in bytes from its beginning; none: nothing.
type Cut func(*catalog.Entry) (name string, ends []int64)

// CutFolder is a folder that Recut makes.
type CutFolder struct {
	Path string
	// Packs are, by number, the paths of stored objects that are to lie beside the files in a pack (package pack).
	Packs map[int][]string
}

// Recut makes a folder, in a nested catalog of its own, of files that have the content of others, in other chunks. It
// looks at the regular files of layers that are at the paths given, and takes the first of each name that cut gives.
// Then it asks at for the folder, whose path is to be made of what the entries by name say: what is at that path
// already stays, as it is the same. An empty folder isn't made. Content is read from the storage, a file at a time; a
// layer without a catalog of its own is passed over.
func (t *Transaction) Recut(ctx context.Context, layers []string, cut Cut,
	at func(made map[string]catalog.Entry) (CutFolder, error),
) error {
	if err := t.recut(ctx, layers, cut, at); err != nil {
		return fmt.Errorf("cut files of layers: %w", err)
	}
	return nil
}

func (t *Transaction) recut(ctx context.Context, layers []string, cut Cut,
	at func(map[string]catalog.Entry) (CutFolder, error),
) (err error) {
	root := newFolder("", t.draft.Now.Unix(), 0)
	in := t.newIntake(ctx)
	for _, layer := range layers {
		if err = t.recutLayer(in, root, layer, cut); err != nil {
			break
		}
	}
	if err := in.wait(err); err != nil {
		return err
	}
	t.count(in.stats.NewObjects, in.stats.NewBytes)
	made := map[string]catalog.Entry{}
	for name, n := range root.children {
		made[name] = n.file.Entry
	}
	folder, err := at(made)
	if err != nil || len(root.children)+len(folder.Packs) == 0 {
		return err
	}
	place := folder.Path
	release, err := t.reserve(ctx, place)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	for n, objects := range folder.Packs {
		if err := t.pack(ctx, root, pack.Name(n), objects); err != nil {
			return err
		}
	}
	if len(root.children) == 0 {
		return nil
	}
	root.name, root.mount = path.Base(place), freshMount()
	empty, err := t.empty(ctx)
	if err != nil {
		return err
	}
	empty.mark(root, catalog.Marker)
	if err := t.writeCatalogs(ctx, root, place); err != nil {
		return err
	}
	root.children, root.mount.loaded = nil, false
	return t.attach(ctx, place, root)
}

// count adds objects that are in the storage for this transaction.
func (t *Transaction) count(objects int, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.NewObjects += objects
	t.stats.NewBytes += bytes
}

// mostStored bounds a stored object that goes into a pack, bytes: deflate makes none much larger than it was.
const mostStored = 2 * pack.MaxObject

// packReaders read stored objects at one time: from a bucket each takes a while.
const packReaders = 16

// pack puts a pack of stored objects into the folder root. It isn't compressed: its objects are. What the storage lacks
// is left out: whoever needs it will be told.
func (t *Transaction) pack(ctx context.Context, root *node, name string, objects []string) error {
	all := make([][]byte, len(objects))
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(packReaders)
	for i, object := range objects {
		group.Go(func() (err error) {
			all[i], err = storage.ReadFile(reading, t.repo.storage, object, mostStored)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var b []byte
	for i, stored := range all {
		if len(stored) > 0 { // no object is empty: zlib has a head, and who stores raw has no use for a pack
			b = pack.Append(b, objects[i], stored)
		}
	}
	if len(b) == 0 {
		return nil
	}
	e, err := newEncoder(t.repo.algorithm, hash.None)
	if err != nil {
		return err
	}
	_, d, err := e.encode(b)
	if err != nil {
		return err
	}
	put, err := putOnce(ctx, t.repo.storage, d.Path(hash.File), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if put {
		t.count(1, int64(len(b)))
	}
	root.children[name] = &node{name: name, file: &file{Entry: catalog.Entry{
		Mode: typeFile | 0o444, Nlink: 1, Size: int64(len(b)), Mtime: t.draft.Now.Unix(), Digest: d,
		Compression: hash.None,
	}}}
	return nil
}

// recutLayer puts files of a layer into the folder root.
func (t *Transaction) recutLayer(in *intake, root *node, layer string, cut Cut) error {
	t.mu.Lock()
	n, err := t.find(in.ctx, layer)
	t.mu.Unlock()
	if err != nil || n == nil || n.mount == nil {
		return err
	}
	for catalogs := []hash.Digest{n.mount.digest}; len(catalogs) > 0; {
		c, err := t.openCatalog(in.ctx, catalogs[0])
		if err != nil {
			return err
		}
		catalogs = catalogs[1:]
		below, err := c.Nested()
		for _, b := range below {
			catalogs = append(catalogs, b.Digest)
		}
		if err == nil {
			err = c.Rows(in.ctx, func(_, _ hash.PathHash, e *catalog.Entry) error {
				return in.recutFile(root, e, cut)
			})
		}
		if err := errors.Join(err, c.Close()); err != nil {
			return err
		}
	}
	return nil
}

// openCatalog opens a catalog of the newest revision or of this transaction.
func (t *Transaction) openCatalog(ctx context.Context, d hash.Digest) (*catalog.Catalog, error) {
	t.mu.Lock()
	waiting := t.pending[d]
	name := t.temp("catalog")
	t.mu.Unlock()
	if waiting != nil {
		return catalog.Open(waiting.plain)
	}
	if err := t.repo.fetchCatalog(ctx, d, name); err != nil {
		return nil, err
	}
	c, err := catalog.Open(name)
	return c, errors.Join(err, os.Remove(name)) // it stays open
}

// recutFile puts a file into the folder root, if it is to be cut.
func (in *intake) recutFile(root *node, e *catalog.Entry, cut Cut) error {
	if !e.IsRegular() {
		return nil
	}
	name, ends := cut(e)
	if len(ends) == 0 || root.children[name] != nil {
		return nil
	}
	f := &file{Entry: catalog.Entry{
		Mode: e.Mode, UID: e.UID, GID: e.GID, Nlink: 1, Size: e.Size, Mtime: e.Mtime, MtimeN: e.MtimeN,
		Compression: in.t.compression,
	}}
	root.children[name] = &node{name: name, file: f}
	content, stop := in.t.plain(in.ctx, e)
	defer stop()
	w := &whole{file: f, left: 1}
	start := int64(0)
	for _, end := range ends {
		for start < end { // chunks of other publishers may be larger than ours
			size := min(end-start, int64(in.t.repo.settings.largestPiece()))
			if err := in.part(w, content, size, start); err != nil {
				return err
			}
			start += size
		}
	}
	if start != e.Size {
		return fmt.Errorf("%q is cut at %d, and has %d bytes", name, start, e.Size)
	}
	if _, err := io.Copy(io.Discard, content); err != nil { // its digest is known at its end
		return err
	}
	in.read(w)
	return nil
}

// plain reads the content of a file that is stored, until stop is called.
func (t *Transaction) plain(ctx context.Context, e *catalog.Entry) (content io.Reader, stop func()) {
	r, w := io.Pipe()
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		w.CloseWithError(t.copyContent(ctx, w, e))
	}()
	return r, func() {
		_ = r.Close() // it never fails
		<-copied
	}
}

func (t *Transaction) copyContent(ctx context.Context, to io.Writer, e *catalog.Entry) error {
	if len(e.Chunks) == 0 {
		_, err := storage.CopyObject(ctx, to, t.repo.storage, e.Digest, hash.File, e.Compression, e.Size)
		return err
	}
	for _, c := range e.Chunks {
		_, err := storage.CopyObject(ctx, to, t.repo.storage, c.Digest, hash.Chunk, e.Compression, c.Size)
		if err != nil {
			return err
		}
	}
	return nil
}
