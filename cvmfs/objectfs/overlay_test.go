package objectfs

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/test/fusetest"
	"cvmfs-graphdriver/test/testutil"
)

const fqrn = "objects.example.org"

// server holds stored objects and can be told to misbehave.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	stored   map[string][]byte // by path
	requests atomic.Int64
	mode     atomic.Int32
	release  chan struct{} // closed at the end: stalled requests go
}

const (
	wellBehaved = iota
	down        // connections are cut
	stalling    // no answer
	lying       // the right length, other bytes
	slow        // half a second later
)

func newServer(t *testing.T) *server {
	t.Helper()
	fusetest.Require(t) // before content is made
	s := &server{stored: map[string][]byte{}, release: make(chan struct{})}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		close(s.release)
		s.Close()
	})
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	s.mu.Lock()
	b, ok := s.stored[strings.TrimPrefix(r.URL.Path, "/")]
	s.mu.Unlock()
	switch s.mode.Load() {
	case down:
		panic(http.ErrAbortHandler)
	case stalling:
		select {
		case <-r.Context().Done():
		case <-s.release:
		}
		panic(http.ErrAbortHandler)
	case slow:
		time.Sleep(500 * time.Millisecond)
	case lying:
		b = bytes.Repeat([]byte{0x55}, len(b))
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Write(b) // the client may be gone
}

// store makes a stored object of plain bytes.
func (s *server) store(plain []byte, suffix hash.Suffix) hash.Digest {
	var b bytes.Buffer
	z, _ := zlib.NewWriterLevel(&b, zlib.BestSpeed) // a level there is
	z.Write(plain)                                  // into memory
	z.Close()
	d := hash.SHA1.Digest(b.Bytes())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored[d.Path(suffix)] = b.Bytes()
	return d
}

func (s *server) whole(plain []byte) *objects.Object {
	return &objects.Object{Digest: s.store(plain, hash.File), Size: int64(len(plain))}
}

func (s *server) chunked(plain []byte, size int) *objects.Object {
	o := &objects.Object{Size: int64(len(plain))}
	for at := 0; at < len(plain); at += size {
		piece := plain[at:min(at+size, len(plain))]
		o.Chunks = append(o.Chunks, catalog.Chunk{
			Offset: int64(at), Size: int64(len(piece)),
			Digest: s.store(piece, hash.Chunk),
		})
	}
	return o
}

// noise is n bytes that don't compress.
func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// host is everything between containers and the server.
type host struct {
	t      *testing.T
	server *server
	base   string
	lower  string // metadata of the one image
	fuse   string
	store  *objects.Store
	files  map[string][]byte
	counts *counting
	log    *testutil.Buffer
}

// Fetcher is objects.Sources.
func (s *server) Fetcher(string) (*fetch.Fetcher, error) {
	return fetch.New(fetch.Config{
		Servers: []string{s.URL}, TimeoutDirect: time.Second,
		BackoffInit: 50 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
	})
}

// oneFetcher keeps the fetcher and so its memory of who is down.
type oneFetcher struct{ f *fetch.Fetcher }

func (o oneFetcher) Fetcher(string) (*fetch.Fetcher, error) { return o.f, nil }

// counting counts requests of each kind.
type counting struct {
	fusewire.Handler
	ops   [64]atomic.Int64
	fails atomic.Int32 // the errno that every read ends with, if any
}

func (c *counting) Blocks(op fusewire.Op, node uint64) bool {
	c.ops[op%64].Add(1)
	return c.Handler.Blocks(op, node)
}

func (c *counting) Read(ctx context.Context, node uint64, p []byte, off int64) (int, syscall.Errno) {
	if errno := c.fails.Load(); errno != 0 {
		return 0, syscall.Errno(errno)
	}
	return c.Handler.Read(ctx, node, p, off)
}

func (c *counting) of(op fusewire.Op) int64 { return c.ops[op].Load() }

// file is a file of the image.
type file struct {
	name    string
	content []byte
	object  *objects.Object
}

