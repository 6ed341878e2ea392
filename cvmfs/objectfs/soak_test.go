package objectfs

import (
	"bytes"
	"context"
	"encoding/binary"
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
	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/test/fusetest"
	"cvmfs-graphdriver/test/testutil"
)

const (
	soakDisk   = 1 << 30
	soakLimit  = 300 << 20
	soakFloor  = 50 << 20
	soakImages = 8
	soakFiles  = 800 // of an image, a quarter of them in all
	// soakHold is short, as images come round every few seconds: the store keeps what was used so lately.
	soakHold = 3 * time.Second
	// soakPatience is how long something has to be removed in.
	soakPatience = 5 * time.Minute
	// soakSlack is by how much the disk may hold more than the limit: one part in so many.
	soakSlack = 20
)

// soakChunk is the size of a chunk of a large file.
const soakChunk = 1 << 20

// soakContent is what a file of the soak holds: bytes that don't compress, made when they are asked for.
type soakContent struct{ seed, size int64 }

// part makes the bytes from off to end, which are in one chunk.
func (c soakContent) part(off, end int64) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(c.seed))
	binary.LittleEndian.PutUint64(seed[8:], uint64(off/soakChunk))
	first := off / soakChunk * soakChunk
	b := make([]byte, end-first)
	rand.NewChaCha8(seed).Read(b) // never fails
	return b[off-first:]
}

// soakSize gives most files some KiB, some of them up to 400, and each 50th 9 MiB in chunks, which the gate lets pass.
func soakSize(seed int64) int64 {
	random := rand.New(rand.NewPCG(uint64(seed), 1))
	switch {
	case seed%50 == 49:
		return 9 << 20
	case seed%3 == 0:
		return 1 + random.Int64N(400<<10)
	}
	return 1 + random.Int64N(60<<10)
}

// soakServer serves stored objects that it makes when it is asked: uncompressed ones.
type soakServer struct {
	*httptest.Server
	at map[string]func() []byte // by path
}

func newSoakServer(t *testing.T) *soakServer {
	s := &soakServer{at: map[string]func() []byte{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content := s.at[strings.TrimPrefix(r.URL.Path, "/")] // all are there before the first is asked for
		if content == nil {
			http.NotFound(w, r)
			return
		}
		w.Write(content()) // the client may be gone
	}))
	t.Cleanup(s.Close)
	return s
}

// object makes the object of a content.
func (s *soakServer) object(c soakContent) *objects.Object {
	o := &objects.Object{Size: c.size, Compression: hash.None}
	if c.size <= soakChunk {
		o.Digest = hash.SHA1.Digest(c.part(0, c.size))
		s.at[o.Digest.Path(hash.File)] = func() []byte { return c.part(0, c.size) }
		return o
	}
	for at := int64(0); at < c.size; at += soakChunk {
		end := min(at+soakChunk, c.size)
		d := hash.SHA1.Digest(c.part(at, end))
		s.at[d.Path(hash.Chunk)] = func() []byte { return c.part(at, end) }
		o.Chunks = append(o.Chunks, catalog.Chunk{Offset: at, Size: end - at, Digest: d})
	}
	return o
}

// soakImage is an image of the soak: the folder that an overlay stands on, and what its files hold.
type soakImage struct {
	key, lower string
	contents   []soakContent
	table      *objects.Table
	refs       []objects.Ref

	mounts atomic.Int32
}

// soak is a store on a disk of its own, with eight images that containers read from.
type soak struct {
	t      *testing.T
	disk   string
	empty  int64 // bytes of the disk that are used by nothing of ours
	fuse   string
	tables string
	store  *objects.Store
	images []*soakImage // the last one is used on the full disk alone

	counted objects.Status // when the disk held most

	reads, bytes, mounts, notLocal atomic.Int64
}

// Images tells the store which images are mounted.
func (k *soak) Images() (list []objects.Image, err error) {
	for _, i := range k.images {
		list = append(list, objects.Image{
			Key: i.key, Table: filepath.Join(k.tables, i.key, "objects"), Mounted: i.mounts.Load() > 0,
		})
	}
	return list, nil
}

