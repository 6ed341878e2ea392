package objects

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/test/testutil"
)

// repository is a server of stored objects made up by the test.
type repository struct {
	*testutil.Faulty
	mu    sync.Mutex
	files map[string][]byte // by path
	slow  map[string]*stall
}

// stall is a file of which so many bytes are served until it may go on.
type stall struct {
	at               int
	stalled, proceed chan struct{} // closed
}

// stall has a file be served so.
func (r *repository) stall(path string, at int) *stall {
	s := &stall{at, make(chan struct{}), make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slow = map[string]*stall{path: s}
	return s
}

func newRepository(t testing.TB) *repository {
	r := &repository{files: map[string][]byte{}}
	r.Faulty = testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		b, ok := r.files[q.URL.Path[1:]]
		slow := r.slow[q.URL.Path[1:]]
		r.mu.Unlock()
		if !ok {
			http.NotFound(w, q)
			return
		}
		if slow != nil {
			w.Write(b[:slow.at])
			http.NewResponseController(w).Flush()
			close(slow.stalled)
			<-slow.proceed
			b = b[slow.at:]
		}
		w.Write(b)
	}))
	return r
}

// put stores a content and gives its digest.
func (r *repository) put(a hash.Algorithm, s hash.Suffix, c hash.Compression, plain []byte) hash.Digest {
	b := plain
	if c == hash.Zlib {
		b = deflate(plain)
	}
	d := a.Digest(b)
	r.store(d.Path(s), b)
	return d
}

func (r *repository) store(path string, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[path] = b
}

func deflate(plain []byte) []byte {
	var b bytes.Buffer
	w, _ := zlib.NewWriterLevel(&b, zlib.BestSpeed) // the level is a valid one
	w.Write(plain)
	w.Close()
	return b.Bytes()
}

// whole stores an object of one piece.
func (r *repository) whole(plain []byte) Object {
	return Object{Digest: r.put(hash.SHA1, hash.File, hash.Zlib, plain), Size: int64(len(plain))}
}

// chunked stores an object in chunks of that size.
func (r *repository) chunked(plain []byte, size int) Object {
	o := Object{Size: int64(len(plain))}
	for off := 0; off < len(plain); off += size {
		b := plain[off:min(len(plain), off+size)]
		o.Chunks = append(o.Chunks, catalog.Chunk{
			Offset: int64(off), Size: int64(len(b)),
			Digest: r.put(hash.SHA1, hash.Chunk, hash.Zlib, b),
		})
	}
	return o
}

// noise is content that doesn't compress, the same for the same seed.
func noise(seed, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return b
}

// sources are fetchers by repository.
type sources map[string]*fetch.Fetcher

func (s sources) Fetcher(repo string) (*fetch.Fetcher, error) {
	if f := s[repo]; f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("repository %s is not configured", repo)
}

func fetcher(t testing.TB, urls ...string) *fetch.Fetcher {
	t.Helper()
	f, err := fetch.New(fetch.Config{
		Servers: urls, TimeoutDirect: 2 * time.Second, BackoffInit: 50 * time.Millisecond,
		BackoffMax: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func configIn(dir string, src Sources) Config {
	return Config{
		Dir: filepath.Join(dir, "store/objects"), Fresh: filepath.Join(dir, "fresh/objects"),
		State: filepath.Join(dir, "state"), Sources: src, NothingAhead: true, // so that requests can be counted
	}
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.EBADF) {
			t.Error(err)
		}
	})
	return s
}

// newStore is a store in a folder of its own that knows one repository.
func newStore(t testing.TB, r *repository) *Store {
	return open(t, configIn(t.TempDir(), sources{"r": fetcher(t, r.URL)}))
}

func refs(t testing.TB, objs ...Object) []Ref {
	t.Helper()
	x := NewIndex([16]byte{})
	x.Add(table(t, "r", objs...))
	first, _ := x.Lookup(objs[0].Name())
	all := make([]Ref, 0, len(objs))
	for i := range objs {
		all = append(all, Ref{x, first.t, uint32(i)})
	}
	return all
}

func ref(t testing.TB, o Object) Ref { return refs(t, o)[0] }

// holds checks that the object is here, with that content, mode and record.
func holds(t testing.TB, s *Store, r Ref, want []byte) {
	t.Helper()
	path := filepath.Join(s.cfg.Dir, r.Path())
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has wrong content (%d bytes, want %d), %v", r.Name(), len(got), len(want), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o444 {
		t.Errorf("%s: %v, %v", r.Name(), info.Mode(), err)
	}
	sha := make([]byte, 100)
	n, err := unix.Getxattr(path, attribute, sha)
	if errors.Is(err, unix.ENOTSUP) {
		return
	}
	sum := sha256.Sum256(want)
	if err != nil || !bytes.Equal(sha[:max(0, n)], sum[:]) {
		t.Errorf("%s: recorded digest is %q, %v", r.Name(), sha[:max(0, n)], err)
	}
	if !s.Has(r) {
		t.Errorf("Has(%s) is false", r.Name())
	}
}

