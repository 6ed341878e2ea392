package erofs

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// listing is what a reader of an image is to find, by path; the root's is empty.
type listing map[string]record

type record struct {
	Mode, UID, GID uint32
	Nlink          uint64
	Size           int64 // not of folders
	Mtime          int64
	MtimeN         uint32
	Rdev           uint64 // of devices
	Target         string
	Xattrs         map[string]string
	First          string // the first of the paths of the same inode
}

// found is a listing being made: each record with its inode's identity.
type found[ID comparable] struct {
	records listing
	ids     map[string]ID
}

func newFound[ID comparable]() *found[ID] {
	return &found[ID]{records: make(listing), ids: make(map[string]ID)}
}

func (f *found[ID]) add(path string, id ID, r record) {
	f.records[path], f.ids[path] = r, id
}

func (f *found[ID]) listing() listing {
	first := make(map[ID]string)
	for path, id := range f.ids {
		if p, ok := first[id]; !ok || path < p {
			first[id] = path
		}
	}
	for path, r := range f.records {
		r.First = first[f.ids[path]]
		f.records[path] = r
	}
	return f.records
}

// check compares what was read with a tree. It is cmp.Diff, but quick when all is well and brief when it isn't.
func check(t *testing.T, root *Node, got listing) {
	t.Helper()
	tree := want(root)
	faults := 0
	for path := range tree {
		if _, ok := got[path]; !ok {
			t.Errorf("%q is missing", path)
			faults++
		}
	}
	for path, r := range got {
		if w, ok := tree[path]; !ok {
			t.Errorf("%q is not of the tree", path)
			faults++
		} else if !reflect.DeepEqual(w, r) {
			t.Errorf("%q differs (-tree +image):\n%s", path, cmp.Diff(w, r))
			faults++
		}
		if faults > 10 {
			t.Fatal("and so on")
		}
	}
}

// want is the listing of a tree, made without any code of the writer.
func want(root *Node) listing {
	f := newFound[*Node]()
	links := make(map[*Node]uint64)
	type place struct {
		path string
		node *Node
	}
	for todo := []place{{"", root}}; len(todo) > 0; {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		n := p.node
		links[n]++
		r := record{
			Mode: n.Mode, UID: n.UID, GID: n.GID, Mtime: n.Mtime, MtimeN: n.MtimeN,
			Xattrs: make(map[string]string),
		}
		for _, x := range n.Xattrs {
			r.Xattrs[x.Name] = x.Value
		}
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			r.Size = n.Size
		case unix.S_IFLNK:
			r.Size, r.Target = int64(len(n.Target)), n.Target
		case unix.S_IFCHR, unix.S_IFBLK:
			r.Rdev = n.Rdev
		case unix.S_IFDIR:
			links[n]++
		}
		f.add(p.path, n, r)
		for _, c := range n.Children {
			if c.Node.Mode&unix.S_IFMT == unix.S_IFDIR {
				links[n]++
			}
			todo = append(todo, place{p.path + "/" + c.Name, c.Node})
		}
	}
	for path, n := range f.ids {
		r := f.records[path]
		r.Nlink = links[n]
		f.records[path] = r
	}
	return f.listing()
}

const now = 1_700_000_000

func dirNode(children ...Child) *Node {
	return &Node{Mode: unix.S_IFDIR | 0o755, Mtime: now, Children: children}
}

func fileNode(size int64) *Node { return &Node{Mode: unix.S_IFREG | 0o644, Mtime: now, Size: size} }

func linkNode(target string) *Node {
	return &Node{Mode: unix.S_IFLNK | 0o777, Mtime: now, Target: target}
}

func with(n *Node, xs ...Xattr) *Node {
	n.Xattrs = append(n.Xattrs, xs...)
	return n
}

func xattr(name, value string) Xattr { return Xattr{Name: name, Value: value} }

// acl is an access control list as the kernel's attribute has it (include/uapi/linux/posix_acl_xattr.h).
func acl() string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{
		{1, 6, math.MaxUint32},
		{2, 4, 1000},
		{4, 4, math.MaxUint32},
		{0x10, 4, math.MaxUint32},
		{0x20, 4, math.MaxUint32},
	} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// capability is a file capability as security.capability has it (VFS_CAP_REVISION_2).
