package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/internal/layertar"
)

// LayerOptions bound what an archive may make of itself. The zero value has the defaults.
type LayerOptions struct {
	MaxEntries int   // 4,000,000
	MaxBytes   int64 // of all files together, holes included; 4 TiB

	// Rows of a catalog: a layer with more than MostRows, 100,000, is split at folders with at least LeastRows, 1000.
	MostRows, LeastRows int
}

// Layer is what became of an archive.
type Layer struct {
	Stats    Stats
	Leftover Leftover
	Notes    []string // the first of what entries say and no file can have, as engines leave it out
}

// Stats count what an archive brought.
type Stats struct {
	Entries     int   // of the archive
	Files       int   // regular files with content of their own: hard links count once
	Bytes       int64 // plain bytes of these
	NewObjects  int   // objects stored
	NewBytes    int64 // stored bytes of these
	ReusedFiles int   // files all of whose content was there
	ReusedBytes int64 // plain bytes that were there
	Catalogs    int
	LeftOut     int // how much Notes could tell
}

// Leftover is what an archive says and catalogs have no place for. Paths are relative to the layer, as in
// "usr/bin/perl".
type Leftover struct {
	Root    *Attributes                // of the layer's root; nil: the archive doesn't say
	Links   [][]string                 // hard links across folders: each group sorted, and the groups by their first
	Xattrs  map[string][]catalog.Xattr // all of a path's, where a row can't hold them; "" is the root
	Markers []string                   // files of the archive that have the name of a publisher's marker, sorted
}

// Attributes are what stat(2) tells of a folder.
type Attributes struct {
	Mode   uint32 // permission bits, set-id and sticky bits
	UID    uint32
	GID    uint32
	Mtime  int64  // seconds since 1970
	MtimeN uint32 // nanoseconds
}

// Ingest makes a layer of an archive, an uncompressed tar, at a path where there is nothing yet, in a nested catalog of
// its own. It reads the archive to its end, trailing bytes behind the end marker included. Several layers may be
// ingested at once. With an error nothing of the layer is in the transaction; objects it stored are garbage unless
// something else names them.
//
// Whiteouts stay the files they are. The same archive gives the same rows. Errors: fs.ErrExist if there is something at
// the path; ErrArchive if the archive is at fault.
func (t *Transaction) Ingest(ctx context.Context, path string, archive io.Reader, o LayerOptions) (*Layer, error) {
	release, err := t.reserve(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("ingest layer %s: %w", path, err)
	}
	defer release()
	layer, err := t.ingest(ctx, path, archive, o.complete())
	if err != nil {
		return nil, fmt.Errorf("ingest layer %s: %w", path, err)
	}
	return layer, nil
}

func (o LayerOptions) complete() LayerOptions {
	set(&o.MaxEntries, layertar.MaxEntries)
	set(&o.MaxBytes, layertar.MaxBytes)
	set(&o.MostRows, mostRows)
	set(&o.LeastRows, leastRows)
	return o
}

func (t *Transaction) ingest(ctx context.Context, path string, archive io.Reader, o LayerOptions) (*Layer, error) {
	in := t.newIntake(ctx)
	entries := layertar.NewReader(archive)
	entries.MaxEntries, entries.MaxBytes = o.MaxEntries, o.MaxBytes
	b := newBuilder(entries)
	err := b.read(entries, in)
	if err = in.wait(err); err != nil {
		return nil, err
	}
	layer := &Layer{Stats: in.stats}
	layer.Stats.Entries = entries.Entries()
	layer.Notes, layer.Stats.LeftOut = entries.Notes()
	root, err := b.finish(&layer.Leftover)
	if err != nil {
		return nil, err
	}
	empty, err := t.empty(ctx)
	if err != nil {
		return nil, err
	}
	mounts := []*node{root}
	marked := markedFolders(root)
	if len(marked) > mostMarked {
		return nil, fmt.Errorf("%w: %d folders have a %s, and so a catalog of their own: the limit is %d", ErrArchive,
			len(marked), catalog.Marker, mostMarked)
	}
	for _, folder := range marked {
		mounts = append(mounts, folder)
		folder.mount = freshMount()
	}
	split(root, o.MostRows, o.LeastRows, func(n *node) {
		n.mount = freshMount()
		empty.mark(n, catalog.AutoMarker)
		mounts = append(mounts, n)
	})
	for _, n := range mounts {
		empty.mark(n, catalog.Marker)
	}
	layer.Stats.Catalogs = len(mounts)
	root.name = path[strings.LastIndexByte(path, '/')+1:]
	if err := t.writeCatalogs(ctx, root, path); err != nil {
		return nil, err
	}
	root.children, root.mount.loaded = nil, false
	return layer, t.attach(ctx, path, root)
}