// names lists the files below a folder.
func names(t testing.TB, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, d.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("waited in vain: %s", what)
}

// Whatever mode a file is made with, and whatever umask takes off, an object may be read by all.
func TestObjectsModeDoesNotDependOnHowTheyAreMade(t *testing.T) {
	repo := newRepository(t)
	s := newStore(t, repo)
	defer unix.Umask(unix.Umask(0o077)) // of all the process: this test doesn't run beside others
	for i, mode := range []uint32{s.mode, tempMode, objectMode} {
		if mode == objectMode && os.Geteuid() != 0 {
			continue
		}
		s.mode = mode
		plain := noise(i, 1000)
		r := ref(t, repo.whole(plain))
		if err := s.Fetch(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		holds(t, s, r, plain)
	}
}

func TestFetchMakesObjectsOfAllKinds(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	for _, unnamed := range []bool{true, false} {
		s.unnamed = unnamed
		for i, n := range []int{0, 1, 4096, 300_000} {
			plain := noise(i, n)
			if !unnamed {
				plain = append(plain, 'x')
			}
			raw := Object{
				Size: int64(len(plain)), Compression: hash.None,
				Digest: repo.put(hash.SHAKE128, hash.File, hash.None, plain),
			}
			for _, o := range []Object{repo.whole(plain), raw, repo.chunked(append(plain, 'y'), 30_000)} {
				r := ref(t, o)
				if s.Has(r) {
					t.Fatalf("%s is here already", r.Name())
				}
				if err := s.Fetch(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				if len(o.Chunks) > 0 {
					holds(t, s, r, append(plain, 'y'))
				} else {
					holds(t, s, r, plain)
				}
			}
		}
	}
	before := repo.Requests("")
	for _, name := range names(t, s.cfg.Dir) {
		n, err := ParseName(name)
		if err != nil || n.Chunked {
			continue
		}
		if err := s.Fetch(t.Context(),
			ref(t, Object{Digest: n.Digest, Compression: n.Compression, Size: n.Size})); err != nil {
			t.Error(err)
		}
	}
	if repo.Requests("") != before {
		t.Error("what is here was fetched again")
	}
	if files, bytes := s.partials.count(); files != 0 || bytes != 0 {
		t.Errorf("%d partial files of %d bytes are left", files, bytes)
	}
}

func TestFetchFromReferenceRepository(t *testing.T) {
	t.Parallel()
	const fqrn = "features.example.org"
	published := testutil.Reference(t, fqrn)[".cvmfspublished"].Data
	root, err := hash.Parse(strings.TrimPrefix(strings.SplitN(string(published), "\n", 2)[0], "C"))
	if err != nil {
		t.Fatal(err)
	}
	var w Buffer
	if err := Download(t.Context(), fetcher(t, testutil.ServeReference(t, fqrn)), root, hash.Catalog, hash.Zlib, 16<<20,
		&w); err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(w.Bytes(), []byte("SQLite format 3\x00")) {
		t.Errorf("the root catalog begins with %q", w.Bytes()[:min(w.Len(), 16)])
	}
}

func TestDownloadRefusesWhatIsNotTheObject(t *testing.T) {
	t.Parallel()
	good := deflate([]byte("hello, hello, hello"))
	empty := append([]byte{0x78, 0x9c}, bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, 100_000)...) // blocks of nothing
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for _, c := range []struct {
		name string
		body []byte
		own  bool // its digest is asked for, not the good one's
		want string
	}{
		{"another content", deflate([]byte("other")), false, "digest is"},
		{"no zlib", []byte("plain text, not zlib"), true, "inflate"},
		{"nothing", nil, true, "inflate"},
		{"a cut stream", good[:len(good)-3], true, "inflate"},
		{"a wrong checksum inside", flipped, true, "inflate"},
		{"bytes after the stream", append(bytes.Clone(good), 0), true, "after the end"},
		{"two streams", append(bytes.Clone(good), good...), true, "after the end"},
		{"too large", deflate(make([]byte, 1_000_000)), true, "more than 1000 plain bytes"},
		{"endless nothing", empty, true, "too many stored bytes"},
	} {
		repo := newRepository(t)
		d := hash.SHA1.Digest(good)
		if c.own {
			d = hash.SHA1.Digest(c.body)
		}
		repo.store(d.Path(hash.File), c.body)
		err := Download(t.Context(), fetcher(t, repo.URL), d, hash.File, hash.Zlib, 1000, &Buffer{})
		if !errors.Is(err, fetch.ErrBadData) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if repo.Requests("") != 2 {
			t.Errorf("%s: asked for %d times, want once more past all caches", c.name, repo.Requests(""))
		}
	}
}

func TestDownloadStartsAfreshOnTheNextServer(t *testing.T) {
	t.Parallel()
	a, b := newRepository(t), newRepository(t)
	plain := noise(1, 200_000)
	d := a.put(hash.RIPEMD160, hash.File, hash.Zlib, plain)
	b.put(hash.RIPEMD160, hash.File, hash.Zlib, plain)
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, fault := range []testutil.Fault{{Flip: true}, {Cut: 100_000}, {Extra: "x"}} {
		a.Set(fault)
		var w Buffer
		if err := Download(t.Context(), fetcher(t, a.URL, b.URL), d, hash.File, hash.Zlib, -1, &w); err != nil ||
			!bytes.Equal(w.Bytes(), plain) {
			t.Errorf("%+v: %d bytes, %v", fault, w.Len(), err)
		}
		if err := Download(t.Context(), fetcher(t, a.URL, b.URL), d, hash.File, hash.Zlib, -1, File{f}); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%+v: file of %d bytes, %v", fault, len(got), err)
		}
	}
}

