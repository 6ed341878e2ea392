package objects

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/internal/elfload"
)

const (
	// linkedLimit bounds the size of an object that is fetched whole because a program needs it, and how much of one in
	// chunks is fetched because the linker reads it.
	linkedLimit = 16 << 20
	// followedMemory is for how long an object that was followed isn't followed again, and mostFollowed how many are
	// remembered.
	followedMemory = 30 * time.Second
	mostFollowed   = 1 << 14
	// followers is how many objects are looked into at once, each an open file, and mostLinked how many libraries come
	// because one object was opened.
	followers  = 32
	mostLinked = 512
)

// followed are the objects that were followed lately. The zero value is ready.
type followed struct {
	mu    sync.Mutex
	m     map[Ref]struct{}
	since time.Time
}

// begin reports whether an object is to be followed now.
func (f *followed) begin(r Ref) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil || time.Since(f.since) > followedMemory {
		f.m, f.since = map[Ref]struct{}{}, time.Now()
	}
	if _, known := f.m[r]; known || len(f.m) >= mostFollowed {
		return false
	}
	f.m[r] = struct{}{}
	return true
}

// forget has an object followed when it is met again: nothing was found out about it.
func (f *followed) forget(r Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.m, r)
}

// forgetOld frees the memory when nothing is followed any more.
func (f *followed) forgetOld(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.since) > followedMemory {
		f.m = nil
	}
}

// followSoon follows an object that somebody has opened, and of which the beginning is here.
func (s *Store) followSoon(r Ref) {
	if s.cfg.NothingAhead {
		return
	}
	r = r.youngest()
	if !s.starts.has(r.t) && s.followed.begin(r) {
		s.tasks.start(func() { s.follow(r, newLinked()) })
	}
}

// linked is how many more libraries may come because of one that was opened: each may need any others.
type linked struct{ left atomic.Int32 }

func newLinked() *linked {
	l := &linked{}
	l.left.Store(mostLinked)
	return l
}

// follow has that arrive of a program or a library which the dynamic linker reads, and the libraries that are loaded
// with it, and those that are loaded with these: a linker opens one after the other.
func (s *Store) follow(r Ref, l *linked) {
	ctx := fetch.LetPass(s.life)
	if take(ctx, s.followers) != nil {
		return
	}
	defer give(s.followers)
	in, err := s.open(ctx, r)
	if err != nil {
		return // it is gone again
	}
	defer in.Close()
	f := elfload.Open(in, r.Size())
	if f == nil {
		return
	}
	s.fetchParts(in.partial, f.Touched()...)
	links := f.Links()
	s.fetchParts(in.partial, links.Symbols)
	for _, name := range links.Needed {
		if n, ok := r.library(name); ok && s.followed.begin(n) {
			if l.left.Add(-1) < 0 {
				return
			}
			s.tasks.start(func() { s.fetchLibrary(ctx, n, l) })
		}
	}
}

// Usual has that arrive, in the background, which containers of an image read whatever their program is: who it is to
// run as, the dynamic linker, and what that reads of the C library. It is for those that start without a profile.
func (s *Store) Usual(x *Index, t *Table) {
	if s.cfg.NothingAhead {
		return
	}
	l := newLinked()
	for _, pos := range t.names.usual {
		if r := (Ref{x, t, pos}); !s.Has(r) && s.followed.begin(r) {
			s.tasks.start(func() { s.fetchLibrary(fetch.LetPass(s.life), r, l) })
		}
	}
}

// fetchLibrary has a library arrive, of one in chunks the beginning, and follows it.
func (s *Store) fetchLibrary(ctx context.Context, r Ref, l *linked) {
	var err error
	switch {
	case r.Chunked():
		err = s.FetchPieces(ctx, r, 0)
	case r.Size() > linkedLimit:
		s.followed.forget(r) // until somebody opens it
		return
	default:
		_, err = s.bring(ctx, r, s.behind, true)
	}
	if err != nil { // whoever needs it will see
		s.followed.forget(r)
		s.log.Debug("object store: a library can't be fetched ahead", slog.String("object", r.Name()), slog.Any("err", err))
		return
	}
	s.follow(r, l)
}

// fetchParts fetches parts of an object in chunks in the background.
func (s *Store) fetchParts(p *partial, parts ...elfload.Extent) {
	if p == nil {
		return
	}
	for _, e := range parts {
		s.fetchAhead(p, p.wantPart(e.Offset, min(e.Size, linkedLimit)))
	}
}

// wantPart picks the pieces with bytes of a part that nobody has asked for. That they are read is as good as certain,
// so they don't count against what else may be fetched ahead.
func (p *partial) wantPart(off, size int64) (list []int) {
	if size <= 0 {
		return nil
	}
	first, last := p.within(off, off+size)
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := first; i < last && len(list) < mostWanted; i++ {
		if c := &p.pieces[i]; !c.have && !c.read && !c.ahead {
			c.apart = true
			p.expect(c)
			list = append(list, i)
		}
	}
	return list
}

// opened is an object of which at least the beginning is here.
type opened struct {
	io.ReaderAt
	io.Closer
	partial *partial // nil where it is complete
}

// open opens an object that is here or held, or is in chunks: of these what is read is fetched.
func (s *Store) open(ctx context.Context, r Ref) (opened, error) {
	if r.Chunked() {
		p, err := s.missing(r)
		if err != nil {
			return opened{}, err
		}
		if p != nil {
			f := &fetchedPart{ctx, s, p}
			return opened{f, f, p}, nil
		}
	}
	f, err := os.Open(filepath.Join(s.cfg.Dir, r.Path()))
	if errors.Is(err, fs.ErrNotExist) {
		f, err = s.holds.open(r.Name())
	}
	return opened{f, f, nil}, err
}

// fetchedPart reads a partial file, and has arrive what isn't here of it.
type fetchedPart struct {
	ctx context.Context
	s   *Store
	p   *partial
}

func (f *fetchedPart) Close() error {
	f.s.partials.release(f.p)
	return nil
}

func (f *fetchedPart) ReadAt(b []byte, off int64) (int, error) {
	if off >= f.p.Size {
		return 0, io.EOF
	}
	first, last := f.p.within(off, min(off+int64(len(b)), f.p.Size))
	f.p.keep(first, last, 1)
	defer f.p.keep(first, last, -1)
	if err := f.s.need(f.ctx, f.p, first, last, f.s.reserve); err != nil {
		return 0, err
	}
	return f.p.file.ReadAt(b, off)
}
