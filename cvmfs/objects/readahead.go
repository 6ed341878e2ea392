package objects

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/fetch"
)

const (
	// aheadPiece is the largest piece that is fetched ahead of a reader who may never come to it.
	aheadPiece = 1 << 20
	// aheadOfFile is how many bytes of a file are fetched ahead of where somebody reads on, at most.
	aheadOfFile = 4 << 20
	// mostUnread is how many bytes of a file may have come ahead and not be read, unless half as many were.
	mostUnread = 16 << 20
	// mostWanted is how many pieces are picked at once, and mostAhead how many of all files may be on their way that
	// nobody waits for: an image may have chunks of a byte each.
	mostWanted = 256
	mostAhead  = 1024
	// endPieces are fetched of the end of an object whose beginning is read.
	endPieces = 2
	// blockSize is Config.Block unless that says otherwise (ADR 33).
	blockSize = 512 << 10
)

// readOn takes note of a read, and fetches what may be read next: those that begin in the same block, and the pieces
// that follow, as long as no more bytes wait to be read than have been, but for those of one block. So whoever reads on
// has ever more ahead of him, and where what is ahead isn't used next to nothing more comes. With the first piece come
// the last. Once enough of the object is read, the rest is fetched, so that it becomes a file.
func (s *Store) readOn(p *partial, off, end int64) {
	first, last := p.within(off, end)
	ahead := !s.cfg.NothingAhead && !s.starts.has(p.ref.t)
	used, whole := p.noteRead(first, last, ahead)
	s.aheadUsed.Add(used)
	switch {
	case whole:
		s.completeSoon(p)
	case ahead:
		if first == 0 {
			s.fetchAhead(p, p.wantEnd())
		}
		s.fetchAhead(p, append(p.wantAround(first, last, s.cfg.Block), p.wantNext(last, off, end)...))
	}
}

// fetchAhead fetches pieces of an object in the background.
func (s *Store) fetchAhead(p *partial, pieces []int) {
	for _, i := range pieces {
		if s.piecesAhead.Add(1) > mostAhead {
			s.piecesAhead.Add(-1)
			p.failed(&p.pieces[i]) // it may be wanted again
			continue
		}
		s.tasks.start(func() {
			defer s.piecesAhead.Add(-1)
			if err := s.FetchPieces(fetch.LetPass(s.life), p.ref, i); err != nil { // whoever needs it will see
				s.log.Debug("object store: a chunk can't be fetched ahead", slog.Any("err", err))
			}
		})
	}
}

// noteRead marks pieces as read. It returns how many bytes of them were here, fetched ahead, and whether the rest of
// the object is to be fetched now, if it may be.
func (p *partial) noteRead(first, last int, may bool) (used int64, whole bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := first; i < last; i++ {
		c := &p.pieces[i]
		if c.read {
			continue
		}
		c.read = true
		p.read += c.Size
		if c.ahead && !c.apart {
			p.ahead -= c.Size
			p.hit += c.Size
		}
		if c.ahead && c.have {
			used += c.Size
		}
	}
	whole = may && !p.completing && len(p.Chunks) > 0 && p.missing > 0 && p.read >= p.Size/completePart
	p.completing = p.completing || whole
	return used, whole
}

// wantAround picks pieces to fetch ahead after a read of pieces [first, last): those that begin in the same block, the
// ones behind before the ones in front.
func (p *partial) wantAround(first, last int, block int64) (list []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last <= first {
		return nil
	}
	want := func(i int) bool {
		c := &p.pieces[i]
		if c.have || c.read || c.ahead {
			return true
		}
		if p.ahead+c.Size > max(min(p.read+block, mostUnread), 2*p.hit) || len(list) == mostWanted {
			return false
		}
		p.expect(c)
		list = append(list, i)
		return true
	}
	of := func(i int) int64 { return p.pieces[i].Offset / block }
	for i := last; i < len(p.pieces) && of(i) == of(last-1) && want(i); i++ {
	}
	for i := first - 1; i >= 0 && of(i) == of(first) && want(i); i-- {
	}
	return list
}

// wantNext picks pieces to fetch ahead after a read of a range, from piece next on. Of large ones it is one, and only
// for a reader who goes on where he has ended and has passed the middle of the piece he reads.
func (p *partial) wantNext(next int, off, end int64) (list []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	goesOn := off == p.end
	if !goesOn {
		p.run = 0
	}
	p.run += end - off
	p.end = end
	for i := next; i < len(p.pieces) && len(list) < mostWanted; i++ {
		c, before := &p.pieces[i], &p.pieces[i-1]
		switch large := c.Size > aheadPiece; {
		case c.have || c.read || c.ahead:
		case large && goesOn && i == next && end >= before.Offset+before.Size/2:
			p.expect(c)
			return append(list, i)
		case large:
			return list
		case goesOn && c.Offset+c.Size-end <= min(p.run, aheadOfFile):
			p.expect(c)
			list = append(list, i)
		case p.ahead+c.Size > min(p.read, aheadOfFile):
			return list
		default:
			p.expect(c)
			list = append(list, i)
		}
	}
	return list
}

// wantEnd picks the last pieces of a large object. Many kinds of files have at their end what tells where the rest is,
// or what is read first: libraries, archives.
func (p *partial) wantEnd() (list []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := max(len(p.pieces)-endPieces, 0); i < len(p.pieces); i++ {
		if c := &p.pieces[i]; c.Size <= aheadPiece && !c.have && !c.read && !c.ahead {
			c.apart = true
			p.expect(c)
			list = append(list, i)
		}
	}
	return list
}

// expect marks a piece as one that nobody has asked for yet. The caller holds mu.
func (p *partial) expect(c *piece) {
	if !c.read && !c.ahead {
		c.ahead = true
		if !c.apart {
			p.ahead += c.Size
		}
	}
}

// failed takes that back for a piece that could not be had.
func (p *partial) failed(c *piece) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.ahead && !c.have {
		if !c.read && !c.apart {
			p.ahead -= c.Size
		}
		c.ahead, c.apart = false, false
	}
}

// FetchPieces makes pieces of an object be here before anybody asks for them: chunks by their numbers, or piece 0 of an
// object without chunks. Together with those that are read they become the object once all are here. Errors are those
// of Fetch.
func (s *Store) FetchPieces(ctx context.Context, r Ref, pieces ...int) error {
	if !r.Chunked() {
		return s.Fetch(ctx, r)
	}
	p, err := s.missing(r)
	if p == nil || err != nil {
		return err
	}
	defer s.partials.release(p)
	if n := len(p.pieces); slices.ContainsFunc(pieces, func(i int) bool { return i < 0 || i >= n }) {
		return fmt.Errorf("object %s has %d chunks: there is none of %v", p.name, n, pieces)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(chunksAtOnce)
	for _, i := range pieces {
		c := &p.pieces[i]
		p.mu.Lock()
		p.expect(c)
		p.mu.Unlock()
		g.Go(func() error {
			err := s.need(ctx, p, i, i+1, s.reserve)
			if err != nil {
				p.failed(c)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("fetch chunks of object %s: %w", p.name, err)
	}
	return nil
}

// completeSoon fetches the rest of an object in the background.
func (s *Store) completeSoon(p *partial) {
	s.tasks.start(func() {
		if _, err := s.bring(fetch.LetPass(s.life), p.ref, s.slots, false); err != nil {
			// Nobody waits for the complete object: the partial file still serves.
			s.log.Debug("object store: complete object not kept", slog.String("object", p.name), slog.Any("err", err))
		}
	})
}