func freshMount() *mount { return &mount{loaded: true, dirty: true} }

// read takes all entries into the tree and their content into the pipeline.
func (b *builder) read(entries *layertar.Reader, in *intake) error {
	for {
		e, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = in.ctx.Err()
		}
		if err != nil {
			return err
		}
		f, err := b.add(e)
		if err == nil && f != nil {
			err = in.content(f, entries)
		}
		if err != nil {
			return err
		}
	}
}

// finish settles the tree: the layer's own folder, hard links, and what is left over.
func (b *builder) finish(l *Leftover) (*node, error) {
	at := stamp{}
	if b.seen {
		at = b.newest
	}
	l.Root = b.own
	if l.Root != nil {
		at = stamp{l.Root.Mtime, int32(l.Root.MtimeN)}
	}
	b.root.file.Mtime, b.root.file.MtimeN = at.seconds, at.nanos
	b.root.mount = freshMount()
	if len(b.rootAll) > 0 {
		l.Xattrs = map[string][]catalog.Xattr{"": b.rootAll}
	}
	links := map[*file][]link{}
	err := b.root.eachFolder("", func(path string, folder *node) error {
		for _, c := range folder.sorted() {
			below := strings.TrimPrefix(path+"/"+c.name, "/")
			if catalog.IsMarker(c.name) {
				l.Markers = append(l.Markers, below)
			}
			if c.file.all != nil {
				if l.Xattrs == nil {
					l.Xattrs = map[string][]catalog.Xattr{}
				}
				l.Xattrs[below] = c.file.all
			}
			if c.file.linked {
				links[c.file] = append(links[c.file], link{folder, c, below})
			}
		}
		return nil
	})
	for _, names := range links {
		if group := unlink(names); group != nil {
			l.Links = append(l.Links, group)
		}
	}
	slices.SortFunc(l.Links, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	slices.Sort(l.Markers)
	return b.root, err
}

// link is one name of a file that has several.
type link struct {
	folder *node
	node   *node
	path   string
}

// unlink makes independent files of hard links that are not all in one folder, and gives their paths. Catalogs hold no
// others.
func unlink(names []link) (group []string) {
	if !slices.ContainsFunc(names, func(l link) bool { return l.folder != names[0].folder }) {
		return nil
	}
	for _, l := range names {
		group = append(group, l.path)
		own := *l.node.file
		own.linked = false
		l.node.file = &own
	}
	slices.Sort(group)
	return group
}

// eachFolder calls fn for n and each folder below it.
func (n *node) eachFolder(path string, fn func(path string, folder *node) error) error {
	if err := fn(path, n); err != nil {
		return err
	}
	return n.within(path, func(path string, c *node) error {
		if !c.isDir() {
			return nil
		}
		return fn(path, c)
	})
}

// mostMarked bounds the nested catalogs that an archive asks for: each is an object that has to be written, and read by
// whoever lists the layer.
const mostMarked = 1000

// markedFolders are those below the root in which the archive has a file of the name that must stand in roots of nested
// catalogs and nowhere else.
func markedFolders(root *node) (folders []*node) {
	root.eachFolder("", func(_ string, n *node) error { // fails only if the function does
		if n != root && n.children[catalog.Marker] != nil {
			folders = append(folders, n)
		}
		return nil
	})
	return folders
}

// emptyFile makes marker files.
type emptyFile struct{ file }

// mark puts a marker into a folder, unless the archive has a file of that name.
func (e *emptyFile) mark(n *node, name string) {
	if n.children[name] != nil {
		return
	}
	f := e.file
	f.Mtime, f.MtimeN = n.file.Mtime, n.file.MtimeN
	n.children[name] = &node{name: name, file: &f}
}

// empty sees to it that the empty file's object is stored.
func (t *Transaction) empty(ctx context.Context) (*emptyFile, error) {
	e := &emptyFile{file{Entry: catalog.Entry{Mode: typeFile | 0o644, Nlink: 1}}}
	in := t.newIntake(ctx)
	return e, in.wait(in.content(&e.file, strings.NewReader("")))
}

// intake hands the content of one archive's files to the pipeline and gathers what became of it.
type intake struct {
	t      *Transaction
	ctx    context.Context // ends with the first failure
	cancel context.CancelCauseFunc

	running sync.WaitGroup
	mu      sync.Mutex // guards stats and the files whose content is on its way
	stats   Stats
}

func (t *Transaction) newIntake(ctx context.Context) *intake {
	in := &intake{t: t}
	in.ctx, in.cancel = context.WithCancelCause(ctx)
	return in
}

// wait waits for what is on its way, and gives the first error: that of reading, if there is one that isn't due to
// another.
func (in *intake) wait(err error) error {
	in.running.Wait()
	if cause := context.Cause(in.ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = cause
	}
	in.cancel(nil)
	return err
}

// whole is a file on its way.
type whole struct {
	*file
	left  int // objects that are not there yet, and one more while it is read
	fresh bool
}

// content reads a file and hands it on: in one piece, or in chunks if it is large enough and content-defined cuts are
// found.
func (in *intake) content(f *file, from io.Reader) error {
	f.Compression = in.t.compression
	w := &whole{file: f, left: 1}
	s := in.t.repo.settings
	var err error
	if f.Size <= int64(max(s.MinChunk, s.WholeFile)) {
		err = in.piece(w, from)
	} else {
		err = in.chunks(w, from, newChunker(s.MinChunk, s.AvgChunk, s.MaxChunk))
	}
	in.read(w)
	return err
}

// read takes note that all of a file was handed on.
func (in *intake) read(w *whole) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.stats.Files++
	in.stats.Bytes += w.Size
	in.arrived(w)
}

