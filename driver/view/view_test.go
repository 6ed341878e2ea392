package view

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objectfs"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/erofs"
	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/test/fusetest"

	"cvmfs-graphdriver/test/testutil"
)

const (
	fqrn = "view.example.org"
	now  = 1_700_000_000
)

var key = strings.Repeat("c0ffee42", 8)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host is all that shows one image: a server of objects, a store, an image on disk and the mount.
type host struct {
	t        *testing.T
	requests atomic.Int64
	down     atomic.Bool
	stored   map[string][]byte // on the server, by path
	all      []*objects.Object

	dir, mount, meta string
	view             *FS
	ops              [64]atomic.Int64 // requests by the kernel
	log              *bytes.Buffer
}

func newHost(t *testing.T) *host {
	t.Helper()
	fusetest.Require(t)
	return &host{t: t, stored: map[string][]byte{}, dir: t.TempDir(), mount: t.TempDir(), log: &bytes.Buffer{}}
}

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.requests.Add(1)
	b, ok := h.stored[strings.TrimPrefix(r.URL.Path, "/")]
	if h.down.Load() || !ok {
		http.Error(w, "no", http.StatusNotFound)
		return
	}
	w.Write(b) // the client may be gone
}

// put stores a piece on the server.
func (h *host) put(plain []byte, suffix hash.Suffix) hash.Digest {
	h.t.Helper()
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	_, err := z.Write(plain)
	must(h.t, errors.Join(err, z.Close()))
	d := hash.SHA1.Digest(b.Bytes())
	h.stored[d.Path(suffix)] = b.Bytes()
	return d
}

// file makes a file of the image whose content is an object on the server, in chunks of a size, 0 for one piece.
func (h *host) file(content []byte, chunk int) *erofs.Node {
	o := &objects.Object{Size: int64(len(content))}
	if chunk == 0 {
		o.Digest = h.put(content, hash.File)
	} else {
		for at := 0; at < len(content); at += chunk {
			piece := content[at:min(at+chunk, len(content))]
			o.Chunks = append(o.Chunks, catalog.Chunk{
				Offset: int64(at), Size: int64(len(piece)),
				Digest: h.put(piece, hash.Chunk),
			})
		}
	}
	h.all = append(h.all, o)
	return redirected(o.Size, "/objects/"+o.Path())
}

func redirected(size int64, to string) *erofs.Node {
	return &erofs.Node{Mode: unix.S_IFREG | 0o644, Mtime: now, Size: size, Xattrs: []erofs.Xattr{
		{Name: "trusted.overlay.metacopy"}, {Name: "trusted.overlay.redirect", Value: to},
	}}
}

func folderOf(children ...erofs.Child) *erofs.Node {
	return &erofs.Node{Mode: unix.S_IFDIR | 0o755, Mtime: now, Children: children}
}

// Fetcher is objects.Sources.
type source struct{ f *fetch.Fetcher }

func (s source) Fetcher(string) (*fetch.Fetcher, error) { return s.f, nil }

// show mounts the image of a tree until the test ends, and gives the folder that shows it.
func (h *host) show(root *erofs.Node) string {
	t := h.t
	t.Helper()
	h.meta = filepath.Join(h.dir, "meta")
	create := func(name string, fill func(f *os.File) error) {
		f, err := os.Create(name)
		must(t, err)
		must(t, errors.Join(fill(f), f.Close()))
	}
	create(h.meta, func(f *os.File) error {
		_, err := erofs.Write(f, root, erofs.Options{})
		return err
	})
	create(h.dir+"/table", func(f *os.File) error {
		return objects.WriteTable(f, []string{fqrn}, false, func(yield func(*objects.Object, int) bool) {
			for _, o := range h.all {
				if !yield(o, 0) {
					return
				}
			}
		})
	})
	table, err := objects.OpenTable(h.dir + "/table")
	must(t, err)
	index := objects.NewIndex([16]byte{1})
	index.Add(table)
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	f, err := fetch.New(fetch.Config{
		Servers: []string{server.URL}, TimeoutDirect: time.Second,
		BackoffInit: time.Millisecond, BackoffMax: time.Millisecond,
	})
	must(t, err)
	log := slog.New(slog.NewTextHandler(&locked{w: h.log}, nil))
	store, err := objects.Open(objects.Config{
		Dir: h.objects(), Fresh: h.dir + "/fresh", State: h.dir + "/state",
		Sources: source{f}, Log: log,
	})
	must(t, err)
	h.view = New(Config{
		Objects: objectfs.New(objectfs.Config{Index: index, Store: store, GateLimit: 1000, Log: log}),
		Index:   index, Store: store, Dir: h.objects(), Layers: h.dir + "/layers", Log: log,
	})
	must(t, h.view.Add(key, h.meta))
	session, err := fusewire.Open(h.mount, counting{h.view, &h.ops}, fusewire.Config{Log: log})
	must(t, err)
	t.Cleanup(func() {
		if err := errors.Join(session.Close(), store.Close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", h.log)
		}
	})
	return filepath.Join(h.mount, Folder, key)
}

