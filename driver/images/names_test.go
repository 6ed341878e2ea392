package images

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
)

func TestNamesOfLibraries(t *testing.T) {
	for name, want := range map[string]bool{
		"libm.so": true, "libm.so.6": true, "libstdc++.so.6.0.30": true, "_ctypes.cpython-311-x86_64-linux-gnu.so": true,
		"ld-linux-x86-64.so.2": true, "libc-2.31.so": true, ".so": false, ".so.1": false, "also": false, "lib.song": false,
		"so": false, "libm.so.gz": true, "libm.a": false,
	} {
		if isLibrary(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func TestLibrariesAreFoundAsSymbolicLinksLead(t *testing.T) {
	deep := strings.Repeat("x/../", mostSteps) + "x/libm.so.6"
	tree := layer(t,
		"s /deep.so /usr/lib/"+deep,
		"d /etc", "d /etc/alternatives",
		"s /etc/alternatives/libblas.so.3 /usr/lib/x/blas/libblas.so.3",
		"f /etc/group", "s /etc/passwd ../usr/lib/x/absent",
		"s /lib usr/lib",
		"d /usr", "d /usr/lib",
		"s /usr/lib/loop.so other.so", "s /usr/lib/other.so loop.so",
		"s /usr/lib/libout.so ../../../../usr/lib/x/libm.so.6.1", // above the root is the root
		"d /usr/lib/x",
		"d /usr/lib/x/blas", "f /usr/lib/x/blas/libblas.so.3",
		"s /usr/lib/x/libabsent.so.1 libabsent.so.1.2",
		"s /usr/lib/x/libblas.so.3 /etc/alternatives/libblas.so.3",
		"e /usr/lib/x/libempty.so",
		"f /usr/lib/x/libm.so.6.1", "s /usr/lib/x/libm.so.6 libm.so.6.1", "s /usr/lib/x/libm.so /lib/x/libm.so.6",
		"s /usr/lib/x/libpath.so libm.so.6.1/more",
		"d /usr/lib/y", "f /usr/lib/y/libm.so.6", "d /usr/lib/y/folder.so",
	)
	var files func(n *node)
	files = func(n *node) {
		if n.redirect != "" {
			n.object = &objects.Object{}
		}
		for _, c := range n.children {
			files(c)
		}
	}
	files(tree)
	f := flatten(tree, nil)
	position := map[string]uint32{}
	want := objects.Names{}
	for i, file := range []string{"/etc/group", "libm.so.6.1", "blas/libblas.so.3", "y/libm.so.6"} {
		position[file] = uint32(i) // in the order of folders
	}
	want["libm.so.6.1"] = []uint32{position["libm.so.6.1"]}
	want["libm.so.6"] = []uint32{position["libm.so.6.1"], position["y/libm.so.6"]}
	want["libm.so"] = want["libm.so.6.1"]
	want["libout.so"] = want["libm.so.6.1"]
	want["/etc/group"] = []uint32{position["/etc/group"]}
	want["libblas.so.3"] = []uint32{position["blas/libblas.so.3"]}
	if diff := cmp.Diff(want, f.names); diff != "" {
		t.Errorf("libraries (-want +got):\n%s", diff)
	}
}

func TestNamesOfLibrariesAreReadAsTheyWereWritten(t *testing.T) {
	dir := t.TempDir()
	tree := layer(t, "f /libm.so.6")
	tree.children["libm.so.6"].repo = "r.example.org"
	tree.children["libm.so.6"].object = &objects.Object{Digest: hash.SHA1.Digest(nil), Size: 1}
	if err := flatten(tree, nil).write(dir, &Image{Key: "0123456789abcdef0123456789abcdef"}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "0123456789abcdef0123456789abcdef", namesFile)
	got, err := readNames(file)
	if diff := cmp.Diff(objects.Names{"libm.so.6": {0}}, got); diff != "" || err != nil {
		t.Errorf("%v, libraries (-want +got):\n%s", err, diff)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readNames(file); err == nil {
		t.Error("a torn file is read")
	}
	if got, err := readNames(filepath.Join(dir, "absent")); got != nil || err != nil {
		t.Errorf("an image of an older version: %v, %v", got, err)
	}
}