func newHost(t *testing.T, base string, server *server, cfg Config, files ...file) *host {
	t.Helper()
	h := &host{
		t: t, server: server, base: base, lower: t.TempDir(), fuse: t.TempDir(), files: map[string][]byte{},
		log: &testutil.Buffer{},
	}
	var all []*objects.Object
	for _, f := range files {
		fusetest.Hole(t, filepath.Join(h.lower, f.name), f.object.Size, "/objects/"+f.object.Path())
		h.files[f.name] = f.content
		all = append(all, f.object)
	}
	cfg.Index = objects.NewIndex([16]byte{1})
	cfg.Index.Add(table(t, all))
	f, err := server.Fetcher(fqrn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.NewTextHandler(h.log, nil))
	cfg.Store, err = objects.Open(objects.Config{
		Dir: filepath.Join(base, "store", "objects"), Fresh: filepath.Join(base, "fresh", "objects"),
		State:   filepath.Join(base, "state"),
		Sources: oneFetcher{f}, InPart: cfg.InPart, Log: cfg.Log,
	})
	if err != nil {
		t.Fatal(err)
	}
	h.store = cfg.Store
	h.counts = &counting{Handler: New(cfg)}
	h.serve()
	return h
}

func table(t *testing.T, all []*objects.Object) *objects.Table {
	t.Helper()
	name := filepath.Join(t.TempDir(), "objects")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = objects.WriteTable(f, []string{fqrn}, false, func(yield func(*objects.Object, int) bool) {
		for _, o := range all {
			if !yield(o, 0) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	tab, err := objects.OpenTable(name)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// serve mounts the tree until the test ends.
func (h *host) serve() {
	session, err := fusewire.Open(h.fuse, h.counts, fusewire.Config{
		Grace: 100 * time.Millisecond, Log: slog.New(slog.NewTextHandler(h.log, nil)),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { // after the overlays are gone
		if err := errors.Join(session.Close(), h.store.Close()); err != nil {
			h.t.Error(err)
		}
		if h.t.Failed() {
			h.t.Logf("log:\n%s", h.log)
		}
	})
}

// container mounts the image once more.
func (h *host) container() string {
	h.t.Helper()
	return fusetest.Overlay(h.t, h.lower, filepath.Join(h.base, "store"), filepath.Join(h.fuse, Gate),
		filepath.Join(h.base, "fresh"), filepath.Join(h.fuse, Data))
}

// expect reads a file and compares it.
func (h *host) expect(root, name string) {
	h.t.Helper()
	got, err := os.ReadFile(filepath.Join(root, name))
	if err != nil || !bytes.Equal(got, h.files[name]) {
		h.t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(h.files[name]), err)
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestFirstContainerFetchesAndTheSecondAsksNobody(t *testing.T) {
	s := newServer(t)
	small, big := noise(3000, 1), noise(3<<20+11, 2)
	h := newHost(t, t.TempDir(), s, Config{}, file{"small", small, s.whole(small)},
		file{"big", big, s.whole(big)})
	first := h.container()
	h.expect(first, "small")
	h.expect(first, "big")
	if n := h.counts.of(fusewire.OpRead); n != 0 {
		t.Errorf("the first container read %d times through FUSE", n)
	}
	requests, lookups := s.requests.Load(), h.counts.of(fusewire.OpLookup)
	if requests != 2 {
		t.Errorf("%d requests to the server, want 2; the store: %+v", requests, h.store.Stats())
	}
	second := h.container()
	h.expect(second, "small")
	h.expect(second, "big")
	h.expect(first, "small")
	if got := s.requests.Load(); got != requests {
		t.Errorf("the second container made %d requests to the server", got-requests)
	}
	if got := h.counts.of(fusewire.OpLookup) + h.counts.of(fusewire.OpRead); got != lookups {
		t.Errorf("the second container made %d FUSE requests", got-lookups)
	}
}

func TestNeighboursArriveAheadAndAreSeenToBeUsed(t *testing.T) {
	s := newServer(t)
	var files []file
	for i := range 20 {
		b := noise(1000+i, byte(i))
		files = append(files, file{fmt.Sprintf("dir/%03d", i), b, s.whole(b)})
	}
	h := newHost(t, t.TempDir(), s, Config{}, files...)
	root := h.container()
	h.expect(root, "dir/010")
	eventually(t, "neighbours are here", func() bool { return h.store.Stats().Prefetched >= 8 })
	for i := range 20 {
		h.expect(root, fmt.Sprintf("dir/%03d", i))
	}
	eventually(t, "rest", func() bool { st := h.store.Stats(); return st.Queued == 0 && st.Waiting == 0 })
	if got := s.requests.Load(); got != 20 {
		t.Errorf("%d requests, want 20", got)
	}
	if n := h.counts.of(fusewire.OpRead); n != 0 {
		t.Errorf("%d reads through FUSE", n)
	}
	if st := h.store.Stats(); st.AheadUsed != st.AheadBytes || st.AheadUsed < 8*1000 {
		t.Errorf("%d of %d bytes ahead count as used: all were read", st.AheadUsed, st.AheadBytes)
	}
	requests := h.counts.of(fusewire.OpLookup)
	second := h.container()
	for i := range 20 {
		h.expect(second, fmt.Sprintf("dir/%03d", i))
	}
	if got := h.counts.of(fusewire.OpLookup) - requests; got != 0 {
		t.Errorf("the second container made %d lookups", got)
	}
}

func TestLargeChunkedObjectIsReadInRanges(t *testing.T) {
	s := newServer(t)
	b := noise(12<<20+77, 3)
	h := newHost(t, t.TempDir(), s, Config{}, file{"large", b, s.chunked(b, 1<<20)})
	root := h.container()
	f, err := os.Open(filepath.Join(root, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n := s.requests.Load(); n != 0 {
		t.Errorf("opening it made %d requests to the server", n)
	}
	got := make([]byte, 4096)
	if _, err := f.ReadAt(got, 7<<20+5); err != nil || !bytes.Equal(got, b[7<<20+5:][:4096]) {
		t.Errorf("a range: %v", err)
	}
	if n := s.requests.Load(); n == 0 || n > 3 {
		t.Errorf("reading 4 KiB made %d requests to the server", n)
	}
	h.expect(root, "large")
	if n := s.requests.Load(); n != 13 {
		t.Errorf("%d requests to the server, want 13: one a chunk", n)
	}
	eventually(t, "it is complete", func() bool { return h.store.Stats().Fetched == 1 })
	reads := h.counts.of(fusewire.OpRead)
	h.expect(h.container(), "large")
	if got := h.counts.of(fusewire.OpRead); got != reads {
		t.Errorf("the second container read %d times through FUSE", got-reads)
	}
}

func TestAFileThatIsHalfReadIsLocalForTheNextContainer(t *testing.T) {
	s := newServer(t)
	b := noise(4<<20, 9)
	h := newHost(t, t.TempDir(), s, Config{}, file{"large", b, s.chunked(b, 128<<10)})
	f, err := os.Open(filepath.Join(h.container(), "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	half := make([]byte, 2<<20)
	if _, err := io.ReadFull(f, half); err != nil || !bytes.Equal(half, b[:len(half)]) {
		t.Errorf("the first half: %v", err)
	}
	eventually(t, "it is complete", func() bool { return h.store.Stats().Fetched == 1 })
	reads := h.counts.of(fusewire.OpRead)
	h.expect(h.container(), "large")
	if got := h.counts.of(fusewire.OpRead); got != reads {
		t.Errorf("the second container read %d times through FUSE", got-reads)
	}
	if n := s.requests.Load(); n != 32 {
		t.Errorf("%d requests for 32 chunks", n)
	}
}

func TestSmallChunkedObjectComesThroughTheGate(t *testing.T) {
	s := newServer(t)
	b := noise(gateLimit, 4)
	h := newHost(t, t.TempDir(), s, Config{}, file{"chunked", b, s.chunked(b, 30<<10)})
	h.expect(h.container(), "chunked")
	if n := h.counts.of(fusewire.OpRead); n != 0 {
		t.Errorf("%d reads through FUSE", n)
	}
}

// A file of some size has chunks where a start reads a part of it: who opens it doesn't wait for all.
func TestAFileThatIsCutIsReadByTheChunk(t *testing.T) {
	s := newServer(t)
	b := noise(gateLimit+4096, 4)
	h := newHost(t, t.TempDir(), s, Config{}, file{"cut", b, s.chunked(b, 20<<10)})
	f, err := os.Open(filepath.Join(h.container(), "cut"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 4096)
	if _, err := f.ReadAt(got, 24<<10); err != nil || !bytes.Equal(got, b[24<<10:28<<10]) {
		t.Errorf("other content, or %v", err)
	}
	if n := h.counts.of(fusewire.OpRead); n == 0 {
		t.Error("no read through FUSE")
	}
}

// Who records a start sees each read of files that may be cut, however often they are opened.
func TestReadsOfWhatIsServedInPartAreSeen(t *testing.T) {
	s := newServer(t)
	small, large := noise(4096, 4), noise(100<<10, 5)
	h := newHost(t, t.TempDir(), s, Config{InPart: 4096}, file{"small", small, s.whole(small)},
		file{"large", large, s.whole(large)})
	for range 2 {
		root := h.container()
		h.expect(root, "small")
		h.expect(root, "large")
	}
	if n := h.counts.of(fusewire.OpRead); n == 0 {
		t.Error("no read through FUSE")
	}
	if found, _ := filepath.Glob(filepath.Join(h.base, "store", "objects", "??", "*")); len(found) != 1 {
		t.Errorf("stored: %v, want the small one", found)
	}
}

func TestFailureIsEIOWithinTheBoundAndTheNextReadTriesAgain(t *testing.T) {
	for name, mode := range map[string]int32{"down": down, "stalling": stalling, "lying": lying} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			whole, chunks := noise(5000, 5), noise(300<<10, 6)
			h := newHost(t, t.TempDir(), s, Config{GateLimit: 1 << 10}, file{"whole", whole, s.whole(whole)},
				file{"chunks", chunks, s.chunked(chunks, 100<<10)})
			root := h.container()
			s.mode.Store(mode)
			for name := range h.files {
				start := time.Now()
				if _, err := os.ReadFile(filepath.Join(root, name)); !errors.Is(err, syscall.EIO) {
					t.Errorf("%s: got %v, want EIO", name, err)
				}
				if took := time.Since(start); took > 10*time.Second {
					t.Errorf("%s: it took %v", name, took)
				}
			}
			if n := strings.Count(h.log.String(), "object can't be read"); n != 2 {
				t.Errorf("said %d times, want once for each object", n)
			}
			s.mode.Store(wellBehaved)
			for name := range h.files {
				eventually(t, name+" reads again", func() bool {
					got, err := os.ReadFile(filepath.Join(root, name))
					return err == nil && bytes.Equal(got, h.files[name])
				})
			}
		})
	}
}

func TestReaderKilledWhileItWaitsIsGoneSoonAndLeavesNothing(t *testing.T) {
	for name, limit := range map[string]int64{"at the gate": 1 << 20, "in a read": 1 << 10} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			b := noise(300<<10, 8)
			h := newHost(t, t.TempDir(), s, Config{GateLimit: limit}, file{"file", b, s.chunked(b, 100<<10)})
			root := h.container()
			s.mode.Store(stalling)
			c := exec.Command("cat", filepath.Join(root, "file"))
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the server is asked", func() bool { return s.requests.Load() > 0 })
			if err := c.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			c.Wait() // killed
			if took := time.Since(start); took > 900*time.Millisecond {
				t.Errorf("killing the reader took %v", took)
			}
			eventually(t, "nobody waits", func() bool { return h.store.Stats().Waiting == 0 })
			s.mode.Store(wellBehaved)
			eventually(t, "the file reads", func() bool {
				got, err := os.ReadFile(filepath.Join(root, "file"))
				return err == nil && bytes.Equal(got, b)
			})
		})
	}
}

func TestStalledObjectDoesNotHoldUpOthers(t *testing.T) {
	s := newServer(t)
	one, two := noise(100, 9), noise(100, 10)
	h := newHost(t, t.TempDir(), s, Config{}, file{"here", one, s.whole(one)}, file{"stalled", two, s.whole(two)})
	if err := h.store.Fetch(t.Context(), ref(t, h, "here")); err != nil {
		t.Fatal(err)
	}
	s.mode.Store(stalling)
	root := h.container()
	c := exec.Command("cat", filepath.Join(root, "stalled"))
	before := s.requests.Load()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server is asked", func() bool { return s.requests.Load() > before })
	start := time.Now()
	h.expect(h.container(), "here") // mounting asks FUSE, too
	if took := time.Since(start); took > 800*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	c.Process.Kill() // Wait tells
	c.Wait()         // killed
}

// ref finds the object of a file by its hole's redirect.
func ref(t *testing.T, h *host, name string) objects.Ref {
	t.Helper()
	b := make([]byte, 200)
	n, err := unix.Lgetxattr(filepath.Join(h.lower, name), "trusted.overlay.redirect", b)
	if err != nil {
		t.Fatal(err)
	}
	r, ok := h.counts.Handler.(*FS).cfg.Index.Lookup(filepath.Base(string(b[:n])))
	if !ok {
		t.Fatalf("%s is not in the index", b[:n])
	}
	return r
}

// readersGet returns what this kernel gives to the reader of a FUSE file where a read is answered with errno: that, or
// EIO. Linux 7 reads such files into its cache as those of disks, and forgets why it failed.
func readersGet(t *testing.T, errno syscall.Errno) (got syscall.Errno) {
	t.Helper()
	s := newServer(t)
	b := noise(1000, 40)
	o := s.whole(b)
	h := newHost(t, t.TempDir(), s, Config{}, file{"file", b, o})
	h.counts.fails.Store(int32(errno))
	_, err := os.ReadFile(filepath.Join(h.fuse, Data, "objects", o.Path()))
	if !errors.As(err, &got) || got != errno && got != syscall.EIO {
		t.Fatalf("a read that is answered with %v ends with %v", errno, err)
	}
	return got
}

func TestFullDiskIsENOSPCAndIsSaid(t *testing.T) {
	base := t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, "size=3m"); err != nil {
		t.Skipf("needs tmpfs: a disk to fill (%v)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(base, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := newServer(t)
	b, small := noise(4<<20, 11), noise(1000, 12)
	h := newHost(t, base, s, Config{}, file{"toobig", b, s.whole(b)}, file{"small", small, s.whole(small)})
	root := h.container()
	want := readersGet(t, syscall.ENOSPC)
	if _, err := os.ReadFile(filepath.Join(root, "toobig")); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if log := h.log.String(); !strings.Contains(log, "full=true") || !strings.Contains(log, "no space left") {
		t.Error("the log doesn't say that the disk is full")
	}
	h.expect(root, "small")
}

// TestReaderIsNotDisturbedBySignals has its reader get a harmless signal now and then while an object arrives, for
// longer than the grace time. Were the lookup at the gate given up, the overlay would go on to the data folder, which
// fetches the object once more and serves it for as long as the container lives.
func TestReaderIsNotDisturbedBySignals(t *testing.T) {
	s := newServer(t)
	b := noise(1<<20, 13)
	h := newHost(t, t.TempDir(), s, Config{}, file{"file", b, s.whole(b)})
	s.mode.Store(slow)
	c := exec.Command("sh", "-c",
		`trap : USR1; (for i in 1 2 3 4 5 6 7 8; do sleep 0.03; kill -USR1 $$; done) & exec 3<"$0"; wait; cat <&3`,
		filepath.Join(h.container(), "file"))
	if got, err := c.Output(); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%d bytes of %d, %v", len(got), len(b), err)
	}
	if n := h.counts.of(fusewire.OpRead); n != 0 {
		t.Errorf("it read %d times through FUSE", n)
	}
	if n := s.requests.Load(); n != 1 {
		t.Errorf("%d requests to the server", n)
	}
}
