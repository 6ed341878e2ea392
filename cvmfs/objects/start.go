package objects

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"cvmfs-graphdriver/cvmfs/fetch"
)

const (
	// startPieces are fetched at once of a profile: as many as a server is asked for at once, and some more so that it
	// is asked for the next one right away.
	startPieces = 48
	// startBytes bounds the plain bytes that are on their way for a profile, so that what a program asks for meanwhile
	// hasn't to share the link with many large pieces.
	startBytes = 8 << 20
	// startsFor is how long a program is taken to be starting once all of its profile is here. What it asks for besides
	// is all that is fetched until then.
	startsFor = 30 * time.Second
	// mostUnknown is the part of a profile, a quarter, that may be unknown for it to tell what a start reads.
	mostUnknown = 4
)

// Started is what became of a profile. Counts are of pieces: objects without chunks, and chunks.
type Started struct {
	Here    int   // they were here before
	Fetched int   // they are here now
	Bytes   int64 // plain, of Fetched
	Unknown int   // the image doesn't consist of them
	Failed  int   // they could not be had; whoever needs them will see
}

// StartOptions say how an image starts. The zero value is that of a start by the profile alone.
type StartOptions struct {
	// Around is how many bytes around a page are asked for with it, where it is more than when the profile was
	// recorded.
	Around int64
	Packs  []Pack // of the profile
	// First tells that a program is starting for the first time, also if all is here: else it is taken to have started.
	First bool
}

// Start fetches what a profile names of an image's objects, in order, several at once, unless it is here. Requests let
// those pass that somebody waits for. Until the program has started, half a minute, no neighbours of the image's
// objects are fetched, no object is completed because half of it was read, and none of any image because nobody waits;
// but for profiles that fit the image too little to tell what it reads. What packs have comes by them, if most of that
// is missing. Each piece of the image is asked for once at most, whatever the profile says, and may come in a pack
// besides. The error is that of the context, that of a full disk or cache, or, if no server can be reached, of
// fetch.ErrUnavailable: then the rest isn't tried.
func (s *Store) Start(ctx context.Context, x *Index, t *Table, p Profile, o StartOptions) (Started, error) {
	var done Started
	steps := t.steps(p, o.Around, &done)
	if done.Unknown <= len(p)/mostUnknown {
		leave := s.starts.enter(t)
		defer func() { leave(o.First || done.Fetched > 0) }()
	}
	ctx, cancel := context.WithCancelCause(fetch.LetPass(ctx))
	defer cancel(nil)
	var (
		mu      sync.Mutex // guards done
		tasks   sync.WaitGroup
		room    = semaphore.NewWeighted(startBytes)
		slots   = make(chan struct{}, startPieces)
		packing = make(chan struct{}, packsAtOnce)
	)
	get := func(st step, came bool) {
		r := Ref{x, t, st.pos}
		arrived, err := came, error(nil)
		if !came {
			arrived, err = s.startPiece(ctx, r, st.piece)
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil && arrived:
			done.Fetched++
			done.Bytes += st.stored.Size
			s.startBytes.Add(st.stored.Size)
		case err == nil:
			done.Here++
		case ends(err):
			cancel(err)
		default:
			done.Failed++
			s.log.Debug("object store: passed over at a start", slog.String("object", r.Name()), slog.Any("err", err))
		}
	}
	for _, l := range s.loads(ctx, x, t, steps, o.Packs) {
		size := min(l.size, startBytes)
		queue := slots
		if l.pack != nil {
			queue = packing
		}
		if take(ctx, queue) != nil || room.Acquire(ctx, size) != nil {
			break
		}
		tasks.Go(func() {
			defer give(queue)
			defer room.Release(size)
			if l.pack == nil {
				get(l.steps[0], false)
				return
			}
			came, err := s.startPack(ctx, x, t, &l)
			if err != nil {
				s.log.Debug("object store: a pack can't be used", slog.Int("pack", l.pack.First), slog.Any("err", err))
			}
			var rest errgroup.Group
			rest.SetLimit(chunksAtOnce)
			for _, st := range l.steps {
				rest.Go(func() error {
					get(st, came[st])
					return nil
				})
			}
			_ = rest.Wait() // none gives any
		})
	}
	tasks.Wait()
	return done, context.Cause(ctx)
}

// ends reports whether after an error of one piece others needn't be tried.
func ends(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errClosed) ||
		errors.Is(err, fetch.ErrUnavailable) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrLimit)
}

// startPiece has a piece be here, and reports whether that was needed.
func (s *Store) startPiece(ctx context.Context, r Ref, piece int) (bool, error) {
	if !r.Chunked() {
		return s.bring(ctx, r, nil, false)
	}
	p, err := s.missing(r)
	if p == nil || err != nil {
		return false, err
	}
	defer s.partials.release(p)
	if p.has(piece) {
		return false, nil
	}
	return true, s.need(ctx, p, piece, piece+1, s.reserve)
}

