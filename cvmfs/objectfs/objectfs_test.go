package objectfs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/fusewire"
)

// tree is a tree of one object that can't be fetched: there is no store.
func tree(t *testing.T) (*FS, objects.Ref) {
	t.Helper()
	o := &objects.Object{Digest: hash.SHA1.Digest([]byte("x")), Size: 600}
	x := objects.NewIndex([16]byte{2})
	x.Add(table(t, []*objects.Object{o}))
	r, found := x.Lookup(o.Name())
	if !found {
		t.Fatal("the object is not in the index")
	}
	return New(Config{Index: x}), r
}

// walk looks up one name after the other.
func walk(t *testing.T, f *FS, names ...string) (fusewire.Entry, syscall.Errno) {
	t.Helper()
	e := fusewire.Entry{Node: fusewire.RootNode}
	for _, name := range names {
		var errno syscall.Errno
		if e, errno = f.Lookup(t.Context(), e.Node, []byte(name)); errno != 0 {
			return e, errno
		}
	}
	return e, 0
}

func TestObjectsAreFoundUnderTheirFolderOnly(t *testing.T) {
	f, r := tree(t)
	xx := r.Name()[:2]
	want := fusewire.Entry{
		Node: r.Node(), Attr: fusewire.Attr{Mode: syscall.S_IFREG | 0o444, Size: 600},
		Valid: fusewire.Forever,
	}
	got, errno := walk(t, f, "data", "objects", xx, r.Name())
	if diff := cmp.Diff(want, got); errno != 0 || diff != "" {
		t.Errorf("%v %s", errno, diff)
	}
	for _, path := range [][]string{
		{"other"},
		{"objects"},
		{"data", xx},
		{"data", "objects", r.Name()},
		{"data", "objects", "0"},
		{"data", "objects", "0G"},
		{"data", "objects", "AA"},
		{"data", "objects", "000"},
		{"data", "objects", "zz"},
		{"data", "objects", xx, "0"},
		{"data", "objects", xx, xx},
		{"data", "objects", "00", r.Name()},
		{"gate", "objects", "00", r.Name()},
		{"gate", "objects", xx, r.Name() + "0"},
	} {
		if e, errno := walk(t, f, path...); errno != syscall.ENOENT {
			t.Errorf("%q: %+v, %v", path, e, errno)
		}
	}
}

func TestFoldersHaveNodesOfTheirOwn(t *testing.T) {
	f, _ := tree(t)
	seen := map[uint64][]string{fusewire.RootNode: {}}
	paths := [][]string{}
	for _, top := range []string{Gate, Data} {
		paths = append(paths, []string{top}, []string{top, "objects"})
		for i := range 256 {
			paths = append(paths,
				[]string{top, "objects", string("0123456789abcdef"[i>>4]) + string("0123456789abcdef"[i&15])})
		}
	}
	for _, path := range paths {
		e, errno := walk(t, f, path...)
		if errno != 0 || e.Attr.Mode != syscall.S_IFDIR|0o555 {
			t.Errorf("%q: %+v, %v", path, e, errno)
		}
		if other, ok := seen[e.Node]; ok {
			t.Errorf("%q and %q are both node %d", path, other, e.Node)
		}
		seen[e.Node] = path
		if a, errno := f.Getattr(t.Context(), e.Node); errno != 0 || a != e.Attr {
			t.Errorf("%q: attributes %+v, %v", path, a, errno)
		}
		if blocks := f.Blocks(fusewire.OpLookup, e.Node); blocks != (path[0] == Gate && len(path) == 3) {
			t.Errorf("%q: a lookup blocks: %v", path, blocks)
		}
	}
}

func TestUnknownNodeIsStale(t *testing.T) {
	f, r := tree(t)
	if a, errno := f.Getattr(t.Context(), r.Node()); errno != 0 || a.Size != 600 {
		t.Errorf("%+v, %v", a, errno)
	}
	for _, node := range []uint64{0, 6, 0xff, 0x300, 1 << 62, r.Node() ^ 1} {
		if _, errno := f.Getattr(t.Context(), node); errno != syscall.ESTALE {
			t.Errorf("attributes of %d: %v", node, errno)
		}
		if _, errno := f.Read(t.Context(), node, make([]byte, 10), 0); errno != syscall.ESTALE {
			t.Errorf("read %d: %v", node, errno)
		}
	}
	if n, errno := f.Read(t.Context(), r.Node(), make([]byte, 10), 600); n != 0 || errno != 0 {
		t.Errorf("read behind the end: %d, %v", n, errno)
	}
}

