package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func encode(t testing.TB, root *Node, opt Options) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := Write(&b, root, opt); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// endless is an image followed by zeros: the reader used here reads whole blocks from wherever an attribute begins.
type endless []byte

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(e)) {
		copy(p, e[off:])
	}
	return len(p), nil
}

// listImage lists an image by an independent reader.
func listImage(t testing.TB, image []byte) listing {
	t.Helper()
	img, err := goerofs.Open(endless(image))
	if err != nil {
		t.Fatal(err)
	}
	f := newFound[int64]()
	info, err := fs.Stat(img, ".")
	if err != nil {
		t.Fatal(err)
	}
	f.add("", info.Sys().(*goerofs.Stat).Ino, imageRecord(t, img, "", info))
	for todo := []string{""}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		entries, err := fs.ReadDir(img, "."+dir)
		if err != nil {
			t.Fatalf("list %q: %v", dir, err)
		}
		for _, e := range entries {
			path := dir + "/" + e.Name()
			info, err := e.Info()
			if err != nil {
				t.Fatalf("stat %q: %v", path, err)
			}
			f.add(path, info.Sys().(*goerofs.Stat).Ino, imageRecord(t, img, path, info))
			if e.IsDir() {
				todo = append(todo, path)
			}
		}
	}
	return f.listing()
}

func imageRecord(t testing.TB, img fs.FS, path string, info fs.FileInfo) record {
	t.Helper()
	st := info.Sys().(*goerofs.Stat)
	r := record{
		Mode: unixMode(st.Mode), UID: st.UID, GID: st.GID, Nlink: uint64(st.Nlink), Size: st.Size,
		Mtime: int64(st.Mtime), MtimeN: st.MtimeNs, Xattrs: make(map[string]string),
	}
	for name, value := range st.Xattrs {
		r.Xattrs[strings.TrimSuffix(name, ".")] = value // the reader ends system.posix_acl_* with a dot
	}
	switch r.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		r.Size = 0
	case unix.S_IFCHR, unix.S_IFBLK:
		r.Rdev = unix.Mkdev(st.Rdev>>8&0xfff, st.Rdev&0xff|st.Rdev>>12&0xfff00)
	case unix.S_IFLNK:
		target, err := img.(fs.ReadLinkFS).ReadLink("." + path)
		if err != nil {
			t.Fatalf("readlink %q: %v", path, err)
		}
		r.Target = target
	}
	return r
}

func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for _, bit := range []struct {
		from fs.FileMode
		to   uint32
	}{{fs.ModeSetuid, unix.S_ISUID}, {fs.ModeSetgid, unix.S_ISGID}, {fs.ModeSticky, unix.S_ISVTX}} {
		if m&bit.from != 0 {
			mode |= bit.to
		}
	}
	switch m.Type() {
	case fs.ModeDir:
		return mode | unix.S_IFDIR
	case fs.ModeSymlink:
		return mode | unix.S_IFLNK
	case fs.ModeDevice:
		return mode | unix.S_IFBLK
	case fs.ModeDevice | fs.ModeCharDevice:
		return mode | unix.S_IFCHR
	case fs.ModeNamedPipe:
		return mode | unix.S_IFIFO
	case fs.ModeSocket:
		return mode | unix.S_IFSOCK
	}
	return mode | unix.S_IFREG
}

// readableTree is the rich tree without what the independent reader can't do: shared attributes larger than a block.
// Large and deep folders are left to the kernel, for the reader resolves every path from the root.
func readableTree() *Node {
	attrs := xattrsTree()
	attrs.Children = slices.DeleteFunc(attrs.Children, func(c Child) bool { return strings.HasPrefix(c.Name, "large") })
	return dirNode(
		Child{"names", namesTree()}, Child{"sizes", sizesTree()}, Child{"owners", ownersTree()},
		Child{"times", timesTree()},
		Child{"kinds", kindsTree()}, Child{"symlinks", symlinksTree()}, Child{"links", linksTree()},
		Child{"xattrs", attrs})
}

func TestIndependentReaderFindsTheTree(t *testing.T) {
	for name, root := range map[string]*Node{
		"rich": readableTree(), "small": newDice(7, 500).tree(),
		"large": newDice(8, 20000).tree(),
	} {
		t.Run(name, func(t *testing.T) {
			check(t, root, listImage(t, encode(t, root, Options{})))
		})
	}
}

