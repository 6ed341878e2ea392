package objects

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/test/testutil"
)

// readingStore is a store that fetches ahead of readers.
func readingStore(t *testing.T, r *repository) *Store {
	t.Helper()
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, r.URL)})
	cfg.NothingAhead, cfg.Block = false, 1
	return open(t, cfg)
}

// reads reads a range, which must be what it is.
func reads(t *testing.T, s *Store, r Ref, plain []byte, off, n int) {
	t.Helper()
	b := make([]byte, n)
	if n, err := s.ReadAt(t.Context(), r, b, int64(off)); n < len(b) || !bytes.Equal(b, plain[off:][:len(b)]) {
		t.Fatalf("%d bytes at %d: %d, %v", len(b), off, n, err)
	}
}

// at rest waits until nothing is under way.
func atRest(t *testing.T, s *Store) {
	t.Helper()
	eventually(t, "rest", func() bool {
		s.ahead.mu.Lock() // a worker may have taken from the queue what doesn't fly yet
		idle := s.ahead.workers == 0 && len(s.ahead.queue) == 0
		s.ahead.mu.Unlock()
		s.admission.mu.Lock()
		defer s.admission.mu.Unlock()
		return idle && s.admission.flying == 0 && s.Stats().Waiting == 0
	})
}

func TestReadNowReadsWhatIsHereAndNothingElse(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	plain, whole := noise(1, 10_000), noise(2, 5000)
	r, other := ref(t, repo.chunked(plain, 1000)), ref(t, repo.whole(whole))
	if err := s.Fetch(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1500)
	if n, ok := s.ReadNow(r, b, 0); ok {
		t.Errorf("%d bytes of an object that nobody has read", n)
	}
	reads(t, s, r, plain, 3000, 2000)
	asked := repo.Requests("")
	recording := s.Record()
	if n, ok := s.ReadNow(r, b, 3200); !ok || n != len(b) || !bytes.Equal(b, plain[3200:4700]) {
		t.Errorf("%d bytes of what is here, %v", n, ok)
	}
	if n := recording.Len(); n != 2 {
		t.Errorf("%d pages are recorded, want the two that it has bytes of", n)
	}
	recording.Stop()
	for _, off := range []int64{-1, 0, 2999, 4000, 9000, 10_000, math.MaxInt64} {
		if n, ok := s.ReadNow(r, b, off); ok {
			t.Errorf("%d bytes at %d, which aren't all here", n, off)
		}
	}
	if n, ok := s.ReadNow(other, b, 0); ok {
		t.Errorf("%d bytes of an object that is here as a whole", n)
	}
	if n := repo.Requests(""); n != asked {
		t.Errorf("%d requests", n-asked)
	}
}

func TestWhoReadsOnHasEverMoreAhead(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	plain := noise(1, 100_000)
	r := ref(t, repo.chunked(plain, 1000))
	for i, want := range []int{4, 6, 8, 10, 12} { // chunks read, as many ahead, and two of the end
		reads(t, s, r, plain, i*1000, 1000)
		eventually(t, fmt.Sprintf("%d chunks", want), func() bool { return repo.Requests("") == want })
		atRest(t, s)
	}
	st := s.Stats()
	if st.AheadBytes != 5000+4000+2000 || st.AheadUsed != 4000 {
		t.Errorf("%d bytes ahead, of which %d were read; want 11000 and 4000", st.AheadBytes, st.AheadUsed)
	}
}

func TestWhoJumpsHasLittleAheadInVain(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	plain := noise(1, 100_000)
	r := ref(t, repo.chunked(plain, 1000))
	for i := range 10 {
		reads(t, s, r, plain, i*10_000, 1)
	}
	eventually(t, "what was read, and what is ahead", func() bool { return repo.Requests("") >= 21 })
	atRest(t, s)
	if n := repo.Requests(""); n > 22 { // two are of the end

		t.Errorf("%d chunks were fetched, for 10 that were read", n)
	}
	if st := s.Stats(); st.AheadUsed != 0 {
		t.Errorf("%d bytes ahead count as read", st.AheadUsed)
	}
}

