package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
)

const (
	partialIdle  = time.Hour // a partial file nobody reads is given up after this
	mostPartials = 4096      // at once; each is an open file
	chunksAtOnce = 8         // per call
	// completePart is what part of an object is read before the rest is fetched, too: half (ADR 33).
	completePart = 2
)

// partials are the partial files there are.
type partials struct {
	admission *admission // is told about their bytes

	mu sync.Mutex
	m  map[string]*partial
}

// partial is an object of which some chunks are here; one without chunks counts as one of a single chunk. The file is
// sparse; only what have says may be read from it.
type partial struct {
	Object
	pieces  []piece // its chunks, or the whole
	ref     Ref
	name    string
	file    *temp
	flights flights // by piece

	mu         sync.Mutex
	missing    int   // pieces
	bytes      int64 // plain bytes here
	read       int64 // of the pieces that were read
	ahead      int64 // of those that were fetched ahead, or are to be, and were not read, but for those apart
	hit        int64 // of those that were ahead, and were read then
	end        int64 // of the last read
	run        int64 // bytes that were read one after the other up to there
	begun      bool  // somebody has read the first piece
	completing bool  // it was tried to fetch the rest, as enough was read
	stuck      bool  // it can't be completed, as far as was tried while nobody waited
	closed     bool

	users int       // guarded by partials.mu, as are the next
	used  time.Time // when the last user left
	gone  bool      // not in partials any more: the last user closes it
}

// piece is a part of an object that is fetched by itself. But for Stored it is guarded by partial.mu.
type piece struct {
	Stored
	have    bool // its bytes are in the file, verified
	read    bool // somebody has wanted it
	ahead   bool // it was asked for before anybody wanted it
	apart   bool // it is ahead for what the object is, not for who reads it
	readers int  // who need it to stay
}

// partial returns the partial file of r, and makes it if need be. The caller hands it back to release.
func (s *Store) partial(r Ref) (*partial, error) {
	s.partials.mu.Lock()
	defer s.partials.mu.Unlock()
	return s.partialOf(r, r.Name())
}

// missing is partial for an object of which something may be missing: it returns nil if all of it is here.
func (s *Store) missing(r Ref) (*partial, error) {
	if s.Has(r) {
		return nil, nil
	}
	name := r.Name()
	s.partials.mu.Lock()
	defer s.partials.mu.Unlock()
	if s.partials.m[name] == nil && s.Has(r) { // completed since
		return nil, nil
	}
	return s.partialOf(r, name)
}

// partialOf is partial with partials.mu held.
func (s *Store) partialOf(r Ref, name string) (*partial, error) {
	if p := s.partials.m[name]; p != nil {
		p.users++
		return p, nil
	}
	if len(s.partials.m) >= mostPartials {
		s.partials.dropOldest()
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
	p := &partial{Object: o, ref: r, name: name, file: t, users: 1}
	for _, stored := range o.Stored() {
		p.pieces = append(p.pieces, piece{Stored: stored})
	}
	p.missing = len(p.pieces)
	if s.partials.m == nil {
		s.partials.m = map[string]*partial{}
	}
	s.partials.m[name] = p
	return p, nil
}

// inPart reports whether an object is never to be stored.
func (s *Store) inPart(r Ref) bool { return s.cfg.InPart > 0 && r.Size() > s.cfg.InPart }

// get returns the partial file of an object, nil if there is none. The caller hands it back to release.
func (g *partials) get(name string) *partial {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.m[name]
	if p != nil {
		p.users++
	}
	return p
}

// release ends a use.
func (g *partials) release(p *partial) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p.users--
	p.used = time.Now()
	if p.gone && p.users == 0 {
		g.close(p)
	}
}

// close gives a file's disk space back.
func (g *partials) close(p *partial) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.file.discard()
	g.admission.freed(p.bytes)
	p.bytes, p.closed = 0, true
}

// shrink takes the pieces out of a file that nobody reads now.
func (g *partials) shrink(p *partial) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.pieces {
		c := &p.pieces[i]
		if !c.have || c.readers > 0 || p.closed {
			continue
		}
		const hole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		if unix.Fallocate(int(p.file.Fd()), hole, c.Offset, c.Size) != nil {
			return // no holes here: the file goes as a whole when it is idle
		}
		c.have = false
		p.missing++
		p.bytes -= c.Size
		g.admission.freed(c.Size)
	}
}