func (h *host) objects() string { return h.dir + "/store/objects" }

type locked struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// counting counts requests of each kind.
type counting struct {
	fusewire.Tree
	ops *[64]atomic.Int64
}

func (c counting) Blocks(op fusewire.Op, node uint64) bool {
	c.ops[op%64].Add(1)
	return c.Tree.Blocks(op, node)
}

func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// describe lists a tree with all that stat(2), readlink(2) and listxattr(2) tell.
func describe(t testing.TB, dir string) (lines []string) {
	t.Helper()
	links := map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		line := fmt.Sprintf("%q %o %d:%d links %d rdev %x time %d.%d", name, st.Mode, st.Uid, st.Gid, st.Nlink, st.Rdev,
			st.Mtim.Sec, st.Mtim.Nsec)
		if first, ok := links[st.Ino]; ok {
			line += " is " + first
		}
		links[st.Ino] = name
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			line += fmt.Sprint(" size ", st.Size)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %q", target)
		}
		lines = append(lines, line+xattrsOf(t, path))
		return nil
	}))
	return lines
}

func xattrsOf(t testing.TB, path string) (all string) {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, b)
	must(t, err)
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" || hidden(name) {
			continue
		}
		n, err := unix.Lgetxattr(path, name, b)
		must(t, err)
		all += fmt.Sprintf(" %s=%x", name, b[:n])
	}
	return all
}

