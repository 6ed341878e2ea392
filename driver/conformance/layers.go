package conformance

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func equal[T any](t testing.TB, what string, want, got T) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: -want +got\n%s", what, d)
	}
}

// committed makes a layer of a container's changes and gives the view of a container on it, which must show the same.
func (d *driver) committed(container, image string) string {
	d.t.Helper()
	size := d.commit(container+" committed", container, image)
	equal(d.t, "size of what was committed", d.diffSize(container), size)
	return d.container(container+" again", container+" committed")
}

// WhiteoutsHide: what lies below, and that only: in the container, when it came in an archive, and after a commit.
func WhiteoutsHide(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", regular("a", "a"), regular("b", "b"), folder("dir"), regular("dir/a", "a"),
		regular("dir/b", "b"),
		folder("gone"), regular("gone/x", "x"), folder("old"), regular("old/x", "x"), folder("old/sub"),
		regular("old/sub/y", "y"))
	d.layer("top", "base", whiteout("a"), folder("dir"), whiteout("dir/a"), regular("dir/c", "c"), whiteout("gone"),
		folder("old"), opaque("old"), regular("old/new", "new"), whiteout("never was"))
	view := []string{"b=b", "dir/", "dir/b=b", "dir/c=c", "old/", "old/new=new"}
	dir := d.container("first", "top")
	shows(t, dir, view...)
	d.layer("back", "top", regular("a", "back"), folder("gone"), regular("old/x", "back"))
	shows(t, d.container("second", "back"), append(view, "a=back", "gone/", "old/x=back")...)

	must(t, os.Remove(filepath.Join(dir, "b")))
	must(t, os.RemoveAll(filepath.Join(dir, "dir")))
	must(t, os.RemoveAll(filepath.Join(dir, "old")))
	must(t, os.Mkdir(filepath.Join(dir, "old"), 0o755))
	must(t, write(filepath.Join(dir, "old/own"), "own"))
	must(t, os.Remove(filepath.Join(dir, "old/own")))
	must(t, write(filepath.Join(dir, "old/kept"), "kept"))
	shows(t, d.committed("first", "top"), "old/", "old/kept=kept")
}

// FoldersAndFilesSwap: a name may be a folder in one layer, a file or a link in the next, and a folder again.
func FoldersAndFilesSwap(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", folder("x"), regular("x/in", "in"), folder("x/sub"), regular("y", "y"), link('2', "z", "x"),
		folder("w"), regular("w/in", "in"))
	d.layer("swap", "base", regular("x", "file"), folder("y"), regular("y/in", "in"), folder("z"),
		regular("z/in", "own"), link('2', "w", "y"))
	view := []string{"x=file", "y/", "y/in=in", "z/", "z/in=own", "w->y"}
	dir := d.container("first", "swap")
	shows(t, dir, view...)
	d.layer("again", "swap", folder("x"), regular("x/new", "new"), regular("y", "file"), regular("z", "file"),
		folder("w"))
	shows(t, d.container("second", "again"), "x/", "x/new=new", "y=file", "z=file", "w/")

	for _, name := range []string{"x", "y", "z", "w"} {
		must(t, os.RemoveAll(filepath.Join(dir, name)))
	}
	must(t, os.Mkdir(filepath.Join(dir, "x"), 0o755))
	must(t, write(filepath.Join(dir, "x/own"), "own"))
	must(t, write(filepath.Join(dir, "y"), "own"))
	must(t, os.Symlink("x", filepath.Join(dir, "z")))
	must(t, os.Mkdir(filepath.Join(dir, "w"), 0o755))
	shows(t, d.committed("first", "swap"), "x/", "x/own=own", "y=own", "z->x", "w/")
}