func capability() string {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	return string(append(b, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
}

// richTree has every kind of entry, and every limit of the format that takes no large image to reach.
func richTree() *Node {
	return dirNode(
		Child{"names", namesTree()},
		Child{"sizes", sizesTree()},
		Child{"owners", ownersTree()},
		Child{"times", timesTree()},
		Child{"kinds", kindsTree()},
		Child{"symlinks", symlinksTree()},
		Child{"links", linksTree()},
		Child{"xattrs", xattrsTree()},
		Child{"folders", foldersTree()},
	)
}

func namesTree() *Node {
	d := dirNode()
	for _, name := range []string{
		"!", "-", "+x", ".!", ".-x", "...", "..a", ".a", "a", "b", "é", "\xff\xfe", "\x01", "new\nline", `back\slash`,
		strings.Repeat("n", 255), strings.Repeat("ü", 127),
	} {
		d.Children = append(d.Children, Child{name, fileNode(1)})
	}
	return d
}

func sizesTree() *Node {
	d := dirNode()
	for _, size := range []int64{
		0, 1, 4095, 4096, 4097, 1 << 20, math.MaxUint32, math.MaxUint32 + 1, 1 << 43,
		1<<43 + 1, 1 << 50, MaxFileSize,
	} {
		d.Children = append(d.Children, Child{fmt.Sprint(size), fileNode(size)})
	}
	return d
}

func ownersTree() *Node {
	d := dirNode()
	for _, id := range []uint32{1, math.MaxUint16, math.MaxUint16 + 1, math.MaxUint32 - 1} {
		u, g := fileNode(0), fileNode(0)
		u.UID, g.GID = id, id
		d.Children = append(d.Children, Child{fmt.Sprint("u", id), u}, Child{fmt.Sprint("g", id), g})
	}
	return d
}

func timesTree() *Node {
	d := dirNode()
	for _, sec := range []int64{
		-1 << 40, math.MinInt32 - 1, -1, 0, math.MaxInt32 + 1, math.MaxUint32,
		math.MaxUint32 + 1, 1 << 40,
	} {
		for _, nsec := range []uint32{0, 1, 999_999_999} {
			n := fileNode(1)
			n.Mtime, n.MtimeN = sec, nsec
			d.Children = append(d.Children, Child{fmt.Sprint(sec, ".", nsec), n})
		}
	}
	d.Mtime = -5
	return d
}

func kindsTree() *Node {
	d := dirNode()
	for _, c := range []struct {
		name         string
		mode         uint32
		major, minor uint32
	}{
		{"null", unix.S_IFCHR | 0o666, 1, 3},
		{"whiteout", unix.S_IFCHR, 0, 0},
		{"block", unix.S_IFBLK | 0o660, 8, 300},
		{"last", unix.S_IFBLK | 0o660, maxMajor, maxMinor},
		{"fifo", unix.S_IFIFO | 0o600, 0, 0},
		{"socket", unix.S_IFSOCK | 0o755, 0, 0},
		{"setuid", unix.S_IFREG | 0o6755, 0, 0},
	} {
		d.Children = append(d.Children,
			Child{c.name, &Node{Mode: c.mode, Rdev: unix.Mkdev(c.major, c.minor), Mtime: now}})
	}
	d.Mode |= unix.S_ISVTX
	return d
}

func symlinksTree() *Node {
	d := dirNode()
	for _, size := range []int{1, 4, 31, 32, 33, 2000, 3000, 4031, 4032, 4033, 4063, 4064, 4065, 4094, 4095} {
		d.Children = append(d.Children,
			Child{fmt.Sprint(size), linkNode(strings.Repeat("t", size))},
			Child{fmt.Sprint(size, "x"), with(linkNode(strings.Repeat("t", size)),
				xattr("trusted.overlay.opaque", "n"))})
	}
	return d
}

func linksTree() *Node {
	file, link, dev := fileNode(5), linkNode("x"), &Node{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1, 5), Mtime: now}
	many := fileNode(6)
	d, sub := dirNode(), dirNode()
	for i := range math.MaxUint16 + 2 {
		sub.Children = append(sub.Children, Child{fmt.Sprintf("%05x", i), many})
	}
	for _, name := range []string{"1", "2", "3"} {
		at := dirNode(Child{"file", file}, Child{"again", file}, Child{"link", link}, Child{"dev", dev})
		d.Children = append(d.Children, Child{name, at})
	}
	d.Children = append(d.Children, Child{"many", sub})
	return d
}

func xattrsTree() *Node {
	big := func(fill string, n int) string { return strings.Repeat(fill, n) }
	d := with(dirNode(), xattr("system.posix_acl_default", acl()), xattr("user.on.folder", "1"))
	add := func(name string, n *Node, xs ...Xattr) { d.Children = append(d.Children, Child{name, with(n, xs...)}) }
	for i := range 20 {
		add(fmt.Sprint("object", i), fileNode(100), xattr("trusted.overlay.metacopy", ""),
			xattr("trusted.overlay.redirect", fmt.Sprint("/objects/", i)))
	}
	add("acl", fileNode(1), xattr("system.posix_acl_access", acl()))
	add("capability", fileNode(1), xattr("security.capability", capability()), xattr("user.z", "last"),
		xattr("user.a", "first"))
	add("longest", fileNode(1), xattr("user."+big("n", 250), big("v", maxXattrValue)))
	add("empty", fileNode(0), xattr("user.empty", ""))
	add("large1", fileNode(1), xattr("user.large", big("L", 10000)))
	add("large2", fileNode(1), xattr("user.large", big("L", 10000)))
	add("folder", dirNode(Child{"child", fileNode(1)}), xattr("trusted.wide", big("w", 4090)))
	add("device", &Node{Mode: unix.S_IFBLK, Mtime: now}, xattr("trusted.t", "t"), xattr("security.s", "s"))
	full := fileNode(1)
	for i := range 4 {
		full.Xattrs = append(full.Xattrs, xattr(fmt.Sprint("user.", i), big(fmt.Sprint(i), maxXattrValue)))
	}
	full.Xattrs[3].Value = full.Xattrs[3].Value[:maxXattrValue-60] // so that icount is nearly at its limit
	add("full", full)
	for _, name := range []string{"many1", "many2"} {
		n := fileNode(1)
		for i := range 300 {
			n.Xattrs = append(n.Xattrs, xattr(fmt.Sprint("trusted.", i), fmt.Sprint("value", i)))
		}
		add(name, n)
	}
	for size := range 70 { // every alignment
		add(fmt.Sprint("size", size), fileNode(9), xattr("user.s", big("s", size)))
	}
	return d
}

func foldersTree() *Node {
	d := dirNode(Child{"empty", dirNode()})
	for _, size := range folderSizes() {
		d.Children = append(d.Children, Child{fmt.Sprint("exactly", size), sizedFolder(size)})
	}
	entries := 100_000
	if testing.Short() {
		entries = 20_000 // some hundred blocks
	}
	huge := dirNode()
	for i := range entries {
		huge.Children = append(huge.Children, Child{fmt.Sprintf("entry%d", i), fileNode(int64(i))})
	}
	deep := dirNode()
	for range 3000 {
		deep = dirNode(Child{"d", deep})
	}
	d.Children = append(d.Children, Child{"huge", huge}, Child{"deep", deep})
	return d
}

// sizedFolder is a folder whose dirents have so many bytes and leave nothing empty at the end of a full block.
func sizedFolder(size int) *Node {
	const least = direntSize + len("000")
	d := dirNode()
	pos := 2*direntSize + len(".") + len("..")
	for i := 0; pos < size; i++ {
		room := min(blockSize-pos%blockSize, size-pos)
		entry := min(direntSize+maxName, room)
		if rest := room - entry; rest > 0 && rest < least {
			entry -= least
		}
		name := fmt.Sprintf("%03d%s", i, strings.Repeat("f", maxName))
		d.Children = append(d.Children, Child{name[:entry-direntSize], fileNode(1)})
		pos += entry
	}
	return d
}

// folderSizes are bytes of dirents: sizes at which content is inline, or plain, or both, but just so.
func folderSizes() []int {
	return []int{
		4000, 4031, 4032, 4033, 4064, 4065, 4095, 4096, 4111, 6000, 8160, 8161, 8191, 8192, 8207, 12287, 12288,
		12303,
	}
}

// dice are decisions taken from bytes. Without bytes every decision is 0.
type dice struct{ data []byte }

func newDice(seed uint64, size int) *dice {
	r := rand.New(rand.NewPCG(seed, 0))
	d := &dice{make([]byte, size)}
	for i := range d.data {
		d.data[i] = byte(r.Uint32())
	}
	return d
}

// under returns a number from 0 to n-1.
func (d *dice) under(n int) int {
	v := 0
	for m := 1; m < n && len(d.data) > 0; m <<= 8 {
		v = v<<8 | int(d.data[0])
		d.data = d.data[1:]
	}
	return v % n
}

func (d *dice) pick(from ...int64) int64 { return from[d.under(len(from))] }

// tree grows a tree that is valid.
func (d *dice) tree() *Node {
	root := d.node(unix.S_IFDIR)
	folders, others := []*Node{root}, []*Node{}
	names := make(map[*Node]map[string]bool)
	for len(d.data) > 0 {
		parent := folders[len(folders)-1-d.under(min(len(folders), 7))]
		if names[parent] == nil {
			names[parent] = make(map[string]bool)
		}
		name := d.name()
		if names[parent][name] {
			continue
		}
		names[parent][name] = true
		var n *Node
		if len(others) > 0 && d.under(8) == 0 {
			n = others[d.under(len(others))]
		} else {
			n = d.node(uint32(d.pick(unix.S_IFREG, unix.S_IFREG, unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFCHR,
				unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK)))
			if n.Mode&unix.S_IFMT == unix.S_IFDIR {
				folders = append(folders, n)
			} else {
				others = append(others, n)
			}
		}
		parent.Children = append(parent.Children, Child{name, n})
	}
	return root
}

func (d *dice) name() string {
	length := 1 + d.under(int(d.pick(3, 20, 255)))
	b := make([]byte, length)
	for i := range b {
		if b[i] = "abc.-!\xc3\xff"[d.under(8)]; i > 8 {
			b[i] = b[i%8]
		}
	}
	if s := string(b); s != "." && s != ".." {
		return s
	}
	return "dots"
}

func (d *dice) node(kind uint32) *Node {
	n := &Node{
		Mode:   kind | uint32(d.under(0o10000)),
		UID:    uint32(d.pick(0, 1000, 65535, 65536, 4e9)),
		GID:    uint32(d.pick(0, 0, 0, 100, 70000)),
		Mtime:  d.pick(now, now, now, -1, 1<<33, 0),
		MtimeN: uint32(d.pick(0, 0, 0, 1, 999_999_999)),
	}
	switch kind {
	case unix.S_IFREG:
		n.Size = d.pick(0, 1, 100, 4096, 70000, 1<<32, 1<<44)
	case unix.S_IFLNK:
		n.Target = strings.Repeat("t", 1+d.under(int(d.pick(10, 100, 4095))))
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = unix.Mkdev(uint32(d.under(maxMajor+1)), uint32(d.under(maxMinor+1)))
	}
	names := []string{"trusted.overlay.metacopy", "trusted.overlay.redirect", "security.x", "trusted.y"}
	if kind == unix.S_IFREG || kind == unix.S_IFDIR {
		names = append(names, "user.a", "user.b")
	}
	for i := range d.under(int(d.pick(1, 1, 3, len64(names)+1))) {
		n.Xattrs = append(n.Xattrs,
			xattr(names[i], strings.Repeat(fmt.Sprint(d.under(4)), d.under(int(d.pick(1, 4, 100, 1500))))))
	}
	return n
}

func len64(s []string) int64 { return int64(len(s)) }

// spoil does something to a tree that may make it invalid.
func (d *dice) spoil(root *Node) {
	n := root
	for d.under(4) > 0 && len(n.Children) > 0 {
		next := n.Children[d.under(len(n.Children))].Node
		if next == nil {
			break
		}
		n = next
	}
	switch d.under(12) {
	case 0:
		n.Children = append(n.Children, Child{"nil", nil})
	case 1:
		n.Children = append(n.Children, Child{"cycle", root})
	case 2:
		n.Children = append(n.Children, Child{string(d.data[:min(len(d.data), 300)]), fileNode(1)})
	case 3:
		n.Xattrs = append(n.Xattrs, xattr(string(d.data[:min(len(d.data), 20)]), "v"))
	case 4:
		n.Mode = uint32(d.under(1 << 17))
	case 5:
		n.Size = d.pick(-1, math.MaxInt64, math.MinInt64, MaxFileSize+1)
	case 6:
		n.Target = string(d.data)
	case 7:
		n.MtimeN = math.MaxUint32
	case 8:
		n.Rdev = math.MaxUint64
	case 9:
		n.Xattrs = append(n.Xattrs, n.Xattrs...)
	case 10:
		n.Children = append(n.Children, n.Children...)
	case 11:
		n.Xattrs = append(n.Xattrs, xattr("user.huge", strings.Repeat("h", maxXattrValue+1)))
	}
}