func TestTamperedObjectIsNotShown(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	whole, chunked := ref(t, repo.whole(noise(1, 5000))), ref(t, repo.chunked(noise(2, 5000), 1000))
	repo.Set(testutil.Fault{Flip: true})
	for _, r := range []Ref{whole, chunked} {
		if err := s.Fetch(t.Context(), r); !errors.Is(err, fetch.ErrBadData) {
			t.Errorf("fetch: %v", err)
		}
		if _, err := s.ReadAt(t.Context(), r, make([]byte, 10), 0); !errors.Is(err, fetch.ErrBadData) {
			t.Errorf("read: %v", err)
		}
		if s.Has(r) {
			t.Error("a tampered object is here")
		}
	}
	if list := names(t, s.cfg.Dir); len(list) != 0 {
		t.Errorf("left behind: %v", list)
	}
	repo.Set()
	for _, r := range []Ref{whole, chunked} {
		if err := s.Fetch(t.Context(), r); err != nil {
			t.Error(err)
		}
	}
}

func TestObjectOfAnotherSizeThanTheCatalogSaysIsRefused(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	o := repo.whole(noise(1, 5000))
	for _, size := range []int64{0, 4999, 5001} {
		o.Size = size
		r := ref(t, o)
		if err := s.Fetch(t.Context(), r); err == nil || s.Has(r) {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

func TestMissingObject(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	err := s.Fetch(t.Context(), ref(t, Object{Digest: digest("absent"), Size: 3}))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestEveryRepositoryThatNamesAnObjectIsTried(t *testing.T) {
	t.Parallel()
	a, b := newRepository(t), newRepository(t)
	plain := noise(1, 100)
	o := b.whole(plain)
	s := open(t, configIn(t.TempDir(), sources{"a": fetcher(t, a.URL), "b": fetcher(t, b.URL)}))
	x := NewIndex([16]byte{})
	for _, repo := range []string{"unconfigured", "a"} {
		x.Add(table(t, repo, o))
	}
	r, _ := x.Lookup(o.Name())
	if err := s.Fetch(t.Context(), r); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one repository lacks it, of another nothing is known: %v", err)
	}
	x.Add(table(t, "b", o))
	if err := s.Fetch(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	holds(t, s, r, plain)
}

func TestCallsShareAFlight(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	repo.Set(testutil.Fault{Latency: 100 * time.Millisecond})
	plain := noise(1, 1000)
	r := ref(t, repo.whole(plain))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := s.Fetch(t.Context(), r); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if repo.Requests("") != 1 {
		t.Errorf("%d requests, want 1", repo.Requests(""))
	}
	holds(t, s, r, plain)
}

func TestLeavingAFlightDoesNotEndItForOthers(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	repo.Set(testutil.Fault{Latency: 300 * time.Millisecond})
	r := ref(t, repo.whole(noise(1, 1000)))
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- s.Fetch(ctx, r) }()
	eventually(t, "flight", func() bool { return repo.Requests("") == 1 })
	go func() { second <- s.Fetch(t.Context(), r) }()
	eventually(t, "second waiter", func() bool { return s.Stats().Waiting == 2 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	if err := <-second; err != nil || repo.Requests("") != 1 {
		t.Errorf("who stayed got %v after %d requests", err, repo.Requests(""))
	}
}

func TestFlightEndsWhenAllHaveLeft(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	gone := make(chan struct{})
	repo.Set(testutil.Fault{Silent: true, Times: 1})
	r := ref(t, repo.whole(noise(1, 1000)))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { defer close(gone); s.Fetch(ctx, r) }()
	eventually(t, "flight", func() bool { return repo.Requests("") == 1 })
	cancel()
	<-gone
	start := time.Now()
	if err := s.Fetch(t.Context(), r); err != nil {
		t.Errorf("the next flight: %v", err)
	}
	if time.Since(start) > time.Second {
		t.Error("the abandoned flight was waited for")
	}
}

func TestReadAtFetchesOnlyTheChunksAskedFor(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	plain := noise(1, 10_500)
	r := ref(t, repo.chunked(plain, 1000))
	total := 0
	for _, c := range []struct{ off, n, requests int }{
		{0, 1, 1},
		{999, 1, 0},
		{1000, 1, 1},
		{500, 1000, 0},
		{2500, 1000, 2},
		{10_400, 100, 1},
		{10_400, 500, 0},
		{10_499, 1, 0},
	} {
		b := make([]byte, c.n)
		n, err := s.ReadAt(t.Context(), r, b, int64(c.off))
		want := plain[c.off:min(len(plain), c.off+c.n)]
		if !bytes.Equal(b[:n], want) || err != nil && (!errors.Is(err, io.EOF) || n == c.n) ||
			n < c.n && !errors.Is(err, io.EOF) {
			t.Errorf("ReadAt(%d bytes, %d) = %d, %v", c.n, c.off, n, err)
		}
		if total += c.requests; repo.Requests("") != total {
			t.Errorf("ReadAt(%d bytes, %d): %d requests so far, want %d", c.n, c.off, repo.Requests(""), total)
		}
	}
	if n, err := s.ReadAt(t.Context(), r, make([]byte, 1), 10_500); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if _, err := s.ReadAt(t.Context(), r, make([]byte, 1), -1); err == nil {
		t.Error("before the start: no error")
	}
	if st := s.Stats(); st.Partials != 1 || st.PartialBytes != 4500 || s.Has(r) {
		t.Errorf("stats %+v", st)
	}
	b := make([]byte, len(plain))
	if n, err := s.ReadAt(t.Context(), r, b, 0); err != nil || n != len(b) || !bytes.Equal(b, plain) {
		t.Errorf("all: %d, %v", n, err)
	}
	eventually(t, "the complete object", func() bool { return s.Has(r) && s.Stats().Partials == 0 })
	holds(t, s, r, plain)
	if repo.Requests("") != 11 {
		t.Errorf("%d requests for 11 chunks", repo.Requests(""))
	}
}

func TestReadAtOfWholeObject(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	plain := noise(1, 10_000)
	r := ref(t, repo.whole(plain))
	b := make([]byte, 100)
	for _, off := range []int64{5000, 0, 9950} {
		n, err := s.ReadAt(t.Context(), r, b, off)
		if !bytes.Equal(b[:n], plain[off:min(10_000, off+100)]) || errors.Is(err, io.EOF) != (off == 9950) {
			t.Errorf("ReadAt(%d) = %d, %v", off, n, err)
		}
	}
	if repo.Requests("") != 1 {
		t.Errorf("%d requests", repo.Requests(""))
	}
}

func TestReadersOfOneBigObjectShareChunks(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	repo.Set(testutil.Fault{Latency: 5 * time.Millisecond})
	plain := noise(1, 50_000)
	r := ref(t, repo.chunked(plain, 1000))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for range 20 {
				if i%5 == 0 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rnd.IntN(10))*time.Millisecond)
					// may end early: somebody else's read must not
					s.ReadAt(ctx, r, make([]byte, 5000), rnd.Int64N(50_000))
					cancel()
					continue
				}
				off := rnd.IntN(50_000)
				b := make([]byte, rnd.IntN(5000))
				n, err := s.ReadAt(t.Context(), r, b, int64(off))
				if !bytes.Equal(b[:n], plain[off:min(50_000, off+len(b))]) || err != nil && !errors.Is(err, io.EOF) {
					t.Errorf("ReadAt(%d, %d) = %d, %v", len(b), off, n, err)
				}
			}
		})
	}
	wg.Go(func() {
		time.Sleep(20 * time.Millisecond)
		if err := s.Fetch(t.Context(), r); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	holds(t, s, r, plain)
	if repo.MostAtOnce() < 2 {
		t.Error("chunks were fetched one by one")
	}
}

func TestIdlePartialFileIsGivenUp(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	plain := noise(1, 5000)
	r := ref(t, repo.chunked(plain, 1000))
	read := func() {
		t.Helper()
		b := make([]byte, 10)
		if _, err := s.ReadAt(t.Context(), r, b, 0); err != nil || !bytes.Equal(b, plain[:10]) {
			t.Fatal(err)
		}
	}
	read()
	s.partials.dropIdle(time.Now().Add(-partialIdle))
	if s.Stats().Partials != 1 {
		t.Error("given up too early")
	}
	s.partials.dropIdle(time.Now())
	if s.Stats().Partials != 0 {
		t.Error("not given up")
	}
	read()
}

func TestPrefetch(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	repo.Set(testutil.Fault{Latency: 100 * time.Millisecond}) // long enough for many workers to arrive
	var objs []Object
	for i := range 200 {
		objs = append(objs, repo.whole(noise(i, 100)))
	}
	big := repo.whole(noise(1000, prefetchLimit+1))
	all := refs(t, append(objs, big)...)
	for range 3 {
		s.Prefetch(all)
	}
	eventually(t, "200 objects", func() bool { return s.Stats().Prefetched == 200 })
	for i, r := range all[:200] {
		holds(t, s, r, noise(i, 100))
	}
	if s.Has(all[200]) {
		t.Error("a large object was fetched ahead")
	}
	if repo.Requests("") != 200 {
		t.Errorf("%d requests, want 200", repo.Requests(""))
	}
	// Connections to one server are bounded by package fetch, and become more as they are answered.
	if n := repo.MostAtOnce(); n < prefetchWorkers/4 {
		t.Errorf("at most %d requests at once, want %d or more", n, prefetchWorkers/4)
	}
	s.Prefetch(all)
	eventually(t, "an idle queue", func() bool { return s.Stats().Queued == 0 })
	if repo.Requests("") != 200 {
		t.Error("what is here was fetched again")
	}
}

func TestPrefetchAsksForFewBytesAtATime(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	const size, fit = prefetchLimit, prefetchBudget / prefetchLimit
	var objs []Object
	for i := range 3 * fit {
		objs = append(objs, repo.whole(noise(i, size)))
	}
	all := refs(t, objs...)
	for calls := 1; calls <= 2; calls++ {
		s.Prefetch(all)
		eventually(t, "what fits", func() bool {
			return s.Stats().Prefetched == int64(calls*fit) &&
				s.Stats().Queued == 0
		})
		if s.Has(all[calls*fit]) {
			t.Error("more than the budget was fetched")
		}
	}
}

func TestPrefetchNeverBlocksNorGrowsWithoutLimit(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	repo.Set(testutil.Fault{Silent: true})
	var objs []Object
	for i := range prefetchQueue + 1000 {
		objs = append(objs, Object{Digest: digest(fmt.Sprint(i)), Size: 1})
	}
	all := refs(t, objs...)
	s.Prefetch(all)
	st := s.Stats()
	if st.Queued > prefetchQueue || st.Dropped < 1000-prefetchWorkers {
		t.Errorf("stats %+v", st)
	}
}

func TestForegroundDoesNotWaitForPrefetch(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	repo.Set(testutil.Fault{Path: "data", Latency: 10 * time.Millisecond})
	var objs []Object
	for i := range 1000 {
		objs = append(objs, repo.whole(noise(i, 10)))
	}
	all := refs(t, objs...)
	s.Prefetch(all)
	if err := s.Fetch(t.Context(), all[len(all)-1]); err != nil {
		t.Fatal(err)
	}
	if s.Stats().Queued < 100 {
		t.Errorf("only %d are still queued: the fetch waited its turn", s.Stats().Queued)
	}
}

func TestFailedPrefetchIsForgotten(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	r := ref(t, repo.whole(noise(1, 100)))
	repo.Set(testutil.Fault{Status: 500, Times: 1})
	s.Prefetch([]Ref{r})
	eventually(t, "the failure", func() bool { return s.Stats().Failed == 1 })
	eventually(t, "the object", func() bool { s.Prefetch([]Ref{r}); return s.Has(r) })
}

func TestFreshLinksComeAndGo(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	s := open(t, cfg)
	a, b := ref(t, repo.whole(noise(1, 100))), ref(t, repo.whole(noise(2, 100)))
	if err := s.LinkFresh(a); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link to nothing: %v", err)
	}
	for _, r := range []Ref{a, b} {
		if err := s.Fetch(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.LinkFresh(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	x, err := os.Stat(filepath.Join(cfg.Dir, a.Path()))
	if err != nil {
		t.Fatal(err)
	}
	if y, err := os.Stat(filepath.Join(cfg.Fresh, a.Path())); err != nil || !os.SameFile(x, y) {
		t.Errorf("not the same file: %v", err)
	}
	start := time.Now()
	s.fresh.want(b.Path(), start.Add(time.Minute))
	s.fresh.sweep(start.Add(freshAge - time.Second))
	if n := len(names(t, cfg.Fresh)); n != 2 {
		t.Errorf("%d links before their time, want 2", n)
	}
	s.fresh.sweep(start.Add(freshAge + time.Second))
	if n := names(t, cfg.Fresh); len(n) != 1 || n[0] != b.Name() {
		t.Errorf("links %v, want that of %s", n, b.Name())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	if len(names(t, cfg.Fresh)) != 1 || s.Stats().FreshLinks != 1 {
		t.Error("a link of a former life should be kept for its time")
	}
	s.fresh.sweep(time.Now().Add(freshAge))
	if len(names(t, cfg.Fresh)) != 0 {
		t.Error("a link of a former life should go in the end")
	}
	holds(t, s, a, noise(1, 100))
}

// smallDisk mounts a file system of n bytes.
func smallDisk(t *testing.T, n int) string {
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", n)); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullDiskIsReportedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	dir := smallDisk(t, 1<<20)
	s := open(t, configIn(dir, sources{"r": fetcher(t, repo.URL)}))
	// Nothing is refused, and nothing goes: others fill the disk meanwhile.
	s.admission.limits = Limits{Limit: 1 << 40, Floor: -1 << 40, yield: -1 << 40}
	small, second := ref(t, repo.whole(noise(1, 200_000))), ref(t, repo.whole(noise(2, 200_000)))
	if err := s.Fetch(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	used := func() uint64 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return (st.Blocks - st.Bfree) * uint64(st.Bsize)
	}
	before := used()
	big, chunked := ref(t, repo.whole(noise(3, 2<<20))), ref(t, repo.chunked(noise(4, 2<<20), 100_000))
	for _, r := range []Ref{big, chunked} {
		for range 3 {
			if err := s.Fetch(t.Context(), r); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("got %v", err)
			}
		}
		if _, err := s.ReadAt(t.Context(), r, make([]byte, 2<<20), 0); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("got %v", err)
		}
	}
	if list := names(t, s.cfg.Dir); len(list) != 1 {
		t.Errorf("files: %v", list)
	}
	eventually(t, "the space to come free", func() bool { return used() == before })
	if err := s.Fetch(t.Context(), second); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	b := make([]byte, 10)
	if _, err := s.ReadAt(t.Context(), chunked, b, 1<<20); err != nil || !bytes.Equal(b, noise(4, 2<<20)[1<<20:][:10]) {
		t.Errorf("one chunk has room: %v", err)
	}
	holds(t, s, small, noise(1, 200_000))
	holds(t, s, second, noise(2, 200_000))
	if n := repo.Requests(big.Object().Digest.Hex()[2:]); n != 4 {
		t.Errorf("%d requests for 4 attempts: a full disk is not the server's fault", n)
	}
}

func TestDamagedObjectIsReplaced(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	plain := noise(1, 1000)
	r := ref(t, repo.whole(plain))
	if err := os.WriteFile(filepath.Join(s.cfg.Dir, r.Path()), plain[:500], 0o444); err != nil {
		t.Fatal(err)
	}
	if s.Has(r) {
		t.Error("a short file counts as the object")
	}
	if err := s.Fetch(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	holds(t, s, r, plain)
}

// powerCut returns a store whose objects are: untouched, altered, cut, without record; all unsynced unless synced says
// so.
func powerCut(t *testing.T, end func(*Store)) (*Store, []Ref) {
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	cfg.BootID = "first"
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var objs []Object
	for i := range 4 {
		objs = append(objs, repo.whole(noise(i, 1000)))
	}
	all := refs(t, objs...)
	path := func(i int) string { return filepath.Join(cfg.Dir, all[i].Path()) }
	for _, r := range all {
		if err := errors.Join(s.Fetch(t.Context(), r), s.LinkFresh(r)); err != nil {
			t.Fatal(err)
		}
	}
	end(s)
	for i := range 4 {
		os.Remove(filepath.Join(cfg.Fresh, all[i].Path()))
	}
	altered := noise(1, 1000)
	altered[500] = 0
	for i, damage := range []func(string) error{
		func(string) error { return nil },
		func(p string) error { return os.WriteFile(p, altered, 0o444) },
		func(p string) error { return os.Truncate(p, 0) },
		func(p string) error { return unix.Removexattr(p, attribute) },
	} {
		// Objects are read-only, and not everybody who runs tests is root.
		err := errors.Join(os.Chmod(path(i), 0o644), damage(path(i)), os.Chmod(path(i), 0o444))
		if errors.Is(err, unix.ENOTSUP) {
			t.Skip("needs extended attributes on " + path(i))
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(path(0), filepath.Join(cfg.Fresh, all[0].Path())); err != nil {
		t.Fatal(err)
	}
	cfg.BootID = "second"
	return open(t, cfg), all
}

func TestYoungObjectsAreCheckedAfterAPowerCut(t *testing.T) {
	t.Parallel()
	s, all := powerCut(t, func(*Store) {})
	holds(t, s, all[0], noise(0, 1000))
	for i, what := range []string{"altered", "cut", "unrecorded"} {
		if s.Has(all[i+1]) {
			t.Errorf("the %s object is still here", what)
		}
		if err := s.Fetch(t.Context(), all[i+1]); err != nil {
			t.Error(err)
		}
		holds(t, s, all[i+1], noise(i+1, 1000))
	}
	if links := names(t, s.cfg.Fresh); len(links) != 0 {
		t.Errorf("fresh links after a restart of the machine: %v", links)
	}
}

func TestRecordsOfOlderVersionsCount(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	cfg.BootID = "first"
	s := open(t, cfg)
	good, bad := ref(t, repo.whole(noise(1, 1000))), ref(t, repo.whole(noise(2, 1000)))
	sum := sha256.Sum256(noise(1, 1000))
	for _, r := range []Ref{good, bad} {
		path := filepath.Join(cfg.Dir, r.Path())
		err := s.Fetch(t.Context(), r)
		if err == nil {
			err = errors.Join(os.Chmod(path, 0o600), // needed by all but root
				unix.Setxattr(path, attribute, []byte(hex.EncodeToString(sum[:])), 0))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cfg.BootID = "second"
	if s = open(t, cfg); !s.Has(good) || s.Has(bad) {
		t.Errorf("kept: the good object %v, the bad one %v", s.Has(good), s.Has(bad))
	}
}

func TestNothingIsCheckedAfterACleanShutdown(t *testing.T) {
	t.Parallel()
	s, all := powerCut(t, func(s *Store) {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
	for _, i := range []int{0, 1, 3} {
		if !s.Has(all[i]) {
			t.Errorf("object %d was dropped", i)
		}
	}
}

func TestOnlyObjectsYoungerThanTheMarkAreChecked(t *testing.T) {
	t.Parallel()
	s, all := powerCut(t, func(*Store) {})
	path := filepath.Join(s.cfg.Dir, all[0].Path())
	if err := errors.Join(os.Chmod(path, 0o644), unix.Removexattr(path, attribute)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.recheck(time.Now().Add(time.Minute)); err != nil || !s.Has(all[0]) {
		t.Errorf("an object older than the mark was dropped: %v", err)
	}
	if _, err := s.recheck(time.Now().Add(-time.Minute)); err != nil || s.Has(all[0]) {
		t.Errorf("an object younger than the mark was kept: %v", err)
	}
}

func TestMarkIsSetOnlyWhenSomethingIsNew(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	mark := func() time.Time {
		t.Helper()
		m, err := s.readMark()
		if err != nil || m.Clean || m.Boot != s.boot {
			t.Fatalf("mark %+v, %v", m, err)
		}
		return m.Synced
	}
	first := mark()
	if err := s.sync(false); err != nil || !mark().Equal(first) {
		t.Errorf("nothing was new: %v", err)
	}
	if err := s.Fetch(t.Context(), ref(t, repo.whole(noise(1, 10)))); err != nil {
		t.Fatal(err)
	}
	if err := s.sync(false); err != nil || !mark().After(first) {
		t.Errorf("an object was new: %v", err)
	}
}

func TestUnreadableMarkMeansEverythingIsChecked(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	cfg.BootID = "first"
	s := open(t, cfg)
	r := ref(t, repo.whole(noise(1, 1000)))
	if err := errors.Join(s.Fetch(t.Context(), r), s.Close()); err != nil {
		t.Fatal(err)
	}
	object := filepath.Join(cfg.Dir, r.Path())
	if err := errors.Join(os.Chmod(object, 0o644), unix.Removexattr(object, attribute),
		os.WriteFile(filepath.Join(cfg.State, markFile), []byte("{torn"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if open(t, cfg).Has(r) {
		t.Error("an object without record was kept")
	}
}

func TestClosedStoreRefusesAndFrees(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	repo.Set(testutil.Fault{Silent: true})
	r := ref(t, repo.whole(noise(1, 1000)))
	done := make(chan error)
	go func() { done <- s.Fetch(t.Context(), r) }()
	eventually(t, "flight", func() bool { return repo.Requests("") == 1 })
	s.Prefetch([]Ref{ref(t, Object{Digest: digest("x"), Size: 1})})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("who waited got no error")
	}
	s.Prefetch([]Ref{r})
	if err := s.Fetch(t.Context(), r); err == nil {
		t.Error("a closed store fetches")
	}
}

func TestOpenRefusesFoldersOnTwoFileSystems(t *testing.T) {
	t.Parallel()
	cfg := configIn(t.TempDir(), nil)
	cfg.Fresh = smallDisk(t, 1<<20)
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "another file system") {
		t.Errorf("got %v", err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := newStore(t, newRepository(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Run(ctx)
}

// childFolder names the environment variables that make the test binary a process to be killed.
const childFolder, childURL, childTask = "OBJECTS_TEST_FOLDER", "OBJECTS_TEST_URL", "OBJECTS_TEST_TASK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childFolder); dir != "" {
		task := child
		if os.Getenv(childTask) == "churn" {
			task = churn
		}
		task(dir, os.Getenv(childURL))
		return
	}
	os.Exit(m.Run())
}

const killObjects, killSize = 1500, 20_000

// killContent is the content of an object of the kill test: both processes know it.
func killContent(i int) []byte { return noise(i, killSize+i) }

func childFetcher(url string) (*fetch.Fetcher, error) {
	return fetch.New(fetch.Config{Servers: []string{url}})
}

// killTable names the objects of the kill test.
func killTable() (*Index, *Table) {
	t := &Table{repos: []string{"r"}}
	for i := range killObjects {
		o := Object{Digest: hash.SHA1.Digest(killContent(i)), Compression: hash.None, Size: int64(killSize + i)}
		t.objects = appendObject(t.objects, &o, 0, 0)
	}
	x := NewIndex([16]byte{})
	x.Add(t)
	return x, t
}

// killServer stores them, and returns their content by name.
func killServer(repo *repository) map[string][]byte {
	want := map[string][]byte{}
	for i := range killObjects {
		b := killContent(i)
		o := Object{Digest: repo.put(hash.SHA1, hash.File, hash.None, b), Compression: hash.None, Size: int64(len(b))}
		want[o.Name()] = b
	}
	return want
}

// child fetches for ever.
func child(dir, url string) {
	f, err := childFetcher(url)
	if err != nil {
		panic(err)
	}
	s, err := Open(configIn(dir, sources{"r": f}))
	if err != nil {
		panic(err)
	}
	x, t := killTable()
	fmt.Println("ready")
	for i := range killObjects {
		r := Ref{x, t, uint32(i)}
		s.Near(r)
		if err := s.Fetch(context.Background(), r); err != nil {
			panic(err)
		}
		s.LinkFresh(r) // no matter if it fails
	}
	select {}
}

func TestKilledProcessLeavesNoWrongFile(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	want := killServer(repo)
	dir := t.TempDir()
	seen := 0
	for round := range 5 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childFolder+"="+dir, childURL+"="+repo.URL)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		io.ReadFull(out, make([]byte, 6)) // ready; if not, what follows says so
		time.Sleep(time.Duration(20+30*round) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the child ended of itself: %v", err)
		}
		list := names(t, filepath.Join(dir, "store/objects"))
		for _, name := range list {
			got, err := os.ReadFile(filepath.Join(dir, "store/objects", name[:2], name))
			if err != nil || !bytes.Equal(got, want[name]) || want[name] == nil {
				t.Errorf("round %d: %s is wrong: %d bytes, %v", round, name, len(got), err)
			}
		}
		seen = len(list)
	}
	if seen == 0 {
		t.Error("no object ever arrived: the test shows nothing")
	}
	t.Logf("%d of %d objects were there in the end", seen, killObjects)
}

// Cold start: 5,000 small files one after another, each with the 128 that follow asked for ahead.
func BenchmarkColdStart(b *testing.B) {
	for _, latency := range []time.Duration{0, 2 * time.Millisecond} {
		b.Run(fmt.Sprintf("latency %v", latency), func(b *testing.B) {
			repo := newRepository(b)
			repo.Set(testutil.Fault{Latency: latency})
			var objs []Object
			for i := range 5000 {
				objs = append(objs, repo.whole(noise(i, 4096)))
			}
			all := refs(b, objs...)
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				s := newStore(b, repo)
				b.StartTimer()
				for _, r := range all {
					s.Near(r)
					if err := s.Fetch(b.Context(), r); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "objects/s")
		})
	}
}