// HardLinks: names of one file in a layer are one file, and one that is written to in a layer above parts from the
// others.
func HardLinks(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", regular("a", "one file"), link('1', "b", "a"), folder("dir"), link('1', "dir/c", "b"),
		regular("alone", "alone"),
		link('2', "soft", "a"), link('1', "soft too", "soft"), special('6', "pipe", 0, 0),
		link('1', "pipe too", "pipe"))
	dir := d.container("first", "base")
	for _, pair := range [][2]string{{"a", "b"}, {"a", "dir/c"}, {"soft", "soft too"}, {"pipe", "pipe too"}} {
		if !sameFile(t, dir, pair[0], pair[1]) {
			t.Errorf("%s and %s are two files", pair[0], pair[1])
		}
	}
	must(t, write(filepath.Join(dir, "b"), "parted"))
	must(t, os.Link(filepath.Join(dir, "alone"), filepath.Join(dir, "together")))
	must(t, os.Link(filepath.Join(dir, "b"), filepath.Join(dir, "dir/b")))
	must(t, write(filepath.Join(dir, "new"), "new"))
	must(t, os.Link(filepath.Join(dir, "new"), filepath.Join(dir, "dir/new")))
	must(t, write(filepath.Join(dir, "gone"), "still here"))
	must(t, os.Link(filepath.Join(dir, "gone"), filepath.Join(dir, "kept")))
	must(t, os.Remove(filepath.Join(dir, "gone")))
	again := d.committed("first", "base")
	same(t, "after the commit", dir, again)
	for _, pair := range [][2]string{{"a", "dir/c"}, {"alone", "together"}, {"b", "dir/b"}, {"new", "dir/new"}} {
		if !sameFile(t, again, pair[0], pair[1]) {
			t.Errorf("after the commit %s and %s are two files", pair[0], pair[1])
		}
	}
	if got := find(t, again, "a").Content; got != "one file" {
		t.Errorf("the name not written to holds %q", got)
	}
	if _, err := d.apply("link to nowhere", "base", pack(t, link('1', "x", "alone"))); err == nil {
		t.Error("a hard link to a file of another layer was accepted: archives can't name these")
	}
}

func sameFile(t testing.TB, dir, a, b string) bool {
	t.Helper()
	x, err := os.Lstat(filepath.Join(dir, a))
	must(t, err)
	y, err := os.Lstat(filepath.Join(dir, b))
	must(t, err)
	return os.SameFile(x, y)
}

// capability lets a program bind low ports: revision 2, see linux/capability.h.
const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// ExtendedAttributes: come in with archives, are kept when a file is copied up; of a container's own, file capabilities
// go out.
func ExtendedAttributes(t *testing.T, target Target) {
	d := use(t, target)
	long := strings.Repeat("v", 2000)
	d.layer("base", "", regular("file", "x").with("user.a", "1").with("user.b", long),
		folder("dir").with("user.d", "2"),
		regular("program", "x").with("security.capability", capability),
		regular("trusted", "x").with("trusted.own", "3"),
		regular("empty", "x").with("user.none", ""), regular("plain", "x"))
	dir := d.container("first", "base")
	attrs := map[string]string{
		"file": fmt.Sprintf("user.a=%q user.b=%q", "1", long), "dir": `user.d="2"`,
		"program": fmt.Sprintf("security.capability=%q", capability),
		"trusted": `trusted.own="3"`, "empty": `user.none=""`, "plain": "",
	}
	for name, want := range attrs {
		equal(t, name, want, find(t, dir, name).Attrs)
		must(t, os.Chmod(filepath.Join(dir, name), 0o700))
		equal(t, name+", copied up", want, find(t, dir, name).Attrs)
	}
	must(t, unix.Setxattr(filepath.Join(dir, "plain"), "security.capability", []byte(capability), 0))
	again := d.committed("first", "base")
	for _, name := range []string{"program", "plain"} {
		equal(t, name+", committed", fmt.Sprintf("security.capability=%q", capability), find(t, again, name).Attrs)
	}
}

// ModesAndOwners: set-uid, set-gid and sticky bits, modes without permissions, and owners are kept in each way layers
// go.
func ModesAndOwners(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", regular("suid", "x").owned(1000, 0, 0o4755), regular("sgid", "x").owned(0, 1000, 0o2711),
		folder("sticky").owned(7, 8, 0o1777),
		folder("sgid dir").owned(0, 50, 0o2775), regular("sgid dir/in", "x").owned(1, 2, 0o640),
		regular("nothing", "x").owned(65534, 65534, 0),
		regular("big", "x").owned(100_000_000, 2_000_000_000, 0o600),
		link('2', "link", "suid").owned(1000, 1000, 0o777), regular("all", "x").owned(3, 4, 0o7777))
	dir := d.container("first", "base")
	want := map[string]string{
		"suid": "1000:0 4755", "sgid": "0:1000 2711", "sticky": "7:8 1777", "sgid dir": "0:50 2775",
		"sgid dir/in": "1:2 640",
		"nothing":     "65534:65534 0", "big": "100000000:2000000000 600", "link": "1000:1000 0", "all": "3:4 7777",
		"": "0:0 755",
	}
	check := func(what, dir string) {
		t.Helper()
		for name, w := range want {
			e := find(t, dir, name)
			equal(t, what+": "+name, w, fmt.Sprintf("%d:%d %o", e.UID, e.GID, e.Mode))
		}
	}
	check("applied", dir)
	for name := range want {
		if name != "" && name != "link" {
			must(t, unix.Setxattr(filepath.Join(dir, name), "user.touched", []byte("1"), 0)) // copies up
		}
	}
	check("copied up", dir)
	check("committed", d.committed("first", "base"))
}