// richTree has every kind of entry.
func richTree() *erofs.Node {
	twice := &erofs.Node{
		Mode: unix.S_IFREG | 0o4755, UID: 1000, GID: 1 << 20, Mtime: -5, MtimeN: 999_999_999,
		Xattrs: []erofs.Xattr{
			{Name: "user.a", Value: "1"},
			{
				Name:  "security.capability",
				Value: "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			},
			{Name: "user.long", Value: strings.Repeat("x", 5000)},
			{Name: "trusted.own"},
			{Name: "trusted.overlay.opaque", Value: "y"},
		},
	}
	tree := folderOf(
		erofs.Child{Name: "twice", Node: twice},
		erofs.Child{Name: "again", Node: twice},
		erofs.Child{Name: "\xff\xfe\n", Node: &erofs.Node{
			Mode: unix.S_IFLNK | 0o777, Mtime: now,
			Target: "../else\xffwhere",
		}},
		erofs.Child{Name: "long", Node: &erofs.Node{
			Mode: unix.S_IFLNK | 0o777, Mtime: now,
			Target: strings.Repeat("l", 4095),
		}},
		erofs.Child{Name: strings.Repeat("n", 255), Node: &erofs.Node{Mode: unix.S_IFIFO | 0o600, Mtime: now}},
		erofs.Child{Name: "socket", Node: &erofs.Node{Mode: unix.S_IFSOCK | 0o600, Mtime: now}},
		erofs.Child{Name: "char", Node: &erofs.Node{
			Mode: unix.S_IFCHR | 0o600, Mtime: now,
			Rdev: unix.Mkdev(4000, 1<<20-3),
		}},
		erofs.Child{Name: "block", Node: &erofs.Node{Mode: unix.S_IFBLK | 0o600, Mtime: now, Rdev: unix.Mkdev(8, 1)}},
		erofs.Child{Name: "hole", Node: &erofs.Node{Mode: unix.S_IFREG | 0o400, Mtime: now, Size: 1 << 40}},
		erofs.Child{Name: "sticky", Node: &erofs.Node{
			Mode: unix.S_IFDIR | 0o3777, Mtime: now,
			Children: []erofs.Child{{Name: "sub", Node: folderOf()}},
		}},
	)
	for i := range 3000 {
		tree.Children[9].Node.Children = append(tree.Children[9].Node.Children,
			erofs.Child{Name: fmt.Sprintf("file-%06d", i), Node: &erofs.Node{
				Mode:  unix.S_IFREG | 0o644,
				Mtime: now + int64(i%3),
			}})
	}
	return tree
}

func TestViewShowsWhatTheKernelShows(t *testing.T) {
	h := newHost(t)
	shown := describe(t, h.show(richTree()))
	mounted := testutil.MountEROFS(t, h.meta, "")
	if d := cmp.Diff(describe(t, mounted), shown); d != "" {
		t.Errorf("-kernel +view\n%s", d)
	}
}

func TestContentIsFetchedWhenItIsRead(t *testing.T) {
	h := newHost(t)
	small, big, ordinary := noise(3000, 1), noise(3<<20+11, 2), noise(70_000, 3)
	must(t, os.MkdirAll(h.dir+"/layers/l1/graph/l1/diff/d", 0o755))
	must(t, os.WriteFile(h.dir+"/layers/l1/graph/l1/diff/d/f", ordinary, 0o644))
	root := h.show(folderOf(
		erofs.Child{Name: "small", Node: h.file(small, 0)},
		erofs.Child{Name: "big", Node: h.file(big, 0)},
		erofs.Child{Name: "chunked", Node: h.file(big, 1<<19)},
		erofs.Child{Name: "ordinary", Node: redirected(int64(len(ordinary)), "/graph/l1/diff/d/f")},
	))
	describe(t, root)
	if n := h.requests.Load(); n != 0 {
		t.Errorf("%d requests for attributes", n)
	}
	tail := make([]byte, 100)
	f, err := os.Open(root + "/chunked")
	must(t, err)
	defer f.Close()
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM))
	if _, err := f.ReadAt(tail, int64(len(big)-100)); err != nil || !bytes.Equal(tail, big[len(big)-100:]) {
		t.Errorf("the end of a file in chunks: %v", err)
	}
	if n := h.requests.Load(); n > 3 { // one of them for the small neighbour
		t.Errorf("%d requests for the last bytes of a file in 7 chunks", n)
	}
	at := func(name string) uint64 {
		e, errno := h.view.lookupImage(filepath.Base(root))
		if errno == 0 {
			e, errno = h.view.Lookup(t.Context(), e.Node, []byte(name))
		}
		if errno != 0 {
			t.Fatal(name, errno)
		}
		return e.Node
	}
	again := make([]byte, 100)
	if n, ok := h.view.ReadNow(at("chunked"), again, int64(len(big)-100)); !ok || n != 100 || !bytes.Equal(again, tail) {
		t.Errorf("%d bytes of the end can be read at once: %v", n, ok)
	}
	if n, ok := h.view.ReadNow(at("chunked"), again, 0); ok {
		t.Errorf("%d bytes of the beginning, which isn't here, can be read at once", n)
	}
	for _, name := range []string{"ordinary", "small", "big"} {
		if n, ok := h.view.ReadNow(at(name), again, 0); ok {
			t.Errorf("%s: %d bytes can be read at once", name, n)
		}
	}
	for range 2 {
		for name, want := range map[string][]byte{"small": small, "big": big, "chunked": big, "ordinary": ordinary} {
			got, err := os.ReadFile(filepath.Join(root, name))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
			}
			f, err := os.Open(filepath.Join(root, name))
			must(t, err)
			must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)) // the second time from the store
			must(t, f.Close())
		}
		h.down.Store(true)
	}
}

func TestNeighboursArriveAhead(t *testing.T) {
	h := newHost(t)
	tree := folderOf()
	for i := range 60 {
		tree.Children = append(tree.Children, erofs.Child{Name: fmt.Sprint(i), Node: h.file(noise(100+i, byte(i)), 0)})
	}
	root := h.show(tree)
	_, err := os.ReadFile(root + "/2")
	must(t, err)
	for deadline := time.Now().Add(10 * time.Second); h.requests.Load() < 5; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("neighbours don't arrive")
		}
	}
	time.Sleep(20 * time.Millisecond)
	if n := h.requests.Load(); n > 33 { // over the longest way
		t.Errorf("%d requests for a file and its neighbours", n)
	}
}