// piece reads a small file.
func (in *intake) piece(w *whole, from io.Reader) error {
	return in.part(w, from, w.Size, wholeFile)
}

// part reads so many bytes of a file as one piece.
func (in *intake) part(w *whole, from io.Reader, size, offset int64) error {
	b, err := in.t.pipeline.buffer(in.ctx, size)
	if err != nil {
		return err
	}
	b.bytes = b.room[:size]
	if _, err := io.ReadFull(from, b.bytes); err != nil {
		in.t.pipeline.release(b)
		return truncated(err)
	}
	return in.send(w, b, offset)
}

// truncated says that content ended before its size.
func truncated(err error) error {
	if errors.Is(err, ErrArchive) || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return layertar.ErrTruncated
}

// readPiece is how much of a large file is read before cuts are looked for.
const readPiece = 256 << 10

// chunks reads a large file. It never waits for a buffer while it has one: several readers would wait for each other.
func (in *intake) chunks(w *whole, from io.Reader, cutter *chunker) error {
	most := in.t.repo.settings.MaxChunk
	carry := make([]byte, 0, readPiece) // the beginning of a chunk, read with the end of the one before
	for read, start := int64(0), int64(0); ; {
		b, err := in.t.pipeline.buffer(in.ctx, int64(most))
		if err != nil {
			return err
		}
		filled, fed := copy(b.room, carry), 0
		cut := false
		for !cut {
			var used int
			used, cut = cutter.next(b.room[fed:filled])
			if fed += used; cut || read == w.Size {
				break
			}
			if fed == most {
				cutter.cut()
				break
			}
			n := int(min(readPiece, int64(most-filled), w.Size-read))
			if _, err := io.ReadFull(from, b.room[filled:filled+n]); err != nil {
				in.t.pipeline.release(b)
				return truncated(err)
			}
			read += int64(n)
			filled += n
		}
		carry = append(carry[:0], b.room[fed:filled]...)
		b.bytes = b.room[:fed]
		last := read == w.Size && len(carry) == 0
		if last && start == 0 {
			return in.send(w, b, wholeFile)
		}
		if err := in.send(w, b, start); err != nil || last {
			return err
		}
		start += int64(fed)
	}
}

// wholeFile stands for an offset where a piece is not a chunk.
const wholeFile = -1

// send hands a piece to the workers; they set where it is in the file.
func (in *intake) send(w *whole, b *buffer, offset int64) error {
	in.mu.Lock()
	i := len(w.Chunks)
	if offset != wholeFile {
		w.Chunks = append(w.Chunks, catalog.Chunk{Offset: offset, Size: int64(len(b.bytes))})
	}
	w.left++
	in.mu.Unlock()
	size := int64(len(b.bytes))
	in.running.Add(1)
	err := in.t.pipeline.submit(in.ctx, b, offset != wholeFile, func(o object, err error) {
		defer in.running.Done()
		if err != nil {
			in.cancel(err)
			return
		}
		in.mu.Lock()
		defer in.mu.Unlock()
		if offset == wholeFile {
			w.Digest = o.digest
		} else {
			w.Chunks[i].Digest = o.digest
		}
		in.count(w, o, size)
	})
	if err != nil {
		in.running.Done()
		in.t.pipeline.release(b)
	}
	return err
}

// count adds an object that is in the storage. The caller holds mu.
func (in *intake) count(w *whole, o object, size int64) {
	if o.put > 0 {
		in.stats.NewObjects++
		in.stats.NewBytes += o.put
		w.fresh = true
	} else {
		in.stats.ReusedBytes += size
	}
	in.arrived(w)
}

// arrived takes note that an object of the file is there, or that all of it was read. The caller holds mu.
func (in *intake) arrived(w *whole) {
	if w.left--; w.left == 0 && !w.fresh {
		in.stats.ReusedFiles++
	}
}
