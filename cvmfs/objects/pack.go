package objects

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sort"
	"strconv"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/pack"
)

const (
	// packedBytes is how many plain bytes a pack has before the next read begins another; it has no more than twice as
	// many. A few packs are on their way at one time, and what is read first should come first.
	packedBytes = 2 << 20
	// packsAtOnce are on their way at one time.
	packsAtOnce = 3
	// mostPacks bounds how many packs an image can have.
	mostPacks = 4096
)

// Pack is a file of a repository that has what a start profile names, from one read of it on to where the next pack
// begins (package pack): objects and chunks of pack.MaxObject at most, in the order of the profile.
type Pack struct {
	FQRN  string
	First int // the read, counted from 0
	Stored
}

// Packs returns what is to be packed for a profile: by the read it begins with, the paths of a pack's stored objects.
// of has the objects by name; the profile may name others.
func (p Profile) Packs(of map[string]Object) map[int][]string {
	packs := map[int][]string{}
	known := map[string]bool{}
	first, size := 0, int64(0)
	for n := range p {
		o, some := of[p[n].Name.String()]
		if !some || o.External {
			continue
		}
		if size >= packedBytes {
			first, size = n, 0
		}
		all := o.Stored()
		from, to := p[n].pieces(all, 0)
		for i := from; i < to; i++ {
			path := all[i].request().Path
			if all[i].isPacked() && !known[path] && size < 2*packedBytes {
				known[path] = true
				packs[first] = append(packs[first], path)
				size += all[i].Size
			}
		}
	}
	return packs
}

// isPacked reports whether this belongs in a pack.
func (s *Stored) isPacked() bool { return s.Size <= pack.MaxObject && !s.External }

// load is what is fetched by one request for a start: a step, or a pack that is to have several.
type load struct {
	pack  *Pack // nil: the one step
	steps []step
	size  int64 // plain bytes
}

// loads puts steps together that a pack is to have, if most of them are missing.
func (s *Store) loads(ctx context.Context, x *Index, t *Table, steps []step, packs []Pack) (loads []load) {
	packs = slices.SortedFunc(slices.Values(packs), func(a, b Pack) int { return cmp.Compare(a.First, b.First) })
	packs = packs[:min(len(packs), mostPacks)]
	of := map[*Pack]*load{}
	var all []*load
	for _, st := range steps {
		p := packOf(packs, t, st)
		l := of[p]
		switch {
		case p != nil && l != nil && l.size >= 2*packedBytes:
			l = &load{} // the pack has no room for it
			all = append(all, l)
		case p == nil || l == nil:
			l = &load{pack: p}
			of[p], all = l, append(all, l)
		}
		l.steps, l.size = append(l.steps, st), l.size+st.stored.Size
	}
	for _, l := range all {
		if l.pack == nil || s.isWorth(ctx, x, t, l) {
			loads = append(loads, *l)
			continue
		}
		for _, st := range l.steps {
			loads = append(loads, load{steps: []step{st}, size: st.stored.Size})
		}
	}
	return loads
}

// packOf returns the pack, of some in order, that is to have a step; nil if none is.
func packOf(packs []Pack, t *Table, st step) *Pack {
	n := sort.Search(len(packs), func(i int) bool { return packs[i].First > st.read }) - 1
	if n < 0 || st.read < 0 || !st.stored.isPacked() || t.repo(int(st.pos)) != packs[n].FQRN {
		return nil
	}
	return &packs[n]
}

// isWorth reports whether most of what a pack is to have is missing, and no more lies in it than that can be.
func (s *Store) isWorth(ctx context.Context, x *Index, t *Table, l *load) bool {
	if l.pack.Size > l.size+l.size/8+256*int64(len(l.steps)) {
		return false
	}
	missing := int64(0)
	for _, st := range l.steps {
		if ctx.Err() != nil {
			return false
		}
		if !s.hasPiece(Ref{x, t, st.pos}, st.piece) {
			missing += st.stored.Size
		}
	}
	return len(l.steps) > 1 && missing >= l.size/2
}

// hasPiece reports whether a piece of an object, or all of it, is here.
func (s *Store) hasPiece(r Ref, piece int) bool {
	if s.Has(r) || s.holds.has(r.Name()) {
		return true
	}
	if !r.Chunked() {
		return false
	}
	p := s.partials.get(r.Name())
	if p == nil {
		return false
	}
	defer s.partials.release(p)
	return p.has(piece)
}

// startPack has what is missing of a load come by its pack, and reports which of its steps have. What doesn't come so
// can be asked for by itself.
func (s *Store) startPack(ctx context.Context, x *Index, t *Table, l *load) (came map[step]bool, err error) {
	came = map[step]bool{}
	wanted := map[string]step{}
	for _, st := range l.steps {
		wanted[st.stored.request().Path] = st
	}
	f, err := s.cfg.Sources.Fetcher(l.pack.FQRN)
	if err != nil {
		return came, err
	}
	err = f.Do(ctx, l.pack.request(), func(body io.Reader) error {
		r := pack.NewReader(bufio.NewReaderSize(io.LimitReader(body, l.pack.Size), bufferSize))
		for {
			path, size, err := r.Next()
			switch {
			case errors.Is(err, io.EOF):
				return atEnd(body)
			case errors.Is(err, pack.ErrFormat):
				return fmt.Errorf("%w: %w", fetch.ErrBadData, err)
			case err != nil:
				return err
			}
			st, is := wanted[path]
			if !is || came[st] || size > storedLimit(st.stored.Size) || s.hasPiece(Ref{x, t, st.pos}, st.piece) {
				continue
			}
			b := make([]byte, size)
			if _, err := io.ReadFull(r, b); err != nil {
				return err
			}
			if st.stored.Digest.Algorithm.Digest(b) != st.stored.Digest {
				continue
			}
			switch came[st], err = s.unpackPiece(ctx, Ref{x, t, st.pos}, st, b); {
			case err != nil && ends(err):
				return err
			case err != nil:
				s.log.Debug("object store: not taken out of a pack", slog.String("object", path), slog.Any("err", err))
			}
		}
	})
	return came, err
}

// atEnd reports what keeps a body from being at its end.
func atEnd(body io.Reader) error {
	switch _, err := io.ReadFull(body, make([]byte, 1)); {
	case err == nil:
		return fmt.Errorf("%w: longer than the catalog says", fetch.ErrBadData)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// unpackPiece makes a piece of an object be here, of its stored bytes, which are what its digest says: a server would
// give no others. It reports whether that was needed. What is on its way already is left alone. Nothing is asked for:
// the caller's request has a connection that others may be waiting for.
func (s *Store) unpackPiece(ctx context.Context, r Ref, st step, stored []byte) (arrived bool, err error) {
	get := func(_ context.Context, of Stored, w *part) error {
		return of.sized(w, func(w Resetter) error {
			if err := w.Reset(); err != nil {
				return err
			}
			return unpack(bytes.NewReader(stored), of.Digest, of.Compression, of.Size, w)
		})
	}
	if !r.Chunked() {
		n := r.named()
		if s.flights.has(n.Name()) {
			return false, nil
		}
		return s.bringMissing(ctx, n, -1, nil, false, get)
	}
	p, err := s.missing(r)
	if p == nil || err != nil {
		return false, err
	}
	defer s.partials.release(p)
	key := strconv.Itoa(st.piece)
	if p.flights.has(key) {
		return false, nil
	}
	err = s.join(ctx, &p.flights, key, func(ctx context.Context) error {
		return s.arrivePiece(ctx, p, st.piece, s.reserve, get)
	})
	return err == nil, err
}