func TestFoldersListNoObjects(t *testing.T) {
	f, r := tree(t)
	list := func(node uint64) (names []string, errno syscall.Errno) {
		errno = f.Readdir(t.Context(), node, 0, func(name string, _ fusewire.Entry) bool {
			names = append(names, name)
			return true
		})
		return names, errno
	}
	for node, want := range map[uint64][]string{
		fusewire.RootNode:                 {".", "..", "gate", "data"},
		dataNode:                          {".", ".."},
		dataFirst + uint64(r.Name()[0])%2: {".", ".."},
	} {
		got, errno := list(node)
		if diff := cmp.Diff(want, got); errno != 0 || diff != "" {
			t.Errorf("node %d: %v %s", node, errno, diff)
		}
	}
	if _, errno := list(r.Node()); errno != syscall.ENOTDIR {
		t.Errorf("a file: %v", errno)
	}
}

func TestFailuresAreSaidOnceAMinute(t *testing.T) {
	var l failures
	now := time.Now()
	for _, step := range []struct {
		node       uint64
		after      time.Duration
		log, fresh bool // what add says, and fresh just before
	}{
		{1, 0, true, false},
		{1, 500 * time.Millisecond, false, true},
		{2, 0, true, false},
		{1, 30 * time.Second, false, false},
		{1, 31 * time.Second, true, false},
	} {
		now = now.Add(step.after)
		if got := l.fresh(step.node, now) == syscall.EIO; got != step.fresh {
			t.Errorf("%+v: fresh %v", step, got)
		}
		if got, _ := l.add(step.node, syscall.EIO, now); got != step.log {
			t.Errorf("%+v: log %v", step, got)
		}
	}
	for node := range uint64(2 * manyFailures) {
		l.add(node+10, syscall.EIO, now)
	}
	if len(l.seen) > manyFailures {
		t.Errorf("%d failures remembered", len(l.seen))
	}
	now = now.Add(quiet)
	if log, _ := l.add(5, syscall.EIO, now); !log || len(l.seen) != 1 {
		t.Errorf("%d failures remembered after a while", len(l.seen))
	}
}

func TestFailuresThatAreLeftOutAreCounted(t *testing.T) {
	var l failures
	now := time.Now()
	lines, told := 0, 0
	for node := range uint64(3 * mostLines) {
		for range 2 { // open and read, say
			if log, leftOut := l.add(node, syscall.EIO, now); log {
				lines++
				told += leftOut
			}
		}
	}
	if lines != mostLines {
		t.Errorf("%d lines", lines)
	}
	now = now.Add(quiet)
	if log, leftOut := l.add(3*mostLines-1, syscall.EIO, now); !log || told+leftOut != 2*3*mostLines-lines {
		t.Errorf("%v, %d and %d left out", log, told, leftOut)
	}
	if log, leftOut := l.add(0, syscall.EIO, now); !log || leftOut != 0 {
		t.Errorf("%v, %d left out", log, leftOut)
	}
}

func TestRemedyIsForTheCause(t *testing.T) {
	for want, err := range map[string]error{
		"make room": &objects.SpaceError{},
		"operator":  fmt.Errorf("x: %w", fs.ErrNotExist),
		"alters":    fmt.Errorf("x: %w", fetch.ErrBadData),
		"proxies":   fmt.Errorf("x: %w", fetch.ErrUnavailable),
		"doctor":    errors.New("anything else"),
	} {
		if got := remedy(err); !strings.Contains(got, want) {
			t.Errorf("%v: %s, want %q", err, got, want)
		}
	}
	got := from(fmt.Errorf("x: %w", &fetch.Error{URL: "http://s/cvmfs/a.b/data/aa/bb", Proxy: "http://p:1"}))
	if diff := cmp.Diff([]any{"server", "http://s/cvmfs/a.b", "proxy", "http://p:1"}, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzLookup(f *testing.F) {
	f.Add(uint64(1), []byte("gate"))
	f.Add(uint64(dataObjects), []byte("ff"))
	f.Add(uint64(dataFirst+0xab), []byte("a"))
	f.Add(uint64(gateFirst), []byte{0})
	f.Add(uint64(1)<<62, []byte("objects"))
	tree := New(Config{Index: objects.NewIndex([16]byte{3})})
	f.Fuzz(func(t *testing.T, folder uint64, name []byte) {
		e, errno := tree.Lookup(t.Context(), folder, name)
		if errno == 0 && (!isFolder(e.Node) || e.Node == fusewire.RootNode) {
			t.Errorf("%q in %d is node %d", name, folder, e.Node)
		}
		if errno != 0 && errno != syscall.ENOENT {
			t.Errorf("%q in %d: %v", name, folder, errno)
		}
	})
}
