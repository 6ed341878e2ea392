package objects

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/test/testutil"
)

// want is the read of an object, or of chunks of it.
func want(r Ref, chunks ...int) Read {
	n := r.record().name()
	if len(chunks) == 0 {
		return Read{Name: n}
	}
	return Read{n, Chunks, chunks[0], chunks[len(chunks)-1]}
}

// pages is the read of pages of an object.
func pages(r Ref, first, last int) Read { return Read{r.record().name(), Pages, first, last} }

func TestProfileIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	all := refs(t, repo.whole(noise(1, 100)), repo.chunked(noise(2, 5000), 1000))
	for _, p := range []Profile{
		{want(all[1], 2), want(all[0]), want(all[1], 0, 1), want(all[1], 4)},
		{want(all[1]), want(all[0]), pages(all[1], 0, 1), pages(all[1], 0, 0), pages(all[0], 0, 0)},
	} {
		b := p.Encode()
		got, err := ParseProfile(b)
		if err != nil {
			t.Fatal(err)
		}
		if string(got.Encode()) != string(b) || !slices.Equal(got, p) {
			t.Errorf("got %v, want %v", got, p)
		}
	}
	if empty, err := ParseProfile(Profile{}.Encode()); err != nil || len(empty) != 0 {
		t.Errorf("an empty one: %v, %v", empty, err)
	}
}