func TestALargeChunkComesAheadOnlyOfWhoIsHalfThroughTheOneBefore(t *testing.T) {
	t.Parallel()
	const size = aheadPiece + 1000
	repo := newRepository(t)
	s := readingStore(t, repo)
	plain := noise(1, 5*size)
	r := ref(t, repo.chunked(plain, size))
	reads(t, s, r, plain, size/2+10, 10) // in the second half, but out of the blue
	atRest(t, s)
	if n := repo.Requests(""); n != 1 {
		t.Errorf("%d chunks for one read", n)
	}
	reads(t, s, r, plain, size/2+20, 10)
	eventually(t, "the next chunk", func() bool { return repo.Requests("") == 2 })
}

func TestOthersOfABlockComeWithAPieceOfIt(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	cfg.NothingAhead, cfg.Block = false, 4000
	s := open(t, cfg)
	plain := noise(1, 100_000)
	r := ref(t, repo.chunked(plain, 1000))
	for _, c := range []struct{ read, requests int }{
		{50, 4},  // 48 to 51
		{49, 4},  // it is here
		{90, 8},  // 88 to 91
		{10, 12}, // 8 to 11
		{30, 14}, // of what came ahead nothing was read but 49: from now on one comes with each that is read
		{70, 16},
	} {
		reads(t, s, r, plain, c.read*1000, 1)
		eventually(t, fmt.Sprintf("%d requests", c.requests), func() bool { return repo.Requests("") >= c.requests })
		atRest(t, s)
		if n := repo.Requests(""); n != c.requests {
			t.Errorf("%d requests after a read of chunk %d, want %d", n, c.read, c.requests)
		}
	}
}

func TestWhatIsReadToAHalfIsCompleted(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	plain := noise(1, 10_000)
	r := ref(t, repo.chunked(plain, 1000))
	for i := range 4 { // from the end, where nothing follows that could be fetched ahead
		reads(t, s, r, plain, 9000-1000*i, 1)
	}
	atRest(t, s)
	if n := repo.Requests(""); n != 4 || s.Has(r) {
		t.Fatalf("%d chunks came for 4 that were read", n)
	}
	reads(t, s, r, plain, 5000, 1)
	eventually(t, "the object", func() bool { return s.Has(r) })
	holds(t, s, r, plain)
	if n := repo.Requests(""); n != 10 {
		t.Errorf("%d requests for 10 chunks", n)
	}
}

func TestWhatIsPartlyHereIsCompletedWhenNobodyWaits(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	cfg.NothingAhead, cfg.Idle = false, 50*time.Millisecond
	s := open(t, cfg)
	plain, other := noise(1, 10_000), noise(2, 10_000)
	all := refs(t, repo.chunked(plain, 1000), repo.chunked(other, 1000), repo.chunked(noise(3, 10_000), 1000))
	reads(t, s, all[0], plain, 0, 1)
	reads(t, s, all[1], other, 5000, 1)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	go s.Run(ctx)
	eventually(t, "both objects", func() bool { return s.Has(all[0]) && s.Has(all[1]) && s.Stats().Partials == 0 })
	if n := repo.Requests(""); n != 20 {
		t.Errorf("%d requests: of the third, nothing was read", n)
	}
	if s.Has(all[2]) {
		t.Error("what nobody has asked for came")
	}
}

func TestNothingIsEvictedToCompleteWhatIsPartlyHere(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	cfg.Limits = Limits{Limit: 40_000, Floor: 1}
	s := open(t, cfg)
	plain, other := noise(1, 20_000), noise(2, 30_000)
	all := refs(t, repo.chunked(plain, 1000), repo.whole(other))
	if err := s.Fetch(t.Context(), all[1]); err != nil {
		t.Fatal(err)
	}
	reads(t, s, all[0], plain, 0, 1)
	s.quiet.since.Store(0)
	p := s.partials.latest()
	if p == nil {
		t.Fatal("there is nothing to complete")
	}
	defer s.partials.release(p)
	if s.completeGently(t.Context(), p) || !s.Has(all[1]) || s.Has(all[0]) {
		t.Errorf("completed beyond the limit; the other object: %v", s.Has(all[1]))
	}
}

