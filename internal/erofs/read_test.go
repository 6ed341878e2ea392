package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// listReader lists an image by our own reader. Every name listed must also be found.
func listReader(t testing.TB, r *Reader) listing {
	t.Helper()
	f := newFound[uint64]()
	type place struct {
		path string
		nid  uint64
	}
	f.add("", r.Root(), readerRecord(t, r, r.Root()))
	for todo := []place{{"", r.Root()}}; len(todo) > 0; {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		err := r.ReadDir(p.nid, 0, func(name string, nid uint64) bool {
			if got, found, err := r.Lookup(p.nid, []byte(name)); got != nid || !found || err != nil {
				t.Fatalf("look up %q in %q: %d, %t, %v; listed as %d", name, p.path, got, found, err, nid)
			}
			if name == "." || name == ".." {
				return true
			}
			child := readerRecord(t, r, nid)
			f.add(p.path+"/"+name, nid, child)
			if child.Mode&unix.S_IFMT == unix.S_IFDIR {
				todo = append(todo, place{p.path + "/" + name, nid})
			}
			return true
		})
		if err != nil {
			t.Fatalf("list %q: %v", p.path, err)
		}
	}
	return f.listing()
}

func readerRecord(t testing.TB, r *Reader, nid uint64) record {
	t.Helper()
	n, err := r.Inode(nid)
	if err != nil {
		t.Fatal(err)
	}
	rec := record{
		Mode: n.Mode, UID: n.UID, GID: n.GID, Nlink: uint64(n.Link), Size: n.Size, Mtime: n.Mtime, MtimeN: n.MtimeN,
		Rdev: n.Rdev, Xattrs: make(map[string]string),
	}
	names, err := r.XattrNames(nid)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		value, found, err := r.Xattr(nid, name)
		if !found || err != nil {
			t.Fatalf("attribute %q of %d: %t, %v", name, nid, found, err)
		}
		rec.Xattrs[name] = string(value)
	}
	switch rec.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		rec.Size = 0
	case unix.S_IFLNK:
		if rec.Target, err = r.Readlink(nid); err != nil {
			t.Fatal(err)
		}
	}
	return rec
}