func TestWrongProfilesAreRefused(t *testing.T) {
	t.Parallel()
	const whole, chunked = "5798f7f4ca7585d850eea64610a1f73d8f8de7a3.z.6", "5798f7f4ca7585d850eea64610a1f73d8f8de7a3.zc.6"
	for _, c := range []struct{ text, says string }{
		{"", "is none, or of a newer version"},
		{"cvmfs start profile 3\n" + whole, "is none, or of a newer version"},
		{profileHead + "\n\n", "line 2"},
		{profileHead + "\n../../etc/passwd\n", "line 2"},
		{profileHead + "\n" + whole + "\n" + whole + ".0123456789abcdef\n", "line 3: object"},
		{chunksHead + "\n" + whole + " 1\n", "behind no other"},
		{chunksHead + "\n" + chunked + "\n", "behind an object that has some"},
		{chunksHead + "\n" + chunked + " 0-999999999\n", "none such"},
		{profileHead + "\n" + whole + " 1\n", "none such"},
		{profileHead + "\n" + strings.Replace(whole, ".6", ".0", 1) + " 0\n", "none such"},
		{profileHead + "\n" + chunked + " x\n", "want a number"},
		{profileHead + "\n" + chunked + " 1-\n", "want a number"},
		{profileHead + "\n" + chunked + " 2-1\n", "none such"},
		{profileHead + "\n" + chunked + " -1\n", "want a number"},
		{profileHead + "\n" + chunked + " 0-999999999\n", "none such"},
		{profileHead + strings.Repeat("\n", MaxProfile), "the limit is"},
	} {
		if _, err := ParseProfile([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.80q: %v, want %q", c.text, err, c.says)
		}
	}
}

// A profile names all chunks of a large file again and again. That it is read is the work of the file, and of the
// profile.
func TestProfileOfRepetitionsIsReadFast(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	all := refs(t, repo.chunked(noise(1, 20_000), 10))
	read := func(n int) (steps []step, took time.Duration) {
		p := make(Profile, n)
		for i := range p {
			p[i] = want(all[0], i%100, 1<<20)
		}
		p[0], p[1] = want(all[0], 7), want(all[0], 5, 6, 9)
		took = time.Hour
		for range 3 {
			began := time.Now()
			steps = all[0].t.steps(p, 0, &Started{})
			took = min(took, time.Since(began))
		}
		return steps, took
	}
	_, tenth := read(10_000)
	steps, whole := read(100_000)
	if whole > 50*tenth { // 10 times as long, or 100 if each line were compared with all others
		t.Errorf("10,000 lines take %v, 100,000 lines %v", tenth, whole)
	}
	var order []int
	for _, s := range steps[:6] {
		order = append(order, s.piece)
	}
	if len(steps) != 2000 || !slices.Equal(order, []int{7, 5, 6, 8, 9, 2}) {
		t.Errorf("%d pieces, the first are %v", len(steps), order)
	}
}

func FuzzParseProfile(f *testing.F) {
	f.Add([]byte(profileHead + "\n5798f7f4ca7585d850eea64610a1f73d8f8de7a3.zc.66666 0-3\n"))
	f.Add([]byte(chunksHead + "\n5798f7f4ca7585d850eea64610a1f73d8f8de7a3.zc.6 0-3\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProfile(b)
		if err != nil {
			return
		}
		again, err := ParseProfile(p.Encode())
		if err != nil || string(again.Encode()) != string(p.Encode()) {
			t.Errorf("%q: %v", b, err)
		}
	})
}

func TestStartFetchesWhatAProfileNamesInOrder(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	plain := noise(9, 10_000)
	objs := []Object{repo.chunked(plain, 1000)}
	for i := range 5 {
		objs = append(objs, repo.whole(noise(i, 1000)))
	}
	all := refs(t, objs...)
	elsewhere := ref(t, repo.whole(noise(77, 10))) // of another image
	if err := s.Fetch(t.Context(), all[1]); err != nil {
		t.Fatal(err)
	}
	before := repo.Requests("")
	p := Profile{
		want(all[3]), want(elsewhere), want(all[0], 2, 3), want(all[1]), want(all[3]), want(all[0], 3, 4, 5),
		want(all[0], 9, 10, 11, 12), want(all[0], 10),
	}
	done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Chunks 2, 3, 4, 5 and 9, and one object. There is no chunk 10.
	if want := (Started{Here: 1, Fetched: 6, Bytes: 6000, Unknown: 2}); done != want {
		t.Errorf("got %+v, want %+v", done, want)
	}
	if n := repo.Requests("") - before; n != 6 {
		t.Errorf("%d requests, want 6", n)
	}
	holds(t, s, all[3], noise(2, 1000))
	if s.Has(all[2]) || s.Has(all[4]) || s.Has(all[0]) {
		t.Error("something is here that the profile doesn't name")
	}
	reads(t, s, all[0], plain, 2000, 4000)
	if n := repo.Requests("") - before; n != 6 {
		t.Errorf("%d requests after chunks were read that are here, want 6", n)
	}
	reads(t, s, all[0], plain, 0, 6000) // more than half: it isn't completed now
	atRest(t, s)
	if n := repo.Requests("") - before; n != 8 || s.Has(all[0]) {
		t.Errorf("%d requests after more than half was read, want 8", n)
	}
	again, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{})
	if want := (Started{Here: 7, Unknown: 2}); err != nil || again != want {
		t.Errorf("the second time: %+v, %v, want %+v", again, err, want)
	}
	if st := s.Stats(); st.StartBytes != 6000 {
		t.Errorf("%d bytes counted", st.StartBytes)
	}
}

// No server has what a profile names first, and others have the rest.
func TestStartGoesOnWithoutWhatIsMissing(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	all := refs(t, Object{Digest: repo.whole(noise(1, 10)).Digest, Size: 11}, repo.whole(noise(2, 1000)))
	done, err := s.Start(t.Context(), all[0].x, all[0].t, Profile{want(all[0]), want(all[1])}, StartOptions{})
	if want := (Started{Fetched: 1, Bytes: 1000, Failed: 1}); err != nil || done != want {
		t.Errorf("got %+v, %v, want %+v", done, err, want)
	}
}

