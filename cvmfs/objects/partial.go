package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/hash"
)

const (
	partialIdle  = time.Hour // a partial file nobody reads is given up after this
	chunksAtOnce = 8         // per call
)

// partials are the partial files there are. The zero value is ready.
type partials struct {
	mu sync.Mutex
	m  map[string]*partial
}

// partial is an object in chunks of which some are here. The file is sparse; only what have says may be read from it.
type partial struct {
	Object
	ref     Ref
	name    string
	file    *temp
	flights flights // by chunk

	mu      sync.Mutex
	have    []bool
	missing int
	bytes   int64 // plain bytes here

	users int       // guarded by partials.mu, as are the next
	used  time.Time // when the last user left
	gone  bool      // not in partials any more: the last user closes it
}

// partial returns the partial file of r, and makes it if need be. The caller hands it back to release.
func (s *Store) partial(r Ref) (*partial, error) {
	name := r.Name()
	s.partials.mu.Lock()
	defer s.partials.mu.Unlock()
	if p := s.partials.m[name]; p != nil {
		p.users++
		return p, nil
	}
	t, err := s.newTemp()
	if err == nil {
		if err = t.Truncate(r.Size()); err != nil {
			t.discard()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("partial file of %s: %w", name, err)
	}
	o := r.Object()
	p := &partial{
		Object: o, ref: r, name: name, file: t, have: make([]bool, len(o.Chunks)), missing: len(o.Chunks),
		users: 1,
	}
	if s.partials.m == nil {
		s.partials.m = map[string]*partial{}
	}
	s.partials.m[name] = p
	return p, nil
}

// release ends a use.
func (g *partials) release(p *partial) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p.users--
	p.used = time.Now()
	if p.gone && p.users == 0 {
		p.file.discard()
	}
}

// forget takes p out: it is complete, or the disk is full.
func (g *partials) forget(p *partial) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !p.gone {
		p.gone = true
		delete(g.m, p.name)
	}
}

// dropIdle gives up the partial files nobody has used since then.
func (g *partials) dropIdle(since time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, p := range g.m {
		if p.users == 0 && !p.used.After(since) {
			p.gone = true
			delete(g.m, name)
			p.file.discard()
		}
	}
}

func (g *partials) count() (files, bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.m {
		p.mu.Lock()
		bytes += p.bytes
		p.mu.Unlock()
	}
	return int64(len(g.m)), bytes
}

// readPartial reads from an object in chunks that is not complete.
func (s *Store) readPartial(ctx context.Context, r Ref, b []byte, off int64) (int, error) {
	p, err := s.partial(r)
	if err != nil {
		return 0, err
	}
	defer s.partials.release(p)
	end := min(off+int64(len(b)), p.Size)
	first := sort.Search(len(p.Chunks), func(i int) bool { return p.Chunks[i].Offset > off }) - 1
	last := sort.Search(len(p.Chunks), func(i int) bool { return p.Chunks[i].Offset >= end })
	if err := s.need(ctx, p, first, last); err != nil {
		return 0, fmt.Errorf("read object %s: %w", p.name, err)
	}
	return p.file.ReadAt(b, off)
}

// arriveInChunks makes an object of all its chunks.
func (s *Store) arriveInChunks(ctx context.Context, r Ref) error {
	p, err := s.partial(r)
	if err != nil {
		return err
	}
	defer s.partials.release(p)
	if err := s.need(ctx, p, 0, len(p.Chunks)); err != nil {
		return err
	}
	sha := sums.Get().(sum)
	defer sums.Put(sha)
	sha.Reset()
	if _, err := io.Copy(sha, contextReader{ctx, io.NewSectionReader(p.file, 0, p.Size)}); err != nil {
		return err
	}
	if err := s.publish(p.file, r, sha.Sum(nil)); err != nil {
		return s.full(p, err)
	}
	s.partials.forget(p)
	return nil
}

// need makes the chunks [first, last) be in the partial file.
func (s *Store) need(ctx context.Context, p *partial, first, last int) error {
	var g *errgroup.Group
	var groupCtx context.Context
	for i := first; i < last; i++ {
		if p.has(i) {
			continue
		}
		if g == nil {
			g, groupCtx = errgroup.WithContext(ctx)
			g.SetLimit(chunksAtOnce)
		}
		if groupCtx.Err() != nil {
			break
		}
		g.Go(func() error {
			return s.join(groupCtx, &p.flights, strconv.Itoa(i),
				func(ctx context.Context) error { return s.arriveChunk(ctx, p, i) })
		})
	}
	if g == nil {
		return nil
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return s.full(p, err)
	}
	return nil
}

// arriveChunk fetches a chunk in a flight. Its bytes count only when they are verified.
func (s *Store) arriveChunk(ctx context.Context, p *partial, i int) error {
	if p.has(i) {
		return nil
	}
	if err := take(ctx, s.slots); err != nil {
		return err
	}
	defer give(s.slots)
	c := p.Chunks[i]
	w := &part{file: p.file.File, at: c.Offset, size: c.Size}
	if err := s.download(ctx, p.ref, c.Digest, hash.Chunk, p.Compression, w); err != nil {
		return fmt.Errorf("chunk %d at %d: %w", i, c.Offset, err)
	}
	s.chunks.Add(1)
	if p.arrived(i) {
		// nobody waits for the complete object, nor for its failing: the partial file still serves
		s.tasks.start(func() {
			if err := s.Fetch(s.life, p.ref); err != nil {
				s.log.Debug("object store: complete object not kept", slog.String("object", p.name),
					slog.Any("err", err))
			}
		})
	}
	return nil
}

// full gives up partial files when the disk is full, first of all the one that met it. It returns err.
func (s *Store) full(p *partial, err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		s.partials.forget(p)
		s.partials.dropIdle(time.Now())
	}
	return err
}

func (p *partial) has(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have[i]
}

// arrived notes a verified chunk and reports whether it was the last.
func (p *partial) arrived(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have[i] = true
	p.missing--
	p.bytes += p.Chunks[i].Size
	return p.missing == 0
}

// contextReader ends with the context: reading a big file takes a while.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
