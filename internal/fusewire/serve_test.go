package fusewire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

// tree is a root folder with the files below, whose content is their name again and again. Reads of "stalled…" wait
// until they are cancelled or the tree is thawed; "broken" panics.
type tree struct {
	sizes   map[string]int64
	names   []string // node = 2 + position
	thawed  chan struct{}
	stalled chan string // a read of such a name has begun
	lookups atomic.Int64
}

func newTree(sizes map[string]int64) *tree {
	x := &tree{sizes: sizes, thawed: make(chan struct{}), stalled: make(chan string, 1000)}
	for name := range sizes {
		x.names = append(x.names, name)
	}
	slices.Sort(x.names)
	return x
}

func (x *tree) entry(i int) Entry {
	return Entry{
		Node: uint64(i) + 2, Attr: Attr{Mode: syscall.S_IFREG | 0o444, Size: x.sizes[x.names[i]]},
		Valid: Forever,
	}
}

func (x *tree) Blocks(op Op, node uint64) bool {
	return op == OpRead && strings.HasPrefix(x.names[node-2], "stalled")
}

func (x *tree) Lookup(_ context.Context, _ uint64, name []byte) (Entry, syscall.Errno) {
	x.lookups.Add(1)
	i, ok := slices.BinarySearch(x.names, string(name))
	if !ok {
		return Entry{}, syscall.ENOENT
	}
	return x.entry(i), 0
}

func (x *tree) Getattr(_ context.Context, node uint64) (Attr, syscall.Errno) {
	if node == RootNode {
		return Attr{Mode: syscall.S_IFDIR | 0o555}, 0
	}
	return x.entry(int(node - 2)).Attr, 0
}

func (x *tree) Read(ctx context.Context, node uint64, p []byte, off int64) (int, syscall.Errno) {
	name := x.names[node-2]
	if name == "broken" {
		panic("broken")
	}
	if strings.HasPrefix(name, "stalled") {
		x.stalled <- name
		select {
		case <-x.thawed:
		case <-ctx.Done():
			return 0, syscall.EINTR
		}
	}
	return copy(p, content(name, x.sizes[name])[off:]), 0
}

func (x *tree) Readdir(_ context.Context, _, from uint64, add func(string, Entry) bool) syscall.Errno {
	for i := from; i < uint64(len(x.names)) && add(x.names[i], x.entry(int(i))); i++ {
	}
	return 0
}

func content(name string, size int64) []byte {
	return bytes.Repeat([]byte(name+"\n"), int(size)/(len(name)+1)+1)[:size]
}

// mount mounts FUSE without a server.
func mount(t *testing.T, without uint64) (dir string, dev *os.File, init Init) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Getuid() != 0 {
		t.Skipf("needs root and /dev/fuse: to mount a FUSE file system (%v)", err)
	} else {
		f.Close()
	}
	dir = t.TempDir()
	dev, err := Mount(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
		dev.Close()
	})
	if init, err = Handshake(dev, without); err != nil {
		t.Fatal(err)
	}
	return dir, dev, init
}

// serve serves x on a mount until the test ends; it then unmounts and expects Serve to end.
func serve(t *testing.T, dir string, dev *os.File, x Handler, cfg Config) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- Serve(dev, x, cfg) }()
	t.Cleanup(func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve goes on after unmounting")
		}
	})
}

// readFile reads without os.Open, which lets the runtime poll the file: that can't go on while we are to answer the
// poll.
func readFile(name string) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var all []byte
	buf := make([]byte, 1<<20)
	for {
		n, err := unix.Read(fd, buf)
		if n <= 0 || err != nil {
			return all, err
		}
		all = append(all, buf[:n]...)
	}
}

// rungs are the handshakes and ways of hand-over to be found on kernels.
var rungs = map[string]struct {
	without uint64
	journal bool
}{
	"resend":                  {0, false},
	"journal":                 {FlagHasResend, true},
	"journal, opens answered": {FlagHasResend | flagNoOpen | flagNoOpendir, true},
	"bare":                    {wanted, false},
}

func forRungs(t *testing.T, f func(t *testing.T, dir string, dev *os.File, cfg Config)) {
	for name, rung := range rungs {
		t.Run(name, func(t *testing.T) {
			dir, dev, init := mount(t, rung.without)
			cfg := Config{Init: init}
			if rung.journal {
				j, err := NewJournal()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { j.Close() })
				cfg.Journal = j
			}
			f(t, dir, dev, cfg)
		})
	}
}