// TestSoak has containers, which are real overlays, read at random in eight images of more than the limit in all. The
// disk never holds more than the limit, no read fails, nothing that a mounted overlay has looked up goes, a disk filled
// by others is told as such, and damage is mended. SOAK=10m makes it go on so long ("make soak").
func TestSoak(t *testing.T) {
	fusetest.Require(t)
	if os.Getenv(soakApart) == "" {
		soakInItsOwnMounts(t)
		return
	}
	long := 30 * time.Second
	if v := os.Getenv("SOAK"); v != "" {
		var err error
		if long, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	} else if testing.Short() {
		long = 10 * time.Second
	}
	k := newSoak(t)
	_, unmount := k.mount(k.images[0]) // skips where the kernel can't, which the containers' goroutines mustn't
	unmount()
	go k.store.Run(t.Context())
	most := k.read(long)
	after := k.settle()
	st, err := k.store.Status()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: %d mounts, %d reads of %d MiB, %d of them not kept; at most %.1f MiB on disk, %.1f in the end; %+v", long,
		k.mounts.Load(), k.reads.Load(), k.bytes.Load()>>20, k.notLocal.Load(), mib(most), mib(after), st)
	if most > soakLimit+soakLimit/soakSlack || after > soakLimit+soakLimit/soakSlack {
		t.Errorf("the disk held %d bytes when the store counted %d, and %d in the end: the limit is %d", most,
			k.counted.Used, after, int64(soakLimit))
	}
	if st.Evicted.Objects == 0 || st.Refused > 0 {
		t.Errorf("nothing was removed, or something refused: %+v", st)
	}
	k.fill()
	k.damage()
}

// soakApart is set in the process that has mounts of its own.
const soakApart = "SOAK_APART"

// soakInItsOwnMounts runs the test in a process whose mounts nobody else sees. Who makes a mount namespace meanwhile,
// as private engines do, would have copies of our overlays, which hold the objects that are removed.
func soakInItsOwnMounts(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestSoak$", "-test.v", "-test.timeout=0",
		fmt.Sprintf("-test.short=%t", testing.Short()))
	cmd.Env = append(os.Environ(), soakApart+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := child.Start(cmd); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	out := said.Bytes()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skip(string(out))
	default:
		t.Log(string(out))
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func newSoak(t *testing.T) *soak {
	k := &soak{t: t, disk: soakDiskAt(t), fuse: t.TempDir(), tables: t.TempDir()}
	server := newSoakServer(t)
	index := objects.NewIndex([16]byte{1})
	for n := range soakImages + 1 {
		k.images = append(k.images, k.image(server, index, n))
	}
	f, err := fetch.New(fetch.Config{Servers: []string{server.URL}, TimeoutDirect: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	k.store, err = objects.Open(objects.Config{
		Dir: filepath.Join(k.disk, "store", "objects"), Fresh: filepath.Join(k.disk, "fresh", "objects"),
		State: filepath.Join(k.disk, "state"), Sources: oneFetcher{f}, Images: k,
		Limits: objects.Limits{Limit: soakLimit, Floor: soakFloor}, ScrubRate: -1, Hold: soakHold,
	})
	if err != nil {
		t.Fatal(err)
	}
	k.empty = k.used()
	h := &host{t: t, fuse: k.fuse, store: k.store, log: &testutil.Buffer{}}
	h.counts = &counting{Handler: New(Config{Index: index, Store: k.store, Log: log})}
	h.serve()
	return k
}

// soakDiskAt mounts a file system of its own.
func soakDiskAt(t *testing.T) string {
	image, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, soakDisk)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", image).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext4: %v %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("needs to mount: %v %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("the disk is still in use: %v", err)
		}
	})
	return dir
}

