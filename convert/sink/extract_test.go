package sink

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/internal/layertar/layertartest"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

// unpack extracts an archive of headers into a new folder.
func unpack(t testing.TB, headers ...tar.Header) (dir string, record *thin.Record, err error) {
	t.Helper()
	testutil.NeedRoot(t)
	dir = t.TempDir()
	record, _, err = extract(t.Context(), bytes.NewReader(testutil.Tar(t, headers...)), dir, 0)
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
		entry(tar.TypeDir, "was", "", 0o755), file("was/.cvmfscatalog", ""), link("was/linked", "d/b"),
		entry(tar.TypeSymlink, "was", "d", 0o777),
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

func TestExtractTakesWhatEnginesTake(t *testing.T) {
	testutil.NeedRoot(t)
	layertartest.Run(t, true, func(t *testing.T, archive []byte) ([]string, error) {
		dir := t.TempDir()
		_, _, err := extract(t.Context(), bytes.NewReader(archive), dir, 0)
		tree := layertartest.List(t, dir, false)
		return slices.DeleteFunc(tree, func(line string) bool { return strings.HasPrefix(line, catalog.Marker+" ") }),
			err
	})
}

func TestAttributesOfAFolderThatComesAgainAreAllRecorded(t *testing.T) {
	big := entry(tar.TypeDir, "d", "", 0o755)
	big.PAXRecords = map[string]string{"SCHILY.xattr.user.big": strings.Repeat("b", 300), "SCHILY.xattr.user.both": "1"}
	small := entry(tar.TypeDir, "./d/", "", 0o755)
	small.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "a", "SCHILY.xattr.user.both": "2"}
	_, record, err := unpack(t, big, small)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]thin.Xattr{"d": {
		{Name: "user.a", Value: []byte("a")},
		{Name: "user.big", Value: bytes.Repeat([]byte("b"), 300)},
		{Name: "user.both", Value: []byte("2")},
	}}
	if diff := cmp.Diff(want, record.Xattrs); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestAttributesThatTheFileSystemHasNotAreRecorded(t *testing.T) {
	h := entry(tar.TypeReg, "f", "x", 0o644)
	h.PAXRecords = map[string]string{"SCHILY.xattr.btrfs.compression": "zstd", "SCHILY.xattr.user.a": "a"}
	testutil.NeedRoot(t)
	record, stats, err := extract(t.Context(), bytes.NewReader(testutil.Tar(t, h)), t.TempDir(), 0)
	if err != nil || stats.LeftOut != 1 || len(stats.Notes) != 1 {
		t.Fatalf("%+v, %v", stats, err)
	}
	want := map[string][]thin.Xattr{"f": {
		{Name: "btrfs.compression", Value: []byte("zstd")},
		{Name: "user.a", Value: []byte("a")},
	}}
	if diff := cmp.Diff(want, record.Xattrs); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// Which file systems have room for it differs, and the layer's record has.
func TestLongAttributesAreRecordedWhateverTheFileSystemHasRoomFor(t *testing.T) {
	h := entry(tar.TypeReg, "f", "x", 0o644)
	h.PAXRecords = map[string]string{"SCHILY.xattr.user.long": strings.Repeat("v", 65000)}
	_, record, err := unpack(t, h)
	if err != nil {
		t.Fatal(err)
	}
	if attrs := record.Xattrs["f"]; len(attrs) != 1 || len(attrs[0].Value) != 65000 {
		t.Errorf("%.300v", record.Xattrs)
	}
}

func TestWhatAComposedImageCanNotHoldIsRefused(t *testing.T) {
	value := entry(tar.TypeReg, "f", "x", 0o644)
	value.PAXRecords = map[string]string{"SCHILY.xattr.user.big": strings.Repeat("v", 65536)}
	device := entry(tar.TypeChar, "d", "", 0o644)
	device.Devmajor = 4096
	first, second := entry(tar.TypeDir, "merged", "", 0o755), entry(tar.TypeDir, "merged", "", 0o755)
	first.PAXRecords, second.PAXRecords = map[string]string{}, map[string]string{}
	for n := range 3 {
		first.PAXRecords[fmt.Sprint("SCHILY.xattr.user.", n)] = strings.Repeat("v", 65000)
		second.PAXRecords[fmt.Sprint("SCHILY.xattr.user.more", n)] = strings.Repeat("v", 65000)
	}
	for _, headers := range [][]tar.Header{{value}, {device}, {first, second}} {
		if _, _, err := unpack(t, headers...); err == nil || !strings.Contains(err.Error(),
			"a thin image can't show it") {
			t.Errorf("%s: %.300v", headers[0].Name, err)
		}
	}
}

// File systems give the inode of a file that is gone to the next one, which may be a folder that no entry describes.
func TestAttributesOfFilesThatAreGoneAreNoFoldersOwn(t *testing.T) {
	headers := []tar.Header{entry(tar.TypeReg, "kept", "x", 0o644)}
	for n := range 20 {
		name := fmt.Sprint("gone", n)
		gone := entry(tar.TypeReg, name, "x", 0o644)
		gone.PAXRecords = map[string]string{"SCHILY.xattr.user.big": strings.Repeat("b", 300)}
		headers = append(headers, gone, entry(tar.TypeLink, name, "kept", 0o644),
			entry(tar.TypeReg, fmt.Sprintf("folder%d/file", n), "x", 0o644))
	}
	_, record, err := unpack(t, headers...)
	if err != nil || len(record.Xattrs) > 0 {
		t.Errorf("%v, attributes of %q", err, slices.Sorted(maps.Keys(record.Xattrs)))
	}
}