func TestFilesReadAsTheyAre(t *testing.T) {
	forRungs(t, func(t *testing.T, dir string, dev *os.File, cfg Config) {
		sizes := map[string]int64{"empty": 0, "one": 1, "page": 4096, "odd": 300_001, "big": 5<<20 + 7}
		serve(t, dir, dev, newTree(sizes), cfg)
		for range 2 { // from us, from the page cache
			for name, size := range sizes {
				got, err := readFile(filepath.Join(dir, name))
				if err != nil || !bytes.Equal(got, content(name, size)) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, "odd"), &st); err != nil || st.Size != sizes["odd"] ||
			st.Mode != syscall.S_IFREG|0o444 {
			t.Errorf("stat: %+v, %v", st, err)
		}
		var sf unix.Statfs_t
		if err := unix.Statfs(dir, &sf); err != nil || sf.Namelen != MaxName {
			t.Errorf("statfs: %+v, %v", sf, err)
		}
		if fd, err := unix.Open(filepath.Join(dir, "new"), unix.O_CREAT|unix.O_WRONLY, 0o600); !errors.Is(err,
			unix.EROFS) {
			t.Errorf("create gave %d, %v", fd, err)
		}
	})
}

func TestListingIsCompleteWhenItTakesManyRequests(t *testing.T) {
	forRungs(t, func(t *testing.T, dir string, dev *os.File, cfg Config) {
		sizes := map[string]int64{}
		for i := range 3000 {
			sizes[fmt.Sprintf("file-%06d", i)] = int64(i)
		}
		serve(t, dir, dev, newTree(sizes), cfg)
		out, err := exec.Command("ls", dir).Output()
		if got := strings.Fields(string(out)); err != nil || len(got) != len(sizes) || !slices.IsSorted(got) {
			t.Errorf("%d names, %v", len(got), err)
		}
	})
}

func TestWhatIsMissingIsAskedForEveryTime(t *testing.T) {
	dir, dev, init := mount(t, 0)
	x := newTree(nil)
	serve(t, dir, dev, x, Config{Init: init})
	for range 3 {
		if _, err := readFile(filepath.Join(dir, "missing")); !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
	}
	if n := x.lookups.Load(); n != 3 {
		t.Errorf("%d lookups, want 3", n)
	}
}

func TestPanickingHandlerCostsOnlyItsRequest(t *testing.T) {
	dir, dev, init := mount(t, 0)
	serve(t, dir, dev, newTree(map[string]int64{"broken": 10, "good": 10}), Config{Init: init})
	if _, err := readFile(filepath.Join(dir, "broken")); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
	if got, err := readFile(filepath.Join(dir, "good")); err != nil || len(got) != 10 {
		t.Errorf("%q, %v", got, err)
	}
}

// cat starts a process that reads a file.
func cat(t *testing.T, name string) *exec.Cmd {
	t.Helper()
	c := exec.Command("cat", name)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() }) // mostly over by then
	return c
}

// within fails the test if f takes longer.
func within(t *testing.T, limit time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("%s takes longer than %v", what, limit)
	}
}

// promptTree is a tree that reads some files at once that it would stall on, and panics on others.
type promptTree struct{ *tree }

func (x promptTree) ReadNow(node uint64, p []byte, off int64) (int, bool) {
	switch name := x.names[node-2]; name {
	case "stalled, but here":
		return copy(p, content(name, x.sizes[name])[off:]), true
	case "broken now":
		panic(name)
	}
	return 0, false
}