// step is a piece that a profile names.
type step struct {
	pos    uint32
	piece  int
	stored *Stored
	read   int // of the profile, counted from 0, that is of it; -1: none is, it is around one
}

// steps returns the pieces of a profile that the table has, in the profile's order, each once, with those that have
// bytes around what is read.
func (t *Table) steps(p Profile, around int64, done *Started) []step {
	pos := make(map[Name]int, len(p))
	for _, r := range p {
		pos[r.Name] = -1
	}
	for i := range t.Len() {
		n := t.record(i).name()
		if first, wanted := pos[n]; wanted && first < 0 {
			pos[n] = i
		}
	}
	var steps []step
	var own owned
	if around > 0 {
		own = owned{}
		for _, st := range t.steps(p, 0, &Started{}) {
			own[[2]int{int(st.pos), st.piece}] = st.read
		}
	}
	known := map[int]*untaken{}
	for n := range p {
		r := &p[n]
		i := pos[r.Name]
		if i < 0 {
			done.Unknown++
			continue
		}
		u := known[i]
		if u == nil {
			u = &untaken{stored: t.stored(i), next: map[int]int{}}
			known[i] = u
		}
		first, last := r.pieces(u.stored, around)
		if first >= len(u.stored) {
			done.Unknown++
			continue
		}
		for piece := u.from(first); piece < last; piece = u.from(piece) {
			u.next[piece] = piece + 1
			steps = append(steps, step{uint32(i), piece, &u.stored[piece], own.of(i, piece, n)})
		}
	}
	return steps
}

// owned is which read of a profile pieces of objects are of, where others are asked for around those.
type owned map[[2]int]int

// of returns which read a piece is of that a read asks for; -1: none.
func (o owned) of(pos, piece, asking int) int {
	if o == nil {
		return asking
	}
	if read, is := o[[2]int{pos, piece}]; is {
		return read
	}
	return -1
}

// pieces returns which pieces of the object a read, and what is around it, needs, [first, last). There may be no such.
func (r *Read) pieces(of []Stored, around int64) (first, last int) {
	if r.Unit == Chunks {
		return r.First, min(r.Last+1, len(of))
	}
	off, end := r.Range()
	off, end = max(off-around, 0), min(end, r.Name.Size-around)+around
	return within(len(of), func(i int) int64 { return of[i].Offset }, off, end)
}

// untaken are the pieces of an object that no read of a profile has named yet. A profile may name all of a large file
// in each of its lines: each piece is met once.
type untaken struct {
	stored []Stored
	next   map[int]int // of a piece that was taken, one behind it: none between is left
}

// from returns the first piece that isn't taken, from n on.
func (u *untaken) from(n int) int {
	end := n
	for next, taken := u.next[end]; taken; next, taken = u.next[end] {
		end = next
	}
	for n < end { // the next one needn't go all that way
		n, u.next[n] = u.next[n], end
	}
	return end
}

// Named is how much a profile names of an image.
type Named struct {
	Pieces  int   // objects without chunks, and chunks
	Bytes   int64 // plain, of these
	Unknown int   // reads of what the image doesn't consist of
}

// Of returns how much the profile names of an image.
func (p Profile) Of(t *Table) (n Named) {
	var done Started
	for _, s := range t.steps(p, 0, &done) {
		n.Pieces++
		n.Bytes += s.stored.Size
	}
	n.Unknown = done.Unknown
	return n
}

func (t *Table) stored(i int) []Stored {
	o := t.object(i)
	return o.Stored()
}

// starts are the images that start by a profile.
type starts struct {
	mu   sync.Mutex
	m    map[*Table]*startOf
	some atomic.Bool // m isn't empty
}

// startOf is the start of an image: profiles under way, and until when the program is taken to be starting.
type startOf struct {
	running int
	until   time.Time
}

// enter counts a start until leave is called, which says whether the program is taken to be starting for a while: where
// all was here, it has started before.
func (a *starts) enter(t *Table) (leave func(starting bool)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetOld(time.Now())
	if a.m == nil {
		a.m = map[*Table]*startOf{}
	}
	if a.m[t] == nil {
		a.m[t] = &startOf{}
	}
	a.m[t].running++
	a.some.Store(true)
	return func(starting bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.m[t].running--
		if starting {
			a.m[t].until = time.Now().Add(startsFor)
		}
	}
}

// forgetOld forgets what has started. The caller holds mu.
func (a *starts) forgetOld(now time.Time) {
	maps.DeleteFunc(a.m, func(_ *Table, s *startOf) bool { return s.running == 0 && now.After(s.until) })
	a.some.Store(len(a.m) > 0)
}

// any reports whether some image starts by a profile.
func (a *starts) any() bool {
	if !a.some.Load() {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetOld(time.Now())
	return len(a.m) > 0
}

// has reports whether an image starts by a profile.
func (a *starts) has(t *Table) bool {
	if !a.any() {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.m[t] != nil
}