// image makes the n-th image.
func (k *soak) image(server *soakServer, index *objects.Index, n int) *soakImage {
	i := &soakImage{key: fmt.Sprint("image", n), lower: k.t.TempDir()}
	var all []*objects.Object
	for j := range int64(soakFiles) {
		seed := int64(n)*soakFiles + j
		if j < soakFiles/4 {
			seed = j
		}
		c := soakContent{seed, soakSize(seed)}
		o := server.object(c)
		fusetest.Hole(k.t, filepath.Join(i.lower, fmt.Sprint(j)), c.size, "/objects/"+o.Path())
		i.contents, all = append(i.contents, c), append(all, o)
	}
	made := table(k.t, all)
	dir := filepath.Join(k.tables, i.key)
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = os.Rename(made.Path(), filepath.Join(dir, "objects"))
	}
	if err == nil {
		i.table, err = objects.OpenTable(filepath.Join(dir, "objects"))
	}
	if err != nil {
		k.t.Fatal(err)
	}
	index.Add(i.table)
	for _, o := range all {
		r, ok := index.Lookup(o.Name())
		if !ok {
			k.t.Fatalf("%s is not in the index", o.Name())
		}
		i.refs = append(i.refs, r)
	}
	return i
}

// used is how much of the disk is used, by whoever.
func (k *soak) used() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(k.disk, &st); err != nil {
		k.t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// read has three containers at a time read for so long, and on until something has been removed, which a slow machine
// comes to late. It returns the most that the disk held.
func (k *soak) read(long time.Duration) (most int64) {
	ctx, cancel := context.WithCancel(k.t.Context())
	defer cancel()
	var group sync.WaitGroup
	for n := range 3 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 7))
			for ctx.Err() == nil {
				k.container(ctx, k.images[random.IntN(soakImages)], random, long/10)
			}
		})
	}
	for began := time.Now(); time.Since(began) < long || time.Since(began) < soakPatience && k.evicted() == 0; {
		if now := k.used() - k.empty; now > most {
			most = now
			k.counted, _ = k.store.Status() // statfs(2) has just worked
		}
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	group.Wait()
	return max(most, k.used()-k.empty)
}

// evicted returns how many objects have been removed.
func (k *soak) evicted() int64 {
	st, err := k.store.Status()
	if err != nil {
		k.t.Error(err)
	}
	return st.Evicted.Objects
}

// mount mounts an image as a container's layer is, and returns what unmounts it.
func (k *soak) mount(i *soakImage) (root string, unmount func()) {
	k.store.Used(i.table)
	i.mounts.Add(1)
	root = k.t.TempDir()
	err := (&overlayfs.Kernel{}).Mount(root, &overlayfs.Spec{Lower: []string{i.lower}, Data: []string{
		filepath.Join(k.disk, "store"), filepath.Join(k.fuse, Gate), filepath.Join(k.disk, "fresh"),
		filepath.Join(k.fuse, Data),
	}, Metacopy: true})
	if errors.Is(err, overlayfs.ErrData) {
		testutil.KernelLacks(k.t, "data-only layers")
	}
	if err != nil {
		k.t.Error(err)
	}
	k.mounts.Add(1)
	return root, func() {
		if err := unix.Unmount(root, 0); err != nil {
			k.t.Errorf("unmount: %v", err)
		}
		i.mounts.Add(-1)
	}
}

// container runs for a while. What was local when it read it must be so when it ends.
func (k *soak) container(ctx context.Context, i *soakImage, random *rand.Rand, longest time.Duration) {
	root, unmount := k.mount(i)
	defer unmount()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(random.Int64N(int64(longest))))
	defer cancel()
	local := map[int]bool{}
	for ctx.Err() == nil {
		n := random.IntN(soakFiles)
		if err := k.check(root, i, n, random); err != nil {
			k.t.Errorf("%s, file %d: %v", i.key, n, err)
		}
		if k.store.Has(i.refs[n]) {
			local[n] = true
		} else {
			k.notLocal.Add(1)
		}
	}
	for n := range local {
		if !k.store.Has(i.refs[n]) {
			k.t.Errorf("object %d has vanished from %s while a container ran", n, i.key)
		}
	}
}