// SpecialFiles: devices and pipes go each way; a socket lives as long as its container.
func SpecialFiles(t *testing.T, target Target) {
	d := use(t, target)
	d.layer("base", "", special(tar.TypeChar, "null", 1, 3), special(tar.TypeBlock, "disk", 8, 17),
		special(tar.TypeFifo, "pipe", 0, 0),
		special(tar.TypeChar, "wide", 511, 1<<19), regular("a", "a"))
	dir := d.container("first", "base")
	view := []string{"null c1:3", "disk b8:17", "pipe p", fmt.Sprintf("wide c511:%d", 1<<19)}
	shows(t, dir, append(view, "a=a")...)
	must(t, unix.Mknod(filepath.Join(dir, "own"), unix.S_IFCHR|0o600, int(unix.Mkdev(5, 1))))
	must(t, unix.Mkfifo(filepath.Join(dir, "own pipe"), 0o600))
	must(t, unix.Mknod(filepath.Join(dir, "socket"), unix.S_IFSOCK|0o600, 0))
	must(t, os.Remove(filepath.Join(dir, "a")))
	view = append(view, "own c5:1", "own pipe p")
	shows(t, dir, append(view, "socket s")...)
	shows(t, d.committed("first", "base"), view...)
}

// Names: any bytes but "/" and NUL, as long as the kernel takes them.
func Names(t *testing.T, target Target) {
	d := use(t, target)
	long := strings.Repeat("n", 255)
	deep := strings.TrimSuffix(strings.Repeat(strings.Repeat("d", 100)+"/", 20), "/")
	far := strings.Repeat("t", 4000)
	odd := []string{
		long, "\xff\xfe not UTF-8 \x80", "new\nline", "tab\tand\x01", "quote\"'\\", " space ", "-dash", "co:lon,comma=",
		"é", "e\u0301",
		"back\\slash", ".wh", "%2e", "..twodots", "*", "名前",
	}
	items := []item{link('2', "far", far), regular(deep+"/file", "deep")}
	for _, name := range odd {
		items = append(items, regular(name, "x"))
	}
	d.layer("base", "", items...)
	dir := d.container("first", "base")
	for _, name := range odd {
		equal(t, fmt.Sprintf("%q", name), "x", find(t, dir, name).Content)
		must(t, os.Rename(filepath.Join(dir, name), filepath.Join(dir, deep, name)))
	}
	equal(t, "long target", far, find(t, dir, "far").Content)
	equal(t, "deep file", "deep", find(t, dir, deep+"/file").Content)
	same(t, "committed", dir, d.committed("first", "base"))
}

// Times: come in to the nanosecond, also after 2038, for files, links and folders; a copied-up file keeps its own.
// In archives that go out seconds are enough.
func Times(t *testing.T, target Target) {
	d := use(t, target)
	times := map[string]time.Time{
		"ns": time.Unix(1_600_000_000, 123_456_789), "zero": time.Unix(0, 0), "late": time.Unix(5_000_000_000, 1),
	}
	var items []item
	for name, at := range times {
		items = append(items, regular(name, "x").at(at), folder(name+" dir").at(at), regular(name+" dir/in", "x"),
			link('2', name+" link", "x").at(at))
	}
	d.layer("base", "", items...)
	dir := d.container("first", "base")
	check := func(what, dir string, precision time.Duration) {
		t.Helper()
		for name, at := range times {
			for _, name := range []string{name, name + " dir", name + " link"} {
				info, err := os.Lstat(filepath.Join(dir, name))
				must(t, err)
				if off := info.ModTime().Sub(at).Abs(); off > precision {
					t.Errorf("%s: %s has %v, want %v", what, name, info.ModTime(), at)
				}
			}
		}
	}
	check("applied", dir, 0)
	for name := range times {
		must(t, os.Chmod(filepath.Join(dir, name), 0o600))
		must(t, os.Chmod(filepath.Join(dir, name+" dir"), 0o700))
		must(t, unix.Lchown(filepath.Join(dir, name+" link"), 1, 1))
	}
	check("copied up", dir, 0)
	check("committed", d.committed("first", "base"), time.Second)
}