// keep makes pieces stay, with by -1 no longer.
func (p *partial) keep(first, last, by int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := first; i < last; i++ {
		p.pieces[i].readers += by
	}
}

// stored takes the bytes of a file off that has become an object's, which the ledger has.
func (g *partials) stored(p *partial) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g.admission.freed(p.bytes)
	p.bytes = 0
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

// dropOldest gives up the one that nobody has used for longest. The caller holds mu.
func (g *partials) dropOldest() {
	var oldest *partial
	for _, p := range g.m {
		if p.users == 0 && (oldest == nil || p.used.Before(oldest.used)) {
			oldest = p
		}
	}
	if oldest != nil {
		oldest.gone = true
		delete(g.m, oldest.name)
		g.close(oldest)
	}
}

// dropIdle gives up the partial files nobody has used since then. It reports whether there were any.
func (g *partials) dropIdle(since time.Time) (dropped bool) {
	return g.drop(func(_ string, p *partial) bool { return !p.used.After(since) })
}

// drop gives up those of these partial files that nobody uses now. It reports whether there were any.
func (g *partials) drop(these func(name string, p *partial) bool) (dropped bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, p := range g.m {
		if p.users == 0 && these(name, p) {
			p.gone = true
			delete(g.m, name)
			g.close(p)
			dropped = true
		}
	}
	return dropped
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

// readUnstored reads from an object that is not stored.
func (s *Store) readUnstored(ctx context.Context, r Ref, b []byte, off int64) (int, error) {
	p, err := s.partial(r)
	if err != nil {
		return 0, err
	}
	defer s.partials.release(p)
	return s.readPartial(ctx, r, p, b, off)
}

// ReadNow reads an object's plain bytes from off on, all of b, if they are here and the object isn't as a whole.
// Otherwise it returns false.
func (s *Store) ReadNow(r Ref, b []byte, off int64) (int, bool) {
	if len(b) == 0 || off < 0 || off > r.Size()-int64(len(b)) {
		return 0, false
	}
	p := s.partials.get(r.Name())
	if p == nil {
		return 0, false
	}
	defer s.partials.release(p)
	end := off + int64(len(b))
	first, last := p.within(off, end)
	p.keep(first, last, 1)
	defer p.keep(first, last, -1)
	if !p.hasAll(first, last) {
		return 0, false
	}
	if n, err := unix.Preadv2(int(p.file.Fd()), [][]byte{b}, off, unix.RWF_NOWAIT); err != nil || n < len(b) {
		return 0, false // it left the page cache
	}
	s.asked(r, off, end)
	s.readOn(p, off, end)
	s.readFirst(r, p, off)
	return len(b), true
}

// readFirst takes note of a read: with the first bytes of an object, what they lead to is fetched.
func (s *Store) readFirst(r Ref, p *partial, off int64) {
	if off < p.pieces[0].Size && p.begins() {
		s.followSoon(r)
	}
}

// readPartial reads r from its partial file.
func (s *Store) readPartial(ctx context.Context, r Ref, p *partial, b []byte, off int64) (int, error) {
	end := min(off+int64(len(b)), p.Size)
	first, last := p.within(off, end)
	p.keep(first, last, 1)
	defer p.keep(first, last, -1)
	s.asked(r, off, end)
	readOn := sync.OnceFunc(func() { s.readOn(p, off, end) })
	if p.isNew(first, last) {
		ctx = s.whenAsked(ctx, readOn)
	} else {
		readOn()
	}
	reserve := func(ctx context.Context, n int64) error { return s.reserveUnstored(ctx, n, p) }
	if !p.hasAll(first, last) {
		s.quiet.broken()
		defer s.quiet.broken()
	}
	for {
		err := s.need(ctx, p, first, last, reserve)
		if errors.Is(err, ErrLimit) {
			continue // a flight of somebody who wanted to store it
		}
		if err != nil {
			return 0, fmt.Errorf("read object %s: %w", p.name, err)
		}
		break
	}
	readOn() // others may have made the request
	s.readFirst(r, p, off)
	return p.file.ReadAt(b, off)
}

// within returns the pieces [first, last) with bytes of a range.
func (p *partial) within(off, end int64) (first, last int) {
	return within(len(p.pieces), func(i int) int64 { return p.pieces[i].Offset }, off, end)
}

// within returns which of n pieces, [first, last), have bytes of a range. offset tells where one begins.
func within(n int, offset func(i int) int64, off, end int64) (first, last int) {
	first = sort.Search(n, func(i int) bool { return offset(i) > off }) - 1
	last = sort.Search(n, func(i int) bool { return offset(i) >= end })
	return first, last
}

// arriveInChunks makes an object of all its chunks.
func (s *Store) arriveInChunks(ctx context.Context, r Ref) error {
	p, err := s.partial(r)
	if err != nil {
		return err
	}
	defer s.partials.release(p)
	missing := p.missingBytes()
	if err := s.reserve(ctx, missing); err != nil { // all of it, so that nothing is fetched in vain
		return err
	}
	s.admission.landed(missing, 0)
	p.keep(0, len(p.pieces), 1)
	defer p.keep(0, len(p.pieces), -1)
	if err := s.need(ctx, p, 0, len(p.pieces), s.reserve); err != nil {
		return err
	}
	sha := sums.Get().(sum)
	defer sums.Put(sha)
	sha.Reset()
	if _, err := io.Copy(sha, contextReader{ctx, io.NewSectionReader(p.file, 0, p.Size)}); err != nil {
		return err
	}
	if err := s.publish(p.file, r.Path(), r.Size(), sha.Sum(nil)); err != nil {
		return s.full(p, err)
	}
	s.partials.stored(p)
	s.partials.forget(p)
	return nil
}

// reservation admits bytes: reserve or reserveUnstored.
type reservation func(ctx context.Context, n int64) error

// need makes the pieces [first, last) be in the partial file. Each is admitted by reserve.
func (s *Store) need(ctx context.Context, p *partial, first, last int, reserve reservation) error {
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
				func(ctx context.Context) error { return s.arrivePiece(ctx, p, i, reserve, nil) })
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

// arrivePiece gets a piece in a flight, from the servers if get is nil. Its bytes count only when they are verified.
func (s *Store) arrivePiece(ctx context.Context, p *partial, i int, reserve reservation, get getter) error {
	if p.has(i) {
		return nil
	}
	if get == nil {
		get = s.from(p.ref.named())
		slots := s.slots
		if fetch.LetsPass(ctx) {
			slots = s.behind // else it would hold those up here that it lets pass at the servers
		}
		if err := take(ctx, slots); err != nil {
			return err
		}
		defer give(slots)
	}
	c := p.pieces[i].Stored
	if err := reserve(ctx, c.Size); err != nil {
		return err
	}
	w := &part{file: p.file.File, at: c.Offset, size: c.Size}
	if err := get(ctx, c, w); err != nil {
		s.admission.landed(c.Size, 0)
		return fmt.Errorf("chunk %d at %d: %w", i, c.Offset, err)
	}
	s.chunks.Add(1)
	last, here := s.arrived(p, i)
	s.admission.landed(c.Size, here)
	if last && c.Suffix == hash.Chunk && !s.inPart(p.ref) {
		s.completeSoon(p)
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
	return p.pieces[i].have
}

func (p *partial) hasAll(first, last int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.ContainsFunc(p.pieces[first:last], func(c piece) bool { return !c.have })
}

// arrived notes a verified piece. It reports whether it was the last, and how many bytes are now in the file for it:
// none if the file was closed meanwhile.
func (s *Store) arrived(p *partial, i int) (last bool, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.pieces[i]
	if c.ahead {
		s.aheadBytes.Add(c.Size)
		if c.read {
			s.aheadUsed.Add(c.Size)
		}
	}
	if p.closed {
		return false, 0
	}
	c.have = true
	p.missing--
	p.bytes += c.Size
	return p.missing == 0, c.Size
}

// begins reports, once, that somebody has read the first piece.
func (p *partial) begins() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.begun
	p.begun = true
	return first
}

// isNew reports whether nobody has asked for some of the pieces [first, last) yet.
func (p *partial) isNew(first, last int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.pieces[first:last], func(c piece) bool { return !c.have && !c.read && !c.ahead })
}

func (p *partial) missingBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.Size - p.bytes
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