func TestReadsThatNeedNotWaitAreAnsweredAtOnce(t *testing.T) {
	forRungs(t, func(t *testing.T, dir string, dev *os.File, cfg Config) {
		sizes := map[string]int64{"stalled, but here": 300_001, "broken now": 5000, "other": 5000}
		x := promptTree{newTree(sizes)}
		serve(t, dir, dev, x, cfg)
		for name, size := range sizes {
			got, err := readFile(filepath.Join(dir, name))
			if err != nil || !bytes.Equal(got, content(name, size)) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		if len(x.stalled) > 0 {
			t.Error("what can be read at once was waited for")
		}
	})
}

func TestStalledReadsDoNotHoldUpOthers(t *testing.T) {
	forRungs(t, func(t *testing.T, dir string, dev *os.File, cfg Config) {
		x := newTree(map[string]int64{"good": 10, "stalled-1": 1 << 20, "stalled-2": 10})
		cfg.Blocked = 1
		serve(t, dir, dev, x, cfg)
		first := cat(t, filepath.Join(dir, "stalled-1"))
		<-x.stalled
		cat(t, filepath.Join(dir, "stalled-2")) // there is no room for it
		within(t, 5*time.Second, "reading another file", func() {
			if _, err := readFile(filepath.Join(dir, "good")); err != nil {
				t.Error(err)
			}
		})
		close(x.thawed)
		within(t, 5*time.Second, "a thawed read", func() {
			if err := first.Wait(); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestKilledReaderIsGoneSoon(t *testing.T) {
	forRungs(t, func(t *testing.T, dir string, dev *os.File, cfg Config) {
		x := newTree(map[string]int64{"stalled-1": 10, "stalled-2": 10})
		cfg.Blocked = 1
		serve(t, dir, dev, x, cfg)
		var readers []*exec.Cmd
		for _, name := range []string{"stalled-1", "stalled-2"} {
			readers = append(readers, cat(t, filepath.Join(dir, name)))
		}
		<-x.stalled
		time.Sleep(100 * time.Millisecond) // lets the other one come to wait for room
		for _, c := range readers {
			c.Process.Kill() // Wait tells
		}
		within(t, 5*time.Second, "killing readers", func() {
			for _, c := range readers {
				c.Wait() // killed
			}
		})
	})
}

// signalled starts a reader of a stalled file that handles SIGUSR1, and sends it that.
func signalled(t *testing.T, dir string, x *tree) (c *exec.Cmd, out *bytes.Buffer) {
	t.Helper()
	out = &bytes.Buffer{}
	c = exec.Command("sh", "-c", `trap : USR1; exec 3<"$0"; read line <&3 && echo "$line"`,
		filepath.Join(dir, "stalled"))
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() }) // mostly over by then
	<-x.stalled
	if err := c.Process.Signal(unix.SIGUSR1); err != nil {
		t.Error(err)
	}
	time.Sleep(300 * time.Millisecond) // the reader would have given up by then
	return c, out
}

func TestHarmlessSignalIsNotSeen(t *testing.T) {
	dir, dev, init := mount(t, flagAsyncRead) // a read waits for its own request
	x := newTree(map[string]int64{"stalled": 10})
	serve(t, dir, dev, x, Config{Init: init, Grace: 20 * time.Millisecond})
	c, out := signalled(t, dir, x)
	close(x.thawed)
	if err := c.Wait(); err != nil || out.String() != "stalled\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

// The kernel tells of the first signal alone.
func TestReaderKilledAfterAHarmlessSignalIsGoneSoon(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGQUIT} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			dir, dev, init := mount(t, flagAsyncRead)
			x := newTree(map[string]int64{"stalled": 10})
			serve(t, dir, dev, x, Config{Init: init, Grace: 20 * time.Millisecond})
			c, _ := signalled(t, dir, x)
			if err := c.Process.Signal(signal); err != nil {
				t.Error(err)
			}
			within(t, 5*time.Second, "killing the reader", func() { c.Wait() }) // killed
		})
	}
}

func TestFateOfAThread(t *testing.T) {
	for thread, want := range map[uint32]endsFor{
		0: unseen, 1 << 30: unseen, uint32(os.Getpid()): lives, uint32(unix.Gettid()): lives,
	} {
		if got := fate(thread); got != want {
			t.Errorf("thread %d: %v, want %v", thread, got, want)
		}
	}
}

func TestRequestsOfADeadServerAreAnswered(t *testing.T) {
	for name, dying := range map[string]struct {
		without uint64
		die     func(t *testing.T, dev *os.File) (journal *os.File)
	}{
		"resent by the kernel": {0, func(t *testing.T, dev *os.File) *os.File {
			if _, err := unix.Read(int(dev.Fd()), make([]byte, requestSize)); err != nil {
				t.Fatal(err)
			}
			if err := Resend(dev); err != nil {
				t.Fatal(err)
			}
			return nil
		}},
		"kept in the journal": {FlagHasResend, func(t *testing.T, dev *os.File) *os.File {
			f, err := NewJournal()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			j, _, err := openJournal(f)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Munmap(j.mem) // ours
			if _, err := unix.Read(int(dev.Fd()), j.slot(j.take())); err != nil {
				t.Fatal(err)
			}
			return f
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, dev, init := mount(t, dying.without)
			if dying.without == 0 && !init.Has(FlagHasResend) {
				testutil.KernelLacks(t, "resending of FUSE requests") // Linux 6.9
			}
			c := exec.Command("cat", filepath.Join(dir, "file"))
			var out bytes.Buffer
			c.Stdout = &out
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			journal := dying.die(t, dev)
			serve(t, dir, dev, newTree(map[string]int64{"file": 100}), Config{Init: init, Journal: journal})
			within(t, 10*time.Second, "the reader of a dead server", func() {
				if err := c.Wait(); err != nil || !bytes.Equal(out.Bytes(), content("file", 100)) {
					t.Errorf("%q, %v", out.Bytes(), err)
				}
			})
		})
	}
}

func TestJournalIsEmptyWhenAllIsAnswered(t *testing.T) {
	dir, dev, init := mount(t, FlagHasResend)
	f, err := NewJournal()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	x := newTree(map[string]int64{"stalled": 1 << 20, "good": 1 << 20})
	close(x.thawed)
	serve(t, dir, dev, x, Config{Init: init, Journal: f})
	for _, name := range []string{"stalled", "good", "missing"} {
		readFile(filepath.Join(dir, name)) // one is missing
	}
	unix.Sync() // a request of its own, so that replies before it are through
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, left, err := openJournal(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests left", len(left))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestJournalWaitsForAFreeSlot(t *testing.T) {
	f, err := NewJournal()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	j, _, err := openJournal(f)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(j.mem) // ours
	seen := map[int]bool{}
	for range journalSlots {
		seen[j.take()] = true
	}
	if len(seen) != journalSlots {
		t.Fatalf("%d different slots of %d", len(seen), journalSlots)
	}
	got := make(chan int)
	go func() { got <- j.take() }()
	j.release(17)
	if i := <-got; i != 17 {
		t.Errorf("slot %d, want 17", i)
	}
}

func TestAPageFaultAsksForNoMoreThanWasSet(t *testing.T) {
	dir, dev, init := mount(t, 0)
	const size = 32 << 20
	readAhead := 4 * os.Getpagesize()
	within(t, 5*time.Second, "setting the read-ahead", func() {
		if err := SetReadAhead(dir, readAhead/1024); err != nil {
			t.Error(err)
		}
	})
	if err := SetReadAhead(t.TempDir(), 4); err == nil {
		t.Error("it is set where nothing is mounted")
	}
	x := newTree(map[string]int64{"stalled": size})
	close(x.thawed)
	serve(t, dir, dev, x, Config{Init: init})
	f, err := os.Open(filepath.Join(dir, "stalled"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	in := make([]byte, size/os.Getpagesize())
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	// The fault is in a system call: the runtime couldn't stop this goroutine while we are to answer it.
	if _, err := unix.Write(pipe[1], m[size/2:size/2+1]); err != nil {
		t.Fatal(err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(size),
		uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
		t.Fatal(errno)
	}
	pages := 0
	for _, there := range in {
		pages += int(there & 1)
	}
	if most := readAhead / os.Getpagesize(); pages < 1 || pages > most {
		t.Errorf("%d pages are read for one, want %d at most", pages, most)
	}
}

func TestSysCanBeWrittenWithoutAMountOfIt(t *testing.T) {
	testutil.NeedRoot(t)
	dir, _, _ := mount(t, 0)
	at, err := deviceOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	name := "class/bdi/" + at + "/read_ahead_kb"
	f, err := openInSys(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("64"); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile("/sys/" + name); err != nil || string(got) != "64\n" {
		t.Errorf("it is %q, %v", got, err)
	}
}

func TestUnmountOfNothingIsNoError(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	for _, name := range []string{dir, filepath.Join(dir, "missing")} {
		if err := Unmount(name); err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkLookup is the cost of a request that does not block; its allocations are the handler's.
func BenchmarkLookup(b *testing.B) {
	null, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(null)
	s := &server{fd: null, handler: newTree(map[string]int64{"file": 1}), ctx: b.Context()}
	r, out := request(OpLookup, 4, RootNode, []byte("file\x00")), make([]byte, outHeaderSize+entryOutSize)
	b.ReportAllocs()
	for b.Loop() {
		s.handle(r, 0, &out)
	}
}