// SparseFiles: archives may hold files with holes; holes of a container's files are zeros in what goes out.
func SparseFiles(t *testing.T, target Target) {
	d := use(t, target)
	const size = 3 << 20
	_, err := d.apply("base", "", sparseArchive(t, "sparse", size))
	must(t, err)
	want := append(append(make([]byte, 1<<20), bytes.Repeat([]byte("d"), 512)...), make([]byte, size-(1<<20)-512)...)
	dir := d.container("first", "base")
	equal(t, "applied", summary(string(want)), find(t, dir, "sparse").Content)
	f, err := os.OpenFile(filepath.Join(dir, "own"), os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	_, err = f.WriteAt([]byte("end"), 5<<20)
	must(t, err)
	must(t, f.Truncate(6<<20))
	must(t, f.Close())
	must(t, os.Chtimes(filepath.Join(dir, "own"), moment, moment))
	same(t, "committed", dir, d.committed("first", "base"))
}

// sparseArchive makes an archive with a file that has 512 bytes of data at 1 MiB, in the old GNU format, which
// archive/tar can read but not write; see "Basic Tar Format" in the manual of GNU tar for the fields.
func sparseArchive(t testing.TB, name string, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: 512, ModTime: moment,
		Format: tar.FormatGNU,
	}))
	_, err := w.Write(bytes.Repeat([]byte("d"), 512))
	must(t, err)
	must(t, w.Close())
	h := b.Bytes()[:512]
	h[156] = tar.TypeGNUSparse
	copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", 1<<20, 512)) // where the data is
	copy(h[410:], fmt.Sprintf("%011o\x00%011o\x00", size, 0))    // and where the file ends
	copy(h[483:], fmt.Sprintf("%011o\x00", size))
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b.Bytes()
}

// BigFilesAreCopiedUp: a large file of which a container changes a few bytes keeps the others, and is exported as a
// whole.
func BigFilesAreCopiedUp(t *testing.T, target Target) {
	d := use(t, target)
	const size = 24 << 20
	body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	d.layer("base", "", regular("big", string(body)))
	dir := d.container("first", "base")
	f, err := os.OpenFile(filepath.Join(dir, "big"), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("changed"), size/2)
	must(t, err)
	must(t, f.Close())
	must(t, os.Chtimes(filepath.Join(dir, "big"), moment, moment))
	copy(body[size/2:], "changed")
	equal(t, "changed", summary(string(body)), find(t, dir, "big").Content)
	equal(t, "size", size, d.diffSize("first"))
	same(t, "committed", dir, d.committed("first", "base"))
}

// OverlayAttributesInstructNobody: attributes by which overlayfs is told what to do are without effect in layers that
// come in, under either of their names, and don't go out again.
func OverlayAttributesInstructNobody(t *testing.T, target Target) {
	for _, space := range []string{"trusted.overlay.", "user.overlay."} {
		t.Run(space, func(t *testing.T) {
			d := use(t, target)
			d.layer("base", "", regular("secret", "secret"), folder("dir"), regular("dir/kept", "kept"),
				regular("file", "below"))
			d.layer("image", "base",
				folder("dir").with(space+"opaque", "y"), regular("dir/new", "new"),
				folder("moved").with(space+"redirect", "/dir"),
				regular("file", "own").with(space+"metacopy", "").with(space+"redirect", "/secret"),
				regular("white", "seen").with(space+"whiteout", ""),
				regular("dir/white", "seen").with(space+"whiteout", "y"),
				folder("marked").with(space+"opaque", "x"), regular("marked/in", "in").with(space+"whiteout", ""),
				regular("origin", "own").with(space+"origin", "junk").with("user.kept", "1"))
			dir := d.container("container", "image")
			shows(t, dir, "secret=secret", "dir/", "dir/kept=kept", "dir/new=new", "dir/white=seen", "file=own",
				"moved/", "white=seen",
				"marked/", "marked/in=in", "origin=own")
			equal(t, "an attribute of the file's own", `user.kept="1"`, find(t, dir, "origin").Attrs)
			for _, i := range unpack(t, d.export(object{"ID": d.id("image"), "Parent": d.id("base")})) {
				for _, a := range attributes(i) {
					if strings.HasPrefix(a, space) {
						t.Errorf("%s goes out with %s", i.Name, a)
					}
				}
			}
		})
	}
}