func newReader(t testing.TB, image []byte) *Reader {
	t.Helper()
	r, err := NewReader(image)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReaderFindsTheTree(t *testing.T) {
	root := richTree()
	check(t, root, listReader(t, newReader(t, encode(t, root, Options{}))))
	for seed := range uint64(20) {
		root := newDice(seed, int(seed)*500).tree()
		check(t, root, listReader(t, newReader(t, encode(t, root, Options{}))))
	}
}

func TestReaderFindsNoNameThatIsNotThere(t *testing.T) {
	r := newReader(t, encode(t, richTree(), Options{}))
	for _, path := range []string{
		"names/c", "names/ ", "names/\xff\xff", "names/" + strings.Repeat("n", 254),
		"folders/huge/entry", "folders/huge/entry100000", "folders/empty/x",
	} {
		folder, name := filepath.Split(path)
		nid := r.Root()
		for part := range strings.SplitSeq(strings.Trim(folder, "/"), "/") {
			var found bool
			var err error
			if nid, found, err = r.Lookup(nid, []byte(part)); !found || err != nil {
				t.Fatalf("%s of %s: %v", part, path, err)
			}
		}
		if got, found, err := r.Lookup(nid, []byte(name)); found || err != nil {
			t.Errorf("%q: found %d, %v", path, got, err)
		}
		if _, found, err := r.Xattr(nid, "user.none"); found || err != nil {
			t.Errorf("attribute of %q: %t, %v", path, found, err)
		}
	}
}

func TestListingGoesOnWhereItWasLeft(t *testing.T) {
	r := newReader(t, encode(t, foldersTree(), Options{}))
	huge, _, err := r.Lookup(r.Root(), []byte("huge"))
	if err != nil {
		t.Fatal(err)
	}
	list := func(from uint64, most int) (names []string) {
		if err := r.ReadDir(huge, from, func(name string, _ uint64) bool {
			names = append(names, name)
			return len(names) < most
		}); err != nil {
			t.Fatal(err)
		}
		return names
	}
	all := list(0, 1<<30)
	var pieces []string
	for n := 1; len(pieces) < len(all); n = n%977 + 13 {
		pieces = append(pieces, list(uint64(len(pieces)), n)...)
	}
	if len(all) < 10_000 || strings.Join(all, "/") != strings.Join(pieces, "/") {
		t.Errorf("%d names at once, %d in pieces", len(all), len(pieces))
	}
	for _, from := range []uint64{uint64(len(all)), 1 << 40, 1<<64 - 1} {
		if got := list(from, 1); len(got) > 0 {
			t.Errorf("from %d: %q", from, got)
		}
	}
}

// The file under a mapping may lose what was there: a full disk that lies, a fault of the disk, a hand that truncates
// it.
func TestReaderSurvivesAnImageThatIsCutShort(t *testing.T) {
	name := imageFile(t, richTree())
	r, err := OpenReader(name)
	if err != nil {
		t.Fatal(err)
	}
	check(t, richTree(), listReader(t, r))
	if err := os.Truncate(name, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Inode(r.Root()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("inode: %v", err)
	}
	if err := r.ReadDir(r.Root(), 0, func(string, uint64) bool { return true }); !errors.Is(err, ErrCorrupt) {
		t.Errorf("list: %v", err)
	}
	if _, err := OpenReader(name); !errors.Is(err, ErrCorrupt) {
		t.Errorf("open: %v", err)
	}
}

func TestReaderRefusesWhatIsNoImage(t *testing.T) {
	image := encode(t, richTree(), Options{})
	spoilt := func(off int, b ...byte) []byte {
		c := bytes.Clone(image)
		copy(c[superOffset+off:], b)
		return c
	}
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"zeros":               make([]byte, 8192),
		"half":                image[:len(image)/2],
		"wrong checksum":      spoilt(0x30, 1),
		"larger blocks":       resum(spoilt(12, 13)),
		"features":            resum(spoilt(80, 0xff)),
		"root is elsewhere":   resum(spoilt(14, 1)),
		"root is out of the…": resum(spoilt(14, 0xff, 0xff)),
	} {
		if _, err := NewReader(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// resum corrects the superblock's checksum.
func resum(image []byte) []byte {
	if len(image) >= blockSize {
		clear(image[superOffset+checksumOffset : superOffset+checksumOffset+4])
		sum := ^crc32.Checksum(image[superOffset:blockSize], crc32.MakeTable(crc32.Castagnoli))
		binary.LittleEndian.PutUint32(image[superOffset+checksumOffset:], sum)
	}
	return image
}

// explore reads everything of an image that may be damaged, within bounds.
func explore(r *Reader) {
	budget := 2000
	for nid := range r.Slots() {
		r.Inode(nid) // any error will do
		r.Readlink(nid)
		r.XattrNames(nid)
		r.Xattr(nid, "user.x")
		r.Lookup(nid, []byte{0})
		r.ReadDir(nid, 1, func(name string, nid uint64) bool {
			r.Inode(nid)
			r.Lookup(nid, []byte(name))
			budget--
			return budget > 0
		})
	}
}

func FuzzReader(f *testing.F) {
	for seed := range uint64(6) {
		f.Add(encode(f, newDice(seed, int(seed)*100).tree(), Options{}), uint32(seed*977), uint32(seed*31), byte(seed))
	}
	f.Fuzz(func(t *testing.T, image []byte, at, width uint32, with byte) {
		if len(image) > 1<<16 {
			return
		}
		image = bytes.Clone(image)
		if len(image) > 0 {
			from := int(at) % len(image)
			for i := from; i < min(len(image), from+int(width%64)); i++ {
				image[i] = with
			}
		}
		r, err := NewReader(resum(image))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		explore(r)
	})
}

func BenchmarkReader(b *testing.B) {
	r := newReader(b, encode(b, manyNodes(100_000), Options{}))
	var names []string
	var folder uint64
	err := r.ReadDir(r.Root(), 2, func(_ string, nid uint64) bool {
		folder = nid
		return false
	})
	if err == nil {
		err = r.ReadDir(folder, 2, func(name string, _ uint64) bool {
			names = append(names, name)
			return true
		})
	}
	if err != nil || len(names) == 0 {
		b.Fatal(fmt.Sprint(len(names), " names, ", err))
	}
	for i := 0; b.Loop(); i++ {
		nid, _, err := r.Lookup(folder, []byte(names[i%len(names)]))
		if err == nil {
			_, err = r.Inode(nid)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