func TestPiecesAreFetchedAhead(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	plain := noise(1, 10_000)
	r := ref(t, repo.chunked(plain, 1000))
	if err := s.FetchPieces(t.Context(), r, 7, 2); err != nil {
		t.Fatal(err)
	}
	if n := repo.Requests(""); n != 2 {
		t.Errorf("%d requests", n)
	}
	reads(t, s, r, plain, 2500, 1)
	reads(t, s, r, plain, 7999, 1)
	if st := s.Stats(); repo.Requests("") != 2 || st.AheadBytes != 2000 || st.AheadUsed != 2000 {
		t.Errorf("%d requests, %d bytes ahead, %d used", repo.Requests(""), st.AheadBytes, st.AheadUsed)
	}
	if err := s.FetchPieces(t.Context(), r, 3, 10); err == nil {
		t.Error("chunk 10 of 10 was fetched")
	}
	repo.Set(testutil.Fault{Status: 500})
	if err := s.FetchPieces(t.Context(), r, 4); err == nil {
		t.Error("no error of a server that fails")
	}
	repo.Set(testutil.Fault{})
	if err := s.FetchPieces(t.Context(), r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the object", func() bool { return s.Has(r) })
	holds(t, s, r, plain)
	if err := s.FetchPieces(t.Context(), r, 1); err != nil {
		t.Error(err)
	}
	whole := ref(t, repo.whole(plain))
	if err := s.FetchPieces(t.Context(), whole, 0); err != nil || !s.Has(whole) {
		t.Errorf("an object without chunks: %v", err)
	}
}

// few are objects of one neighbourhood.
func few(t *testing.T, repo *repository, n int) []Ref {
	t.Helper()
	var objs []Object
	for i := range n {
		objs = append(objs, repo.whole(noise(i, 1000)))
	}
	return refs(t, objs...)
}

func TestNeighboursComeBehindWhatIsAskedFor(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	all := few(t, repo, 10)
	var others []Object
	for i := range 4 { // as many as may be under way before the first is answered
		others = append(others, repo.whole(noise(100+i, 1000)))
	}
	repo.Set(testutil.Fault{Silent: true})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, r := range refs(t, others...) {
		go s.Fetch(ctx, r) // till it is canceled
	}
	eventually(t, "the other requests", func() bool { return repo.Requests("") == len(others) })
	fetched := make(chan error, 1)
	go func() { fetched <- s.FetchNear(t.Context(), all[0]) }()
	plain := noise(9, 10_000)
	large := ref(t, repo.chunked(plain, 1000))
	read := make(chan error, 1)
	go func() {
		_, err := s.ReadAt(t.Context(), large, make([]byte, 1), 0)
		read <- err
	}()
	go s.ReadNear(t.Context(), all[8], func(ctx context.Context) {
		_, err := s.ReadAt(ctx, all[8], make([]byte, 1), 0)
		read <- err
	})
	eventually(t, "the requests in the queue", func() bool { return s.Stats().Waiting == int64(len(others)+3) })
	s.ahead.mu.Lock()
	if n := len(s.ahead.recent); n != 0 {
		t.Errorf("%d objects were asked for as neighbours before the object was", n)
	}
	s.ahead.mu.Unlock()
	p, err := s.partial(large)
	if err != nil {
		t.Fatal(err)
	}
	defer s.partials.release(p)
	if p.mu.Lock(); p.ahead != 0 {
		t.Errorf("%d bytes that follow were asked for before the chunk was", p.ahead)
	}
	p.mu.Unlock()
	repo.Set()
	cancel()
	if err := errors.Join(<-fetched, <-read, <-read); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the neighbours", func() bool { return s.Stats().Prefetched > 0 })
	eventually(t, "the chunk that follows", func() bool { return p.has(1) })
}

func TestARequestGoesOutWhileWhatFollowsItIsAskedFor(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	r := few(t, repo, 1)[0]
	arrived := make(chan bool, 1)
	ctx := s.whenAsked(t.Context(), func() {
		came := false
		for end := time.Now().Add(10 * time.Second); !came && time.Now().Before(end); time.Sleep(time.Millisecond) {
			came = repo.Requests("") == 1
		}
		arrived <- came
	})
	if err := s.Fetch(ctx, r); err != nil {
		t.Fatal(err)
	}
	if !<-arrived {
		t.Error("the request was held back")
	}
}

func TestChunksThatComeAheadTakeNoReadersSlot(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	cfg.NothingAhead, cfg.Block = false, 2000
	s := open(t, cfg)
	s.slots = make(chan struct{}, 2)
	all := refs(t, repo.chunked(noise(1, 10_000), 1000), repo.chunked(noise(2, 10_000), 1000))
	repo.Set(testutil.Fault{Silent: true})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i, r := range all {
		go s.ReadAt(ctx, r, make([]byte, 1), 2000) // till it is canceled
		// Of each the chunk that is read, and the other of its block.
		eventually(t, "the requests", func() bool { return repo.Requests("") == 2*(i+1) })
	}
}

func TestNeighboursAreHeldUntilTheyAreAskedFor(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	all := few(t, repo, 4)
	s.Near(all[0])
	eventually(t, "three neighbours", func() bool { return s.Stats().Prefetched == 3 })
	atRest(t, s)
	if s.Has(all[1]) {
		t.Fatal("a kernel would find what nobody has asked for")
	}
	if st, err := s.Status(); err != nil || st.Partial != 3000 || st.Objects != 0 {
		t.Errorf("%d bytes count as partly here, and %d objects, %v", st.Partial, st.Objects, err)
	}
	for i := 1; i < 3; i++ {
		if err := s.Fetch(t.Context(), all[i]); err != nil {
			t.Fatal(err)
		}
		holds(t, s, all[i], noise(i, 1000))
	}
	if st := s.Stats(); repo.Requests("") != 3 || st.AheadBytes != 3000 || st.AheadUsed != 2000 {
		t.Errorf("%d requests, %d bytes ahead, %d used", repo.Requests(""), st.AheadBytes, st.AheadUsed)
	}
	s.settle(time.Now())
	if !s.Has(all[3]) {
		t.Error("what nobody asked for in time is not kept")
	}
	if st, err := s.Status(); err != nil || st.Partial != 0 || st.Objects != 3 || st.Wanted != 2000 {
		t.Errorf("%d bytes partly here, %d objects, %d bytes wanted, %v", st.Partial, st.Objects, st.Wanted, err)
	}
}

// A removed image gives back also what nobody had asked for yet, or asked for whole.
func TestRemovedImageGivesItsPartsBack(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	all := few(t, repo, 4)
	s.Near(all[0])
	eventually(t, "three neighbours", func() bool { return s.Stats().Prefetched == 3 })
	atRest(t, s)
	if st, err := s.Status(); err != nil || st.Partial == 0 {
		t.Fatalf("nothing is held: %+v, %v", st, err)
	}
	s.Forget(all[0].t)
	if st, err := s.Status(); err != nil || st.Partial != 0 {
		t.Errorf("%d bytes are held, %v", st.Partial, err)
	}
}

func TestHeldObjectsMakeRoom(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	cfg.NothingAhead = false
	cfg.Limits = Limits{Limit: 30_000, Floor: 1}
	s := open(t, cfg)
	all := few(t, repo, 4)
	big := ref(t, repo.whole(noise(9, 28_500)))
	s.Near(all[0])
	eventually(t, "three neighbours", func() bool { return s.Stats().Prefetched == 3 })
	atRest(t, s)
	if err := s.Fetch(t.Context(), big); err != nil {
		t.Fatalf("held objects keep out what is asked for: %v", err)
	}
	if st, err := s.Status(); err != nil || st.Partial != 0 {
		t.Errorf("%d bytes are held, %v", st.Partial, err)
	}
	if err := s.Fetch(t.Context(), all[1]); err == nil && repo.Requests("") != 5 {
		t.Errorf("%d requests: it was given up", repo.Requests(""))
	}
}

func TestHeldObjectsAreStoredAtTheEndAndLostWithoutOne(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	dir := t.TempDir()
	cfg := configIn(dir, sources{"r": fetcher(t, repo.URL)})
	cfg.NothingAhead = false
	killed := open(t, cfg)
	all := few(t, repo, 4)
	killed.Near(all[0])
	eventually(t, "three neighbours", func() bool { return killed.Stats().Prefetched == 3 })
	s := open(t, cfg) // as if the other were dead
	if left, err := os.ReadDir(filepath.Join(cfg.Dir, tmpFolder)); err != nil || len(left) > 0 {
		t.Errorf("%v is left behind, %v", left, err)
	}
	if s.Has(all[1]) || s.Has(all[3]) {
		t.Error("a held object has a name")
	}
	s.Near(all[0])
	eventually(t, "three neighbours again", func() bool { return s.Stats().Prefetched == 3 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < 4; i++ {
		if _, err := os.Stat(filepath.Join(cfg.Dir, all[i].Path())); err != nil {
			t.Error(err)
		}
	}
}

func TestNeighboursComeWhereTheyAreUsed(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	all := few(t, repo, neighbourhood)
	came := func(asked int) int { return repo.Requests("") - asked }
	ask := func(i int, wait time.Duration) {
		s.readers.wait.Store(int64(wait)) // whatever this machine is busy with
		s.Near(all[i])
		if err := s.Fetch(t.Context(), all[i]); err != nil {
			t.Fatal(err)
		}
		atRest(t, s)
	}
	ask(20, 0)
	if n := came(1); n != 2*leastGrant {
		t.Errorf("%d neighbours came for one object, want %d", n, 2*leastGrant)
	}
	s.Near(all[20]) // again: another reader, or the next page
	atRest(t, s)
	if n := came(1); n != 2*leastGrant {
		t.Errorf("%d neighbours came for one object that was asked for twice, want %d", n, 2*leastGrant)
	}
	ask(21, 0) // one of them
	if n := repo.Requests(""); n != 1+3*leastGrant {
		t.Errorf("%d objects came for two, want %d", n, 1+3*leastGrant)
	}
	ask(19, time.Second) // a long way
	if n := repo.Requests(""); n < 1+3*mostGrant {
		t.Errorf("%d objects came over a long way, want %d", n, 1+4*mostGrant)
	}
}

// An image may have a file in chunks of some bytes each: they aren't all asked for at once.
func TestSoManyChunksAreAskedForAheadAndNoMore(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	o := Object{Size: 4000}
	for i := range int64(4000) {
		o.Chunks = append(o.Chunks, catalog.Chunk{Offset: i, Size: 1, Digest: hash.SHA1.Digest([]byte{0})})
	}
	p, err := s.partial(ref(t, o))
	if err != nil {
		t.Fatal(err)
	}
	defer s.partials.release(p)
	p.read = p.Size
	for name, list := range map[string][]int{
		"around": p.wantAround(1000, 1001, 4000), "next": p.wantNext(2000, 2000, 2001), "a part": p.wantPart(3000, 1000),
	} {
		if len(list) != mostWanted {
			t.Errorf("%s: %d chunks are wanted, want %d", name, len(list), mostWanted)
		}
	}
	s.piecesAhead.Store(mostAhead)
	p.pieces[1].ahead = true
	s.fetchAhead(p, []int{1})
	if p.pieces[1].ahead || s.piecesAhead.Load() != mostAhead || repo.Requests("") > 0 {
		t.Error("a chunk comes ahead though enough are on their way")
	}
}