func TestErofsUtilsAcceptImages(t *testing.T) {
	image := imageFile(t, richTree())
	for _, tool := range [][]string{{"fsck.erofs", image}, {"dump.erofs", "-s", image}} {
		if _, err := exec.LookPath(tool[0]); err != nil {
			t.Logf("without %s: %v", tool[0], err)
			continue
		}
		if out, err := exec.Command(tool[0], tool[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", tool, err, out)
		}
	}
}

// shuffle puts children and attributes of a whole tree in another order.
func shuffle(n *Node, r *rand.Rand) {
	r.Shuffle(len(n.Xattrs), func(i, j int) { n.Xattrs[i], n.Xattrs[j] = n.Xattrs[j], n.Xattrs[i] })
	r.Shuffle(len(n.Children), func(i, j int) { n.Children[i], n.Children[j] = n.Children[j], n.Children[i] })
	for _, c := range n.Children {
		shuffle(c.Node, r)
	}
}

func TestEqualTreesGiveEqualBytes(t *testing.T) {
	for _, build := range map[string]func() *Node{
		"rich":   richTree,
		"random": func() *Node { return newDice(9, 20000).tree() },
	} {
		first := encode(t, build(), Options{})
		for seed := range uint64(3) {
			other := build()
			shuffle(other, rand.New(rand.NewPCG(seed, 0)))
			if !bytes.Equal(first, encode(t, other, Options{})) {
				t.Error("the image depends on the order of children or attributes")
			}
		}
	}
}

func TestWriteLeavesTheTreeAlone(t *testing.T) {
	tree := func() *Node {
		return with(dirNode(Child{"b", fileNode(1)}, Child{"a", fileNode(2)}), xattr("user.b", ""), xattr("user.a", ""))
	}
	root := tree()
	encode(t, root, Options{})
	if diff := cmp.Diff(tree(), root); diff != "" {
		t.Errorf("the tree was changed (-before +after):\n%s", diff)
	}
}

func TestSuperblockTellsWhatTheImageIs(t *testing.T) {
	root := dirNode(Child{"f", fileNode(1)}, Child{"g", fileNode(2)})
	uuidOf := func(root *Node, opt Options) [16]byte { return [16]byte(encode(t, root, opt)[superOffset+48:]) }
	given := [16]byte{1, 2, 3}
	if got := uuidOf(root, Options{UUID: given}); got != given {
		t.Errorf("UUID %x, want the one given, %x", got, given)
	}
	made := uuidOf(root, Options{})
	if made[6]>>4 != 8 || made[8]>>6 != 2 {
		t.Errorf("UUID %x is not of version 8", made)
	}
	if other := uuidOf(dirNode(Child{"f", fileNode(1)}, Child{"g", fileNode(3)}), Options{}); other == made {
		t.Error("two trees have the same UUID")
	}

	var b bytes.Buffer
	stats, err := Write(&b, root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Stats{Inodes: 3, Compact: 3, Blocks: 1, Size: 4096}, stats); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	super := b.Bytes()[superOffset:]
	if inos, blocks := binary.LittleEndian.Uint64(super[16:]), binary.LittleEndian.Uint32(super[36:]); inos != 3 ||
		blocks != 1 {
		t.Errorf("superblock says %d inodes and %d blocks, want 3 and 1", inos, blocks)
	}
}

func TestWritePassesOnTheErrorOfItsWriter(t *testing.T) {
	r, w := io.Pipe()
	r.Close()
	if _, err := Write(w, dirNode(), Options{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write to a closed pipe: %v, want %v", err, io.ErrClosedPipe)
	}
}

func TestRepeatedAttributesAreWrittenOnce(t *testing.T) {
	root := dirNode()
	for i := range 1000 {
		root.Children = append(root.Children, Child{fmt.Sprint(i), objectNode(1, fmt.Sprint("/objects/unique", i))})
	}
	var b bytes.Buffer
	stats, err := Write(&b, root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if metacopies := bytes.Count(b.Bytes(), []byte("overlay.metacopy")); stats.SharedXattrs != 1 || metacopies != 1 {
		t.Errorf("%d shared attributes, %d of them metacopy; want 1", stats.SharedXattrs, metacopies)
	}
}

func TestFilterThatMixesAttributesUpDoesNoHarm(t *testing.T) {
	x, y := xattr("user.one", "v"), xattr("user.two", "v") // equal for the filter
	s := shared{seed: maphash.MakeSeed()}
	if s.filterKey(&x) != s.filterKey(&y) {
		t.Fatal("the attributes must meet in the filter")
	}
	root := dirNode(Child{"x", with(fileNode(1), x)}, Child{"y", with(fileNode(1), y)})
	image := encode(t, root, Options{})
	check(t, root, listImage(t, image))
}

func TestWriteRefusesByName(t *testing.T) {
	folder := dirNode()
	tooMany := fileNode(1)
	for i := range 5 {
		tooMany.Xattrs = append(tooMany.Xattrs, xattr(fmt.Sprint("user.", i), strings.Repeat(fmt.Sprint(i), 60000)))
	}
	deep := dirNode(Child{"x", nil})
	for range 2000 {
		deep = dirNode(Child{"d", deep})
	}
	changed := func(change func(n *Node)) *Node {
		n := fileNode(1)
		change(n)
		return dirNode(Child{"dir", dirNode(Child{"entry", n})})
	}
	for name, c := range map[string]struct {
		root         *Node
		path, reason string
	}{
		"no root":        {nil, "/", "folder"},
		"root is a file": {fileNode(1), "/", "folder"},
		"root's xattr":   {with(dirNode(), xattr("btrfs.x", "")), "/", "btrfs.x"},
		"long name": {
			dirNode(Child{strings.Repeat("n", 256), fileNode(1)}), "/" + strings.Repeat("n", 256),
			"256 bytes",
		},
		"empty name":      {dirNode(Child{"a", dirNode(Child{"", fileNode(1)})}), "/a/", "name"},
		"name with slash": {dirNode(Child{"a/b", fileNode(1)}), "/a/b", "name"},
		"name with NUL":   {dirNode(Child{"a\x00", fileNode(1)}), "/a\x00", "NUL"},
		"dot":             {dirNode(Child{".", fileNode(1)}), "/.", "name"},
		"dotdot":          {dirNode(Child{"..", fileNode(1)}), "/..", "name"},
		"same name twice": {
			dirNode(Child{"a", fileNode(1)}, Child{"b", fileNode(1)}, Child{"a", fileNode(2)}),
			"/a", "two entries",
		},
		"no node":       {dirNode(Child{"a", nil}), "/a", "no node"},
		"folder twice":  {dirNode(Child{"a", folder}, Child{"b", folder}), "/b", "one place"},
		"deep":          {deep, "…" + strings.Repeat("/d", 511) + "/x", "no node"},
		"no type":       {changed(func(n *Node) { n.Mode = 0o644 }), "/dir/entry", "type"},
		"wide mode":     {changed(func(n *Node) { n.Mode |= 1 << 16 }), "/dir/entry", "16 bits"},
		"negative size": {changed(func(n *Node) { n.Size = -1 }), "/dir/entry", "-1 bytes"},
		"huge size":     {changed(func(n *Node) { n.Size = MaxFileSize + 1 }), "/dir/entry", "bytes"},
		"nanoseconds":   {changed(func(n *Node) { n.MtimeN = 1e9 }), "/dir/entry", "second"},
		"file with entries": {
			changed(func(n *Node) { n.Children = []Child{{"a", fileNode(1)}} }), "/dir/entry",
			"only a folder",
		},
		"no target": {changed(func(n *Node) { n.Mode = unix.S_IFLNK }), "/dir/entry", "has 0"},
		"long target": {
			changed(func(n *Node) { *n = *linkNode(strings.Repeat("t", 4096)) }), "/dir/entry",
			"has 4096",
		},
		"target with NUL": {changed(func(n *Node) { *n = *linkNode("a\x00b") }), "/dir/entry", "NUL"},
		"device number": {
			changed(func(n *Node) { n.Mode, n.Rdev = unix.S_IFCHR, unix.Mkdev(4096, 1) }),
			"/dir/entry", "4096:1",
		},
		"unknown xattr": {
			changed(func(n *Node) { with(n, xattr("system.nfs4_acl", "")) }), "/dir/entry",
			"system.nfs4_acl",
		},
		"bare namespace": {changed(func(n *Node) { with(n, xattr("user.", "")) }), "/dir/entry", `"user."`},
		"long xattr name": {
			changed(func(n *Node) { with(n, xattr("user."+strings.Repeat("x", 251), "")) }),
			"/dir/entry", "256 bytes",
		},
		"long xattr value": {
			changed(func(n *Node) { with(n, xattr("user.x", strings.Repeat("x", 65536))) }),
			"/dir/entry", "65536 bytes",
		},
		"same xattr twice": {changed(func(n *Node) {
			with(n, xattr("user.x", ""), xattr("user.y", ""),
				xattr("user.x", "2"))
		}), "/dir/entry", "twice"},
		"xattrs too large":    {dirNode(Child{"dir", dirNode(Child{"entry", tooMany})}), "/dir/entry", "256 KiB"},
		"xattrs of the root":  {with(dirNode(), tooMany.Xattrs...), "/", "256 KiB"},
		"xattr name with NUL": {changed(func(n *Node) { with(n, xattr("user.a\x00b", "")) }), "/dir/entry", "xattr"},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			_, err := Write(&b, c.root, Options{})
			var fault *NodeError
			if !errors.As(err, &fault) {
				t.Fatalf("error %v, want a NodeError", err)
			}
			if fault.Path != c.path ||
				!strings.Contains(strings.ReplaceAll(fault.Reason, "extended attribute", "xattr"), c.reason) {
				t.Errorf("error %q for path %q, want %q for %q", fault.Reason, fault.Path, c.reason, c.path)
			}
			if !strings.Contains(err.Error(), strconv.Quote(c.path)) {
				t.Errorf("error %q does not name %q", err, c.path)
			}
			if b.Len() > 0 {
				t.Errorf("%d bytes were written", b.Len())
			}
		})
	}
}

func TestWriteNoticesThatTheTreeChanged(t *testing.T) {
	link := linkNode("short")
	root := dirNode(Child{"a", link}, Child{"b", fileNode(1)})
	im, err := scan(root)
	if err != nil {
		t.Fatal(err)
	}
	im.share()
	if err := im.place(); err != nil {
		t.Fatal(err)
	}
	link.Target = strings.Repeat("longer", 1000)
	if err := im.write(io.Discard, [16]byte{1}); !errors.Is(err, errChanged) {
		t.Errorf("error %v, want %v", err, errChanged)
	}
}

func TestChunkingTakesTheFewestChunks(t *testing.T) {
	for _, c := range []struct {
		size   uint64
		bits   uint16
		chunks uint64
	}{
		{1, 0, 1},
		{4096, 0, 1},
		{4097, 1, 1},
		{8192, 1, 1},
		{8193, 2, 1},
		{1 << 43, 31, 1},
		{1<<43 + 1, 31, 2},
		{MaxFileSize, 31, 1024},
	} {
		if bits, chunks := chunking(c.size); bits != c.bits || chunks != c.chunks {
			t.Errorf("%d bytes: %d chunks of %d bits, want %d of %d", c.size, chunks, bits, c.chunks, c.bits)
		}
	}
}

func TestInlineContentStaysInOneBlock(t *testing.T) {
	for pos := uint64(0); pos < 2*blockSize; pos += slotSize {
		for _, head := range []uint64{32, 64, 200, 4000, 5000} {
			for tail := uint64(0); tail < blockSize; tail += 7 {
				pad, inline := inlineAt(pos, head, tail)
				if at := (pos + pad) % blockSize; inline > 0 && at+head+inline > blockSize {
					t.Fatalf("inode at %d, head %d, tail %d: leaves its block", pos+pad, head, tail)
				}
				if inline != 0 && inline != tail || inline == 0 && pad > 0 || (pos+pad)%slotSize != 0 {
					t.Fatalf("inode at %d, head %d, tail %d: padding %d, inline %d", pos, head, tail, pad, inline)
				}
			}
		}
	}
}

// manyNodes is a tree like those of images: folders of 100 files that are objects.
func manyNodes(n int) *Node {
	root := dirNode()
	for i := range n / 100 {
		d := dirNode()
		for j := range 99 {
			redirect := fmt.Sprintf("/objects/%02x/%040x.z.%d", j, i*1000+j, i+j)
			d.Children = append(d.Children, Child{fmt.Sprintf("file-%d.py", j), objectNode(i+j+1, redirect)})
			d.Children[j].Node.Mtime += int64(i % 50)
		}
		root.Children = append(root.Children, Child{fmt.Sprintf("package-%d", i), d})
	}
	return root
}

func BenchmarkWrite(b *testing.B) {
	const nodes = 100_000
	root := manyNodes(nodes)
	for name, opt := range map[string]Options{"uuid given": {UUID: [16]byte{1}}, "uuid made": {}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var stats Stats
			for b.Loop() {
				var err error
				if stats, err = Write(io.Discard, root, opt); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/nodes, "ns/node")
			b.ReportMetric(float64(stats.Size)/nodes, "bytes/node")
		})
	}
}

func FuzzWrite(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(newDice(seed, int(seed)*100).data, seed%2 == 1)
	}
	f.Fuzz(func(t *testing.T, data []byte, odd bool) {
		d := &dice{data[:min(len(data), 4000)]}
		var spoiling dice
		if odd {
			spoiling.data = d.data[:min(len(d.data), 40)]
			d.data = d.data[len(spoiling.data):]
		}
		root := d.tree()
		if odd {
			spoiling.spoil(root)
		}
		var b bytes.Buffer
		_, err := Write(&b, root, Options{})
		if _, refused := errors.AsType[*NodeError](err); refused {
			if !odd {
				t.Fatalf("a valid tree is refused: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		check(t, root, listImage(t, b.Bytes()))
	})
}
