package target

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/internal/testutil"
	"cvmfs-graphdriver/thin"
)

// unpack extracts an archive of headers into a new folder.
func unpack(t testing.TB, headers ...tar.Header) (dir string, record *thin.Record, err error) {
	t.Helper()
	testutil.NeedRoot(t)
	dir = t.TempDir()
	record, _, err = extract(t.Context(), bytes.NewReader(testutil.Tar(t, headers...)), dir)
	return dir, record, err
}

// contents reads files of a layer one after the other.
func contents(t testing.TB, dir string, names ...string) string {
	t.Helper()
	var all strings.Builder
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}

func TestNameThatIsUsedAgainLeavesItsHardLinks(t *testing.T) {
	file := func(name, content string) tar.Header { return entry(tar.TypeReg, name, content, 0o644) }
	link := func(name, target string) tar.Header { return entry(tar.TypeLink, name, target, 0) }
	dir, record, err := unpack(t,
		file("a", "old"), link("d/b", "a"), link("e/c", "a"),
		file("a", "new"), link("f/g", "a"),
		entry(tar.TypeDir, "was", "", 0o755), file("was/.cvmfscatalog", ""), link("was/linked", "d/b"), entry(tar.TypeSymlink, "was", "d", 0o777),
	)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{{"a", "f/g"}, {"d/b", "e/c"}}
	if diff := cmp.Diff(want, record.Links); diff != "" || len(record.Markers) != 0 {
		t.Errorf("links (-want +got):\n%s\nmarkers: %q", diff, record.Markers)
	}
	if got := contents(t, dir, "a", "f/g", "d/b", "e/c"); got != "newnewoldold" {
		t.Errorf("contents %q", got)
	}
}

func TestFolderThatReplacesALinkIsNoLink(t *testing.T) {
	dir, _, err := unpack(t,
		entry(tar.TypeDir, "d", "", 0o755), entry(tar.TypeSymlink, "l", "d", 0o777), entry(tar.TypeDir, "l", "", 0o755),
		entry(tar.TypeReg, "l/x", "x", 0o644))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "d/x")); err == nil {
		t.Error("the file went where the link had led")
	}
}

func TestAbsoluteNamesMeanTheLayersRoot(t *testing.T) {
	dir, _, err := unpack(t, entry(tar.TypeReg, "/etc/one", "1", 0o644), entry(tar.TypeLink, "two", "/etc/one", 0),
		entry(tar.TypeReg, ".//etc/./three", "3", 0o644))
	if err != nil {
		t.Fatal(err)
	}
	if got := contents(t, dir, "etc/one", "two", "etc/three"); got != "113" {
		t.Errorf("contents %q", got)
	}
}

func TestOwnersThatNoSystemHasAreRefused(t *testing.T) {
	for _, id := range []int{-1, 1<<32 - 1, 1 << 32} {
		h := entry(tar.TypeReg, "f", "x", 0o644)
		h.Uid = id
		if _, _, err := unpack(t, h); err == nil || !strings.Contains(err.Error(), "out of range") {
			t.Errorf("%d: error %v", id, err)
		}
	}
}