// check reads a file: all of it, or of a large one a piece.
func (k *soak) check(root string, i *soakImage, n int, random *rand.Rand) error {
	c := i.contents[n]
	off, length := int64(0), c.size
	if c.size > soakChunk {
		length = 64 << 10
		off = random.Int64N(c.size/length) * length
	}
	f, err := os.Open(filepath.Join(root, fmt.Sprint(n)))
	if err != nil {
		return err
	}
	defer f.Close()
	got := make([]byte, length)
	if _, err := io.ReadFull(io.NewSectionReader(f, off, length), got); err != nil {
		return err
	}
	k.reads.Add(1)
	k.bytes.Add(length)
	if !bytes.Equal(got, c.part(off, off+length)) {
		return errors.New("the content is wrong")
	}
	return nil
}

// settle waits until nothing more is removed, all being unmounted, and returns what the disk holds.
func (k *soak) settle() int64 {
	deadline := time.Now().Add(10 * time.Second)
	for k.used()-k.empty > soakLimit && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	return k.used() - k.empty
}

// fill has others fill the disk. What is local is read; the rest is refused by name, and arrives when there is room.
func (k *soak) fill() {
	i := k.images[soakImages]
	root, unmount := k.mount(i)
	defer unmount()
	random := rand.New(rand.NewPCG(3, 3))
	const here = 0
	if err := k.check(root, i, here, random); err != nil {
		k.t.Fatal(err)
	}
	ballast := filepath.Join(k.disk, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		k.t.Fatal(err)
	}
	defer f.Close()
	// Others take what the cache gives way with, too, until nothing is left that may go.
	missing := soakFiles
	full := readersGet(k.t, syscall.ENOSPC)
	for err = nil; !errors.Is(err, full); {
		for missing--; missing > 0 && (k.store.Has(i.refs[missing]) || i.refs[missing].Size() > soakChunk); {
			missing--
		}
		if missing <= 0 {
			k.t.Fatalf("all files of an image could be read on a full disk, at last %v", err)
		}
		for size := 1 << 20; size >= 4096; size /= 2 {
			for werr := error(nil); werr == nil; {
				_, werr = f.Write(make([]byte, size))
			}
		}
		time.Sleep(100 * time.Millisecond)
		err = k.check(root, i, missing, random)
	}
	if err := k.check(root, i, here, random); err != nil {
		k.t.Errorf("what is local can't be read on a full disk: %v", err)
	}
	if err := errors.Join(f.Close(), os.Remove(ballast)); err != nil {
		k.t.Fatal(err)
	}
	eventually(k.t, "a read when there is room again", func() bool { return k.check(root, i, missing, random) == nil })
}

// damage flips bits in 25 objects and cuts 25 others. They are found, and fetched again.
func (k *soak) damage() {
	random := rand.New(rand.NewPCG(5, 5))
	var spoilt []objects.Ref
	i := k.images[1]
	root, unmount := k.mount(i)
	for n, c := range i.contents {
		if c.size > 1<<20 || len(spoilt) == 50 {
			continue
		}
		if err := k.check(root, i, n, random); err != nil {
			k.t.Fatal(err)
		}
		if k.store.Has(i.refs[n]) {
			spoilt = append(spoilt, i.refs[n])
		}
	}
	unmount()
	if len(spoilt) != 50 {
		k.t.Fatalf("%d objects are here", len(spoilt))
	}
	for n, r := range spoilt {
		if err := spoil(filepath.Join(k.disk, "store", "objects", r.Path()), n%2 == 0, random); err != nil {
			k.t.Fatal(err)
		}
	}
	v, err := k.store.Verify(k.t.Context(), "", func(objects.Verified) {})
	if err != nil || v.Damaged != 50 {
		k.t.Errorf("%d of 50 damaged objects were found: %v", v.Damaged, err)
	}
	root, unmount = k.mount(i)
	defer unmount()
	for n := range i.contents {
		if err := k.check(root, i, n, random); err != nil {
			k.t.Errorf("after the repair, file %d: %v", n, err)
		}
	}
}

// spoil flips a bit of a file, or cuts it.
func spoil(path string, flip bool, random *rand.Rand) error {
	if err := os.Chmod(path, 0o644); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	at := random.Int64N(info.Size())
	if !flip {
		return f.Truncate(at)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 1 << random.IntN(8)
	_, err = f.WriteAt(b[:], at)
	return err
}