func TestWhatCannotBeReadIsAnError(t *testing.T) {
	h := newHost(t)
	must(t, os.MkdirAll(h.dir+"/layers/l1/graph/l1/diff", 0o755))
	must(t, os.WriteFile(h.dir+"/secret", []byte("secret"), 0o600))
	must(t, os.WriteFile(h.dir+"/layers/l1/graph/l1/diff/short", []byte("1"), 0o600))
	must(t, os.Symlink("../../../../../secret", h.dir+"/layers/l1/graph/l1/diff/link"))
	must(t, unix.Mkfifo(h.dir+"/layers/l1/graph/l1/diff/fifo", 0o600))
	fetched := h.file([]byte("fetched"), 0)
	tree := folderOf(erofs.Child{Name: "fetched", Node: fetched})
	for name, to := range map[string]string{
		"unknown object": "/objects/00/00112233445566778899aabbccddeeff00112233.z.6",
		"no object":      "/objects/00/x",
		"missing":        "/graph/l1/diff/missing",
		"short":          "/graph/l1/diff/short",
		"folder":         "/graph/l1/diff",
		"outside":        "/graph/l1/diff/link",
		"dots":           "/graph/l1/../../../secret",
		"id of dots":     "/graph/../secret",
		"no id":          "/graph//secret",
		"elsewhere":      "/secret",
		"nowhere":        "",
	} {
		tree.Children = append(tree.Children, erofs.Child{Name: name, Node: redirected(6, to)})
	}
	root := h.show(tree)
	for _, c := range tree.Children[1:] {
		if b, err := os.ReadFile(filepath.Join(root, c.Name)); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %q, %v", c.Name, b, err)
		}
	}
	h.down.Store(true)
	if b, err := os.ReadFile(root + "/fetched"); !errors.Is(err, syscall.EIO) {
		t.Errorf("server down: %q, %v", b, err)
	}
	h.down.Store(false)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if b, err := os.ReadFile(root + "/fetched"); err == nil && string(b) == "fetched" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a file doesn't come back when its server does")
		}
	}
	must(t, os.Truncate(filepath.Join(h.objects(), h.all[0].Path()), 3))
	if got, _ := os.ReadFile(root + "/fetched"); len(got) > 0 && string(got) != "fetched" {
		t.Errorf("object cut short on disk: %q", got)
	}
}

func TestKernelAsksOnce(t *testing.T) {
	h := newHost(t)
	root := h.show(richTree())
	link := filepath.Join(root, "long")
	work := func() {
		describe(t, root)
		for range 3 {
			_, err := os.Readlink(link)
			must(t, err)
			if _, err := os.Lstat(root + "/sticky/missing"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("missing: %v", err)
			}
		}
	}
	work()
	count := func() (n int64) {
		for _, op := range []fusewire.Op{
			fusewire.OpLookup, fusewire.OpGetattr, fusewire.OpReadlink,
			fusewire.OpReaddirplus,
		} {
			n += h.ops[op].Load()
		}
		return n
	}
	before := count()
	work()
	if n := count() - before; n != 0 {
		t.Errorf("%d requests for what the kernel has been told", n)
	}
	if n := h.ops[fusewire.OpLookup].Load(); n > 20 {
		t.Errorf("%d lookups: a listing brings attributes", n)
	}
}

func TestInstructionsToOverlayfsAreNotShown(t *testing.T) {
	h := newHost(t)
	root := h.show(folderOf(erofs.Child{Name: "f", Node: h.file([]byte("x"), 0)}))
	b := make([]byte, 100)
	if n, err := unix.Llistxattr(root+"/f", b); n != 0 || err != nil {
		t.Errorf("listed: %q, %v", b[:n], err)
	}
	if n, err := unix.Lgetxattr(root+"/f", "trusted.overlay.redirect", b); err != unix.ENODATA {
		t.Errorf("got: %d, %v", n, err)
	}
	if n, err := unix.Lgetxattr(h.mount+"/view", "user.x", b); err != unix.ENODATA {
		t.Errorf("of the folder of images: %d, %v", n, err)
	}
}