func TestStartEndsWhereGoingOnIsInVain(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	some := few(t, repo, 40)
	p := Profile{}
	for _, r := range some {
		p = append(p, want(r))
	}
	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		s := newStore(t, repo)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Start(ctx, some[0].x, some[0].t, p, StartOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no server", func(t *testing.T) {
		t.Parallel()
		s := open(t, configIn(t.TempDir(), sources{"r": fetcher(t, "http://127.0.0.1:1")}))
		_, err := s.Start(t.Context(), some[0].x, some[0].t, p, StartOptions{})
		if !errors.Is(err, fetch.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("full", func(t *testing.T) {
		t.Parallel()
		cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
		cfg.Limits = Limits{Floor: 1 << 60}
		s := open(t, cfg)
		done, err := s.Start(t.Context(), some[0].x, some[0].t, p, StartOptions{})
		if !errors.Is(err, syscall.ENOSPC) || done.Fetched > 0 {
			t.Errorf("got %+v, %v", done, err)
		}
	})
}

func TestNoNeighboursComeDuringAStart(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	all := few(t, repo, 30)
	repo.Set(testutil.Fault{Silent: true})
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() {
		_, err := s.Start(ctx, all[0].x, all[0].t, Profile{want(all[0])}, StartOptions{})
		started <- err
	}()
	eventually(t, "the start", func() bool { return repo.Requests("") == 1 })
	s.Near(all[1])
	if n := s.Stats().Queued; n != 0 {
		t.Errorf("%d neighbours are to come", n)
	}
	cancel()
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	repo.Set()
	if _, err := s.Start(t.Context(), all[0].x, all[0].t, Profile{want(all[0])}, StartOptions{}); err != nil {
		t.Fatal(err)
	}
	s.Near(all[1]) // the program is starting
	if n := s.Stats().Queued; n != 0 {
		t.Errorf("%d neighbours are to come right after the profile", n)
	}
	s.starts.m[all[0].t].until = time.Now().Add(-time.Second) // nobody else is at work
	s.Near(all[1])
	eventually(t, "neighbours after the start", func() bool { return s.Stats().Prefetched > 0 })
}

// Whoever starts by a profile on a fast link never waits, and is busy all the same.
func TestNothingIsCompletedDuringAStart(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	cfg.NothingAhead, cfg.Idle = false, time.Millisecond
	s := open(t, cfg)
	plain := noise(9, 10_000)
	all := refs(t, repo.chunked(plain, 1000), repo.chunked(noise(8, 10_000), 1000))
	if _, err := s.Start(t.Context(), all[0].x, all[0].t, Profile{want(all[0], 0, 3)}, StartOptions{}); err != nil {
		t.Fatal(err)
	}
	reads(t, s, all[0], plain, 3500, 1)
	time.Sleep(2 * cfg.Idle)
	if s.isIdle() {
		t.Error("the store is idle while a program starts")
	}
	s.starts.m[all[0].t].until = time.Now().Add(-time.Second) // nobody else is at work
	if !s.isIdle() {
		t.Error("the store isn't idle after a start")
	}
}

func TestNoStoreBeginsIdle(t *testing.T) {
	t.Parallel()
	if s := newStore(t, newRepository(t)); s.isIdle() {
		t.Error("a store that was opened just now is idle")
	}
}

func TestRecordingHasWhatIsReadInOrder(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	plain := noise(9, 100_000)
	all := refs(t, repo.whole(noise(1, 1000)), repo.chunked(plain, 10_000), repo.whole(noise(2, 1000)))
	other := ref(t, repo.whole(noise(3, 1000)))
	fetch := func(r Ref) {
		t.Helper()
		if err := s.Fetch(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	fetch(all[0]) // before
	rec := s.Record()
	second := s.Record()
	reads(t, s, all[1], plain, 3*PageSize+500, PageSize)
	fetch(other)
	fetch(all[2])
	reads(t, s, all[1], plain, 0, 10)
	reads(t, s, all[1], plain, PageSize, 4*PageSize)
	fetch(all[2])
	rec.Stop()
	reads(t, s, all[1], plain, 90_000, 10)
	second.Stop()
	if n := rec.Len(); n != 5+2 {
		t.Errorf("%d pages and objects were read, want 7", n)
	}
	want := Profile{pages(all[1], 3, 4), want(all[2]), pages(all[1], 0, 2)}
	if got := rec.Profile(all[0].t); string(got.Encode()) != string(want.Encode()) {
		t.Errorf("got\n%s, want\n%s", got.Encode(), want.Encode())
	}
	if got := second.Profile(all[0].t); len(got) != 4 {
		t.Errorf("the recording that went on has\n%s", got.Encode())
	}
	if s.recordings.Load() != nil {
		t.Error("a recording goes on")
	}
	rec.Stop() // again
}

// Where half of an object is read the rest is fetched, and it becomes a file. What is read of that is recorded as what
// is read of one that is partly here.
func TestRecordingHasNoMoreThanIsReadOfWhatIsComplete(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	plain := noise(9, 10*PageSize)
	all := refs(t, repo.chunked(plain, PageSize))
	rec := s.Record()
	reads(t, s, all[0], plain, 0, 6*PageSize)
	eventually(t, "the rest", func() bool { return s.Has(all[0]) })
	reads(t, s, all[0], plain, 7*PageSize+500, 10)
	rec.Stop()
	want := Profile{pages(all[0], 0, 5), pages(all[0], 7, 7)}
	if got := rec.Profile(all[0].t); string(got.Encode()) != string(want.Encode()) {
		t.Errorf("got\n%s, want\n%s", got.Encode(), want.Encode())
	}
}

func TestNothingIsCompletedWhereNothingIsFetchedAhead(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	plain := noise(9, 10_000)
	all := refs(t, repo.chunked(plain, 1000))
	partly := func(nothingAhead bool, size int) *Store {
		cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
		cfg.NothingAhead, cfg.Idle = nothingAhead, time.Millisecond
		s := open(t, cfg)
		go s.Run(t.Context())
		reads(t, s, all[0], plain, 0, size)
		return s
	}
	recorder := partly(true, 6000)
	other := partly(false, 1000)
	eventually(t, "what idle nodes do", func() bool { return other.Has(all[0]) })
	atRest(t, recorder)
	if n := recorder.Stats().Chunks; n != 6 || recorder.Has(all[0]) {
		t.Errorf("%d chunks are here after 6 of 10 were read", n)
	}
}

// Recorders see all that is read of objects that may be cut: none is stored, though all of it was read.
func TestReadsOfWhatMayBeCutAreSeen(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	cfg.NothingAhead, cfg.InPart = true, PageSize
	s := open(t, cfg)
	small, large, cut := noise(1, PageSize), noise(2, 5*PageSize), noise(3, 5*PageSize)
	all := refs(t, repo.whole(small), repo.whole(large), repo.chunked(cut, PageSize))
	rec := s.Record()
	reads(t, s, all[0], small, 0, 10)
	reads(t, s, all[1], large, 2*PageSize, 10)
	reads(t, s, all[2], cut, 0, 5*PageSize)
	reads(t, s, all[1], large, 0, 10)
	atRest(t, s)
	want := Profile{want(all[0]), pages(all[1], 2, 2), want(all[2]), pages(all[1], 0, 0)}
	if got := rec.Profile(all[0].t); string(got.Encode()) != string(want.Encode()) {
		t.Errorf("got\n%s, want\n%s", got.Encode(), want.Encode())
	}
	for i, stored := range []bool{true, false, false} {
		if s.Has(all[i]) != stored {
			t.Errorf("object %d is stored: %v, want %v", i, !stored, stored)
		}
	}
	if n := repo.Requests(""); n != 7 {
		t.Errorf("%d requests, want 7", n)
	}
}

func TestStartFetchesThePiecesThatHavePages(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	plain := noise(9, 10*PageSize)
	all := refs(t, repo.chunked(plain, 5000), repo.whole(noise(1, 2*PageSize)))
	// Pages 1 and 2 are bytes 4096 to 12287, of chunks 0 to 2; pages 4 and 5 bytes 16384 to 24575, of chunks 3 and 4.
	p := Profile{pages(all[0], 1, 2), pages(all[1], 1, 1), pages(all[0], 4, 5), pages(all[0], 1, 1)}
	done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{})
	if want := (Started{Fetched: 6, Bytes: 25_000 + 2*PageSize}); err != nil || done != want {
		t.Errorf("got %+v, %v, want %+v", done, err, want)
	}
	reads(t, s, all[0], plain, 0, 25_000)
	if n := repo.Requests(""); n != 6 {
		t.Errorf("%d requests, want 6", n)
	}
	if got, want := p.Of(all[0].t), (Named{Pieces: 6, Bytes: 25_000 + 2*PageSize}); got != want {
		t.Errorf("the profile names %+v, want %+v", got, want)
	}
}

// An image may claim any size of a file. That it is read is noted at once.
func TestRecordingOfAHugeObject(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	all := refs(t, Object{Digest: repo.whole(noise(1, 10)).Digest, Size: 1 << 60})
	rec := s.Record()
	s.asked(all[0], 1<<59, 1<<59+1)
	for range 2 {
		s.asked(all[0], 0, 1<<60)
	}
	s.asked(all[0], PageSize, 2*PageSize)
	want := Profile{pages(all[0], 1<<47, 1<<47), want(all[0])}
	if got := rec.Profile(all[0].t); string(got.Encode()) != string(want.Encode()) {
		t.Errorf("got\n%s, want\n%s", got.Encode(), want.Encode())
	}
}

// A profile that names little of the image doesn't tell what it reads: as much comes ahead as without.
func TestNeighboursComeWhereAProfileDoesNotFit(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := readingStore(t, repo)
	all := few(t, repo, 30)
	elsewhere := ref(t, repo.whole(noise(77, 10)))
	for _, unknown := range []int{1, 2} {
		p := Profile{want(all[0]), want(all[1]), want(all[2]), want(all[3])}
		for range unknown {
			p = append(p, want(elsewhere))
		}
		if _, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{}); err != nil {
			t.Fatal(err)
		}
		if fits := s.starts.has(all[0].t); fits != (unknown == 1) {
			t.Errorf("with %d of %d unknown, the image starts by its profile: %v", unknown, len(p), fits)
		}
		s.starts = starts{}
	}
}

// Where the kernel asks for more around a page than when the profile was recorded, that comes as well.
func TestWhatIsAroundThePagesComesWithThem(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	all := refs(t, repo.chunked(noise(9, 10*PageSize), PageSize))
	for around, pieces := range map[int64]int{0: 1, 1: 3, PageSize: 3, PageSize + 1: 5, 1 << 40: 10} {
		s := newStore(t, repo)
		p := Profile{pages(all[0], 4, 4), pages(all[0], 4, 4)}
		done, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{Around: around})
		if err != nil || done.Fetched != pieces {
			t.Errorf("with %d bytes around, %d chunks came, want %d: %v", around, done.Fetched, pieces, err)
		}
	}
}

// The first container of an image whose profile was fetched long before starts as much as one that comes with it.
func TestAFirstStartIsOneAlsoIfAllIsHere(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	all := refs(t, repo.whole(noise(1, 1000)))
	p := Profile{want(all[0])}
	if err := s.Fetch(t.Context(), all[0]); err != nil {
		t.Fatal(err)
	}
	for _, first := range []bool{false, true} {
		if _, err := s.Start(t.Context(), all[0].x, all[0].t, p, StartOptions{First: first}); err != nil {
			t.Fatal(err)
		}
		if s.starts.has(all[0].t) != first {
			t.Errorf("first %v: a program is starting: %v", first, !first)
		}
	}
}