func TestAttributesTellTheirSize(t *testing.T) {
	h := newHost(t)
	root := h.show(richTree())
	b := make([]byte, 8)
	for name, call := range map[string]func(b []byte) (int, error){
		"get":  func(b []byte) (int, error) { return unix.Lgetxattr(root+"/twice", "user.long", b) },
		"list": func(b []byte) (int, error) { return unix.Llistxattr(root+"/twice", b) },
	} {
		n, err := call(nil)
		if n < 30 || err != nil {
			t.Errorf("%s: size %d, %v", name, n, err)
		}
		if _, err := call(b); !errors.Is(err, unix.ERANGE) {
			t.Errorf("%s into 8 bytes: %v", name, err)
		}
		if got, err := call(make([]byte, n)); got != n || err != nil {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	if n, err := unix.Lgetxattr(root+"/twice", "trusted.own", b); n != 0 || err != nil {
		t.Errorf("empty attribute: %d, %v", n, err)
	}
}

func TestImagesWithEqualTagsAreRefused(t *testing.T) {
	h := newHost(t)
	root := h.show(folderOf())
	other := key[:7] + "3" + strings.Repeat("1", 56) // 29 bits are the same
	if err := h.view.Add(other, h.meta); err == nil || !strings.Contains(err.Error(), key) {
		t.Errorf("another image with the same node ids: %v", err)
	}
	must(t, h.view.Add(key, "/missing: it is shown already"))
	must(t, h.view.Add("00"+key[2:], h.meta))
	for _, name := range []string{other, "x", "", key + "0"} {
		if _, err := os.Lstat(h.mount + "/view/" + name + "/."); err == nil && name != "" {
			t.Errorf("%q is shown", name)
		}
	}
	for _, bad := range []string{"", "xyz", "c0ffee"} {
		if err := h.view.Add(bad, h.meta); err == nil {
			t.Errorf("key %q was taken", bad)
		}
	}
	h.view.Remove(other)
	if _, err := os.ReadDir(root); err != nil {
		t.Error("after another one's removal: ", err)
	}
}

func TestNodesOfARemovedImageAreStale(t *testing.T) {
	h := newHost(t)
	h.show(folderOf(erofs.Child{Name: "f", Node: h.file([]byte("x"), 0)}))
	e, errno := h.view.Lookup(t.Context(), folderNode, []byte(key))
	if errno != 0 {
		t.Fatal(errno)
	}
	h.view.Remove(key)
	_, lookup := h.view.Lookup(t.Context(), e.Node, []byte("f"))
	_, getattr := h.view.Getattr(t.Context(), e.Node)
	_, read := h.view.Read(t.Context(), e.Node+2, make([]byte, 1), 0)
	_, readlink := h.view.Readlink(t.Context(), e.Node)
	_, getxattr := h.view.Getxattr(t.Context(), e.Node, "user.x")
	_, listxattr := h.view.Listxattr(t.Context(), e.Node)
	readdir := h.view.Readdir(t.Context(), e.Node, 0, nil)
	for i, errno := range []syscall.Errno{lookup, getattr, read, readlink, getxattr, listxattr, readdir} {
		if errno != syscall.ESTALE {
			t.Errorf("%d: %v", i, errno)
		}
	}
}

func TestFilesThatWereReadLongAgoAreClosed(t *testing.T) {
	h := newHost(t)
	tree := folderOf()
	for i := range maxFiles + 50 {
		tree.Children = append(tree.Children, erofs.Child{Name: fmt.Sprint(i), Node: h.file(noise(20, byte(i)), 0)})
	}
	root := h.show(tree)
	for round := range 3 {
		for i := range tree.Children {
			name := filepath.Join(root, fmt.Sprint(i))
			b, err := os.ReadFile(name)
			if err != nil || !bytes.Equal(b, noise(20, byte(i))) {
				t.Errorf("round %d, %s: %x, %v", round, name, b, err)
			}
			f, err := os.Open(name)
			must(t, err)
			must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
			must(t, f.Close())
		}
	}
	open := func() int {
		h.view.files.mu.Lock()
		defer h.view.files.mu.Unlock()
		return h.view.files.order.Len()
	}
	if n := open(); n != maxFiles {
		t.Errorf("%d files are open", n)
	}
	h.view.Remove(key)
	if n := open(); n != 0 {
		t.Errorf("%d files of an image that is gone are open", n)
	}
}

func TestListingsOfLargeFoldersAreComplete(t *testing.T) {
	h := newHost(t)
	tree := folderOf()
	for i := range 30_000 {
		tree.Children = append(tree.Children, erofs.Child{
			Name: fmt.Sprintf("entry-%08d", i),
			Node: &erofs.Node{Mode: unix.S_IFREG | 0o644, Mtime: now},
		})
	}
	entries, err := os.ReadDir(h.show(tree))
	must(t, err)
	if len(entries) != len(tree.Children) {
		t.Fatalf("%d entries", len(entries))
	}
	for i, e := range entries {
		if e.Name() != tree.Children[i].Name {
			t.Fatalf("entry %d: %q", i, e.Name())
		}
	}
}
