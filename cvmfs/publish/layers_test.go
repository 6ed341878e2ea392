package publish_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	. "cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/internal/layertar/layertartest"
	. "cvmfs-graphdriver/test/publishtest"
)

// publishLayer publishes one archive at /layer.
func publishLayer(t testing.TB, o LayerOptions, archive []byte) (*Layer, map[string]Seen) {
	t.Helper()
	r := New(t, Small(Settings{}))
	tx := Begin(t, r)
	l, err := tx.Ingest(context.Background(), "/layer", bytes.NewReader(archive), o)
	if err != nil {
		t.Fatal(err)
	}
	Commit(t, tx)
	return l, ReadAll(t, Newest(t, r), "/layer")
}

func xattr(i Item, name, value string) Item {
	if i.PAXRecords == nil {
		i.PAXRecords = map[string]string{}
	}
	i.PAXRecords["SCHILY.xattr."+name] = value
	return i
}

func symlink(name, to string) Item {
	return Entry(
		tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777, ModTime: At},
		"",
	)
}

func TestHardLinksOfOneFolderAreAGroupAndOthersAreLeftOver(t *testing.T) {
	l, got := publishLayer(t, LayerOptions{}, Pack(
		t,
		File(
			"a/one",
			"same",
		),
		HardLink("a/two", "a/one"),
		HardLink("a/three", "./a/two"),
		File(
			"b/here",
			"spread",
		),
		HardLink("b/beside", "b/here"),
		HardLink("c/there", "/b/here"),
		symlink("d/link", "nowhere"),
		HardLink("d/again", "d/link"),
		Entry(
			tar.Header{Typeflag: tar.TypeChar, Name: "e/null", Devmajor: 1, Devminor: 3, ModTime: At},
			"",
		),
		HardLink("e/zero", "e/null"),
		File(
			"f/kept",
			"first",
		),
		HardLink("f/link", "f/kept"),
		File("f/kept", "second"),
	))
	if diff := cmp.Diff([][]string{{"b/beside", "b/here", "c/there"}}, l.Leftover.Links); diff != "" {
		t.Errorf("leftover (-want +got):\n%s", diff)
	}
	content := func(s string) string { return hash.SHA1.Digest([]byte(s)).Hex() }
	for path, want := range map[string]struct {
		nlink   uint32
		content string
	}{
		"a/one": {3, content("same")}, "a/two": {3, content("same")}, "a/three": {3, content("same")},
		"b/here": {1, content("spread")}, "b/beside": {1, content("spread")}, "c/there": {1, content("spread")},
		"d/link": {2, ""}, "d/again": {2, ""}, "e/null": {2, ""}, "e/zero": {2, ""},
		"f/kept": {1, content("second")}, "f/link": {1, content("first")},
	} {
		if got[path].Nlink != want.nlink || got[path].Content != want.content {
			t.Errorf("%s: %+v, want %+v", path, got[path], want)
		}
	}
	if got["e/zero"].Rdev != 0x103 || got["d/again"].Target != "nowhere" {
		t.Errorf("links to others: %+v, %+v", got["e/zero"], got["d/again"])
	}
}

func TestLaterEntriesReplaceEarlierOnes(t *testing.T) {
	second := Folder("merged/")
	second.Mode, second.Uid = 0o700, 5
	_, got := publishLayer(t, LayerOptions{}, Pack(
		t,
		File("file", "one"),
		File("file", "two"),
		Folder("merged"),
		File("merged/kept", "kept"),
		second,
		File("was a folder/inside", ""),
		File("was a folder", "now a file"),
		File(
			"was a file",
			"",
		),
		Folder("was a file/"),
		File("was a file/inside", "in"),
	))
	if got["file"].Content != hash.SHA1.Digest([]byte("two")).Hex() {
		t.Errorf("file: %+v", got["file"])
	}
	if m := got["merged"]; m.Mode != 0o040700 || m.UID != 5 || got["merged/kept"].Size != 4 {
		t.Errorf("merged folder: %+v, in it: %+v", m, got["merged/kept"])
	}
	if _, there := got["was a folder/inside"]; there || got["was a folder"].Size != 10 ||
		got["was a file/inside"].Size != 2 {
		t.Errorf("changed types: %v", got)
	}
}

func TestPathsLeadThroughLinksOfTheArchive(t *testing.T) {
	_, got := publishLayer(t, LayerOptions{}, Pack(
		t,
		Folder(
			"usr/lib/",
		),
		symlink("lib", "usr/lib"),
		File("lib/libc.so", "c"),
		File("lib/deep/er", "d"),
		symlink("up", "../../../usr"),
		File("up/out", "o"),
		symlink(
			"usr/abs",
			"/lib/deep",
		),
		File("usr/abs/also", "a"),
		HardLink("usr/linked", "lib/libc.so"),
	))
	for _, path := range []string{"usr/lib/libc.so", "usr/lib/deep/er", "usr/out", "usr/lib/deep/also", "usr/linked"} {
		if _, ok := got[path]; !ok {
			t.Errorf("%s is missing", path)
		}
	}
}

func TestFoldersTheArchiveDoesNotMentionAreRootsAndAsOldAsWhatNeedsThem(t *testing.T) {
	i := File("./a//b/c", "x")
	i.Uid = 7
	_, got := publishLayer(t, LayerOptions{}, Pack(t, i))
	want := Seen{Mode: 0o040755, Mtime: At.Unix(), MtimeN: int32(At.Nanosecond())}
	if got["a"] != want || got["a/b"] != want {
		t.Errorf("got %+v and %+v, want %+v", got["a"], got["a/b"], want)
	}
}

func TestRootsOwnAttributesAreLeftOver(t *testing.T) {
	root := xattr(Entry(tar.Header{
		Typeflag: tar.TypeDir, Name: "./", Mode: 0o1750, Uid: 3, Gid: 4,
		ModTime: time.Unix(99, 7),
	}, ""), "user.r", "oot")
	l, got := publishLayer(t, LayerOptions{}, Pack(t, root, File("a", "")))
	want := Leftover{
		Root:   &Attributes{Mode: 0o1750, UID: 3, GID: 4, Mtime: 99, MtimeN: 7},
		Xattrs: map[string][]catalog.Xattr{"": {{Name: "user.r", Value: []byte("oot")}}},
	}
	if diff := cmp.Diff(want, l.Leftover); diff != "" {
		t.Errorf("leftover (-want +got):\n%s", diff)
	}
	if row := (Seen{Mode: 0o040755, Mtime: 99, MtimeN: 7}); got[""] != row {
		t.Errorf("the root's row is %+v, want %+v", got[""], row)
	}
}

func TestAttributesThatDoNotFitAreLeftOverWhole(t *testing.T) {
	big := strings.Repeat("v", 256)
	many := File("many", "")
	for i := range 300 {
		many = xattr(many, fmt.Sprintf("user.%03d", i), "v")
	}
	l, got := publishLayer(t, LayerOptions{}, Pack(t,
		xattr(xattr(File("big", ""), "user.big", big), "user.small", "s"), many,
		xattr(xattr(File("overlay", ""), "trusted.overlay.opaque", "y"), "user.overlay.origin", "x"),
		xattr(File("a/linked", ""), "user.big", big), HardLink("b/linked", "a/linked"),
	))
	if got["big"].Xattrs != `"user.small"="s" ` || strings.Count(got["many"].Xattrs, "=") != 255 ||
		got["overlay"].Xattrs != "" {
		t.Errorf("rows: %q, %q, %q", got["big"].Xattrs, got["many"].Xattrs, got["overlay"].Xattrs)
	}
	whole := []catalog.Xattr{{Name: "user.big", Value: []byte(big)}, {Name: "user.small", Value: []byte("s")}}
	if diff := cmp.Diff(whole, l.Leftover.Xattrs["big"]); diff != "" {
		t.Errorf("leftover (-want +got):\n%s", diff)
	}
	if len(l.Leftover.Xattrs["many"]) != 300 || len(l.Leftover.Xattrs["a/linked"]) != 1 ||
		len(l.Leftover.Xattrs["b/linked"]) != 1 ||
		len(l.Leftover.Xattrs) != 4 {
		t.Errorf("leftover: %v", l.Leftover.Xattrs)
	}
}

func TestMarkersOfTheArchiveMakeMountsAndAreLeftOver(t *testing.T) {
	l, got := publishLayer(t, LayerOptions{}, Pack(
		t,
		File(
			"a/.cvmfscatalog",
			"mine",
		),
		File("a/b/.cvmfscatalog", ""),
		File("c/.cvmfsautocatalog", ""),
		File("d/x", ""),
		File("a/b/file", "f"),
	))
	if diff := cmp.Diff([]string{"a/.cvmfscatalog", "a/b/.cvmfscatalog", "c/.cvmfsautocatalog"},
		l.Leftover.Markers); diff != "" {
		t.Errorf("markers (-want +got):\n%s", diff)
	}
	if l.Stats.Catalogs != 3 || got["a/.cvmfscatalog"].Size != 4 || got["a/b/file"].Size != 1 {
		t.Errorf("%d catalogs, %v", l.Stats.Catalogs, got)
	}
}

func TestLargeLayersAreSplitAtFolders(t *testing.T) {
	var items []Item
	for i := range 30 {
		for j := range 40 {
			items = append(items, File(fmt.Sprintf("usr/d%02d/f%02d", i, j), fmt.Sprint(i, j)))
		}
	}
	for i := range 100 {
		items = append(items, File(fmt.Sprintf("flat/f%03d", i), ""))
	}
	o := LayerOptions{MostRows: 200, LeastRows: 20}
	l, got := publishLayer(t, o, Pack(t, items...))
	if l.Stats.Catalogs < 1300/200 || l.Stats.Catalogs > 35 {
		t.Errorf("%d catalogs", l.Stats.Catalogs)
	}
	if l.Leftover.Markers != nil {
		t.Errorf("the publisher's own markers are left over: %q", l.Leftover.Markers)
	}
	for _, i := range items {
		if _, ok := got[i.Name]; !ok {
			t.Fatalf("%s is missing", i.Name)
		}
	}
	again, _ := publishLayer(t, o, Pack(t, items...))
	if diff := cmp.Diff(l, again); diff != "" {
		t.Errorf("the same archive once more (-first +second):\n%s", diff)
	}
}

// wide is a file with some extended attributes of the greatest size.
func wide(name string, attrs ...int) Item {
	i := File(name, "")
	for _, n := range attrs {
		i = xattr(i, fmt.Sprint("user.", n), strings.Repeat("v", 65_535))
	}
	return i
}

// hardLinkOf makes a hard link's entry of one that is a file's.
func hardLinkOf(i Item, to string) Item {
	i.Typeflag, i.Linkname = tar.TypeLink, to
	return i
}

func TestArchivesAtFaultAreRefused(t *testing.T) {
	whole := Pack(t, File("a", strings.Repeat("x", 3000)), File("b", ""))
	raw := func(h tar.Header) []byte { return Pack(t, Item{Header: h}) }
	for what, archive := range map[string][]byte{
		"cut off in content":      whole[:2048],
		"cut off in a header":     whole[:1536+3072+100],
		"no archive":              bytes.Repeat([]byte("not a tar "), 1000),
		"a name that is too long": raw(tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("n", 256)}),
		"a path that is too long": raw(tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("name/", 900)}),
		"a target that is too long": raw(tar.Header{
			Typeflag: tar.TypeSymlink, Name: "a",
			Linkname: strings.Repeat("t", 4096),
		}),
		"a link to nothing":            raw(tar.Header{Typeflag: tar.TypeSymlink, Name: "a"}),
		"a hard link to nothing":       raw(tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "b"}),
		"a hard link to a folder":      Pack(t, Folder("a"), HardLink("b", "a")),
		"a hard link to the root":      Pack(t, HardLink("b", ".")),
		"a hard link to itself":        Pack(t, File("a", ""), HardLink("a", "./a")),
		"a hard link to later":         Pack(t, HardLink("b", "a"), File("a", "")),
		"below a file":                 Pack(t, File("a", ""), File("a/b", "")),
		"below a loop":                 Pack(t, symlink("a", "b"), symlink("b", "a"), File("a/c", "")),
		"an attribute that is too big": Pack(t, xattr(File("a", ""), "user.a", strings.Repeat("v", 65_536))),
		"attributes that are too big":  Pack(t, wide("a", 1, 2, 3, 4)),
		"too big when merged":          Pack(t, wide("a", 1, 2), hardLinkOf(wide("b", 3, 4), "a")),
		"a device that is too big":     raw(tar.Header{Typeflag: tar.TypeChar, Name: "a", Devmajor: 4096}),
		"an attribute's long name":     Pack(t, xattr(File("a", ""), strings.Repeat("n", 256), "v")),
		"an unknown type":              raw(tar.Header{Typeflag: 'V', Name: "a"}),
		"too many entries":             Pack(t, File("1", ""), File("2", ""), File("3", ""), File("4", "")),
		"too many bytes": Pack(t, File("1", strings.Repeat("x", 6000)),
			File("2", strings.Repeat("x", 6000))),
	} {
		t.Run(what, func(t *testing.T) {
			r := New(t, Small(Settings{}))
			tx := Begin(t, r)
			_, err := tx.Ingest(context.Background(), "/layer", bytes.NewReader(archive),
				LayerOptions{MaxEntries: 3, MaxBytes: 10_000})
			if !errors.Is(err, ErrArchive) {
				t.Fatalf("got %v, want ErrArchive", err)
			}
			if s := Commit(t, tx); s.Changed {
				t.Error("something of it was published")
			}
		})
	}
}

func TestIngestTakesWhatEnginesTake(t *testing.T) {
	r, cases := New(t, Small(Settings{})), 0
	layertartest.Run(t, true, func(t *testing.T, archive []byte) ([]string, error) {
		cases++
		layer := fmt.Sprintf("/layer%d", cases)
		tx := Begin(t, r)
		if _, err := tx.Ingest(context.Background(), layer, bytes.NewReader(archive), LayerOptions{}); err != nil {
			if s := Commit(t, tx); s.Changed {
				t.Error("something of it was published")
			}
			return nil, err
		}
		Commit(t, tx)
		tree := []string{}
		for path, s := range ReadAll(t, Newest(t, r), layer) {
			f := layertartest.File{
				Path: path, Mode: s.Mode, UID: s.UID, GID: s.GID, Mtime: s.Mtime, Size: s.Size, Rdev: s.Rdev,
				Target: s.Target,
			}
			if s.Xattrs != "" {
				f.Xattrs = []string{strings.TrimSpace(strings.ReplaceAll(s.Xattrs, `"`, ""))}
			}
			if path != "" && path != catalog.Marker {
				tree = append(tree, f.Line())
			}
		}
		return tree, nil
	})
}

func TestWhatNoFileCanHaveIsLeftOutWithANote(t *testing.T) {
	owner := File("a", "")
	owner.Uid = 1 << 33
	l, got := publishLayer(t, LayerOptions{}, Pack(t, owner, xattr(symlink("l", "a"), "user.x", "1"),
		symlink(".", "a")))
	if l.Stats.LeftOut != 3 || len(l.Notes) != 3 || got["a"].UID != 0 || got["l"].Xattrs != "" {
		t.Errorf("%+v, %v", l, got)
	}
}

func TestPathThatEscapesByLinksGrowsNoLongerThanAPath(t *testing.T) {
	// Each entry leads through a link to the end of the tree so far, and goes on from there.
	items := []Item{Folder("0")}
	path, name := "0", strings.Repeat("n", 200)
	for i := range 40 {
		items = append(items, symlink(fmt.Sprintf("l%d", i), path), Folder(fmt.Sprintf("l%d/%s/", i, name)))
		if path += "/" + name; len(path) > 4000 {
			path = fmt.Sprintf("l%d/%s", i, name)
		}
	}
	r := New(t, Small(Settings{}))
	tx := Begin(t, r)
	_, err := tx.Ingest(context.Background(), "/layer", bytes.NewReader(Pack(t, items...)), LayerOptions{})
	if !errors.Is(err, ErrArchive) || !strings.Contains(err.Error(), "4095") {
		t.Errorf("got %v, want ErrArchive that names the limit", err)
	}
}

func TestBytesBehindTheEndMarkerAreReadAndIgnored(t *testing.T) {
	archive := append(Pack(t, File("a", "x")), bytes.Repeat([]byte("garbage"), 10_000)...)
	r := New(t, Small(Settings{}))
	tx := Begin(t, r)
	rest := bytes.NewReader(archive)
	if _, err := tx.Ingest(context.Background(), "/layer", rest, LayerOptions{}); err != nil {
		t.Fatal(err)
	}
	if rest.Len() > 0 {
		t.Errorf("%d bytes were not read", rest.Len())
	}
}

func TestLayerIsNotPutOverWhatIsThere(t *testing.T) {
	r := New(t, Small(Settings{}))
	tx := Begin(t, r)
	Ingest(t, tx, "/layers/one", Pack(t, File("a", "x")))
	for _, path := range []string{"/layers/one", "/layers", "/layers/one/a"} {
		if _, err := tx.Ingest(context.Background(), path, bytes.NewReader(Pack(t)), LayerOptions{}); !errors.Is(
			err,
			fs.ErrExist,
		) {
			t.Errorf("%s: got %v, want fs.ErrExist", path, err)
		}
	}
}

func FuzzIngest(f *testing.F) {
	var small []Item // large inputs take the engine a minute each to make smaller
	for _, i := range Everything() {
		if len(i.Content) < 5000 {
			small = append(small, i)
		}
	}
	f.Add(Pack(f, small...))
	f.Add(
		Pack(
			f,
			File("a/one", "same"),
			HardLink("a/two", "a/one"),
			symlink("l", "a"),
			File("l/x", "y"),
		),
	)
	f.Add(Pack(f, File("a/.cvmfscatalog", ""), Folder("./"),
		xattr(File("x", ""), "user.a", strings.Repeat("v", 300))))
	f.Add(Pack(f)[:600])
	tx := Begin(f, New(f, Small(Settings{Compression: "none"})))
	n := 0
	f.Fuzz(func(t *testing.T, archive []byte) {
		n++
		path := fmt.Sprintf("/layer%d", n)
		l, err := tx.Ingest(context.Background(), path, bytes.NewReader(archive),
			LayerOptions{MaxEntries: 1000, MaxBytes: 1 << 20, MostRows: 10, LeastRows: 2})
		if err != nil {
			if has, hasErr := tx.Has(context.Background(), path); has || hasErr != nil {
				t.Errorf("refused (%v), but there: %v, %v", err, has, hasErr)
			}
			return
		}
		if l.Stats.Files > l.Stats.Entries {
			t.Errorf("%+v", l.Stats)
		}
		if has, err := tx.Has(context.Background(), path+"/"+"x"); err != nil {
			t.Errorf("read back: %v, %v", has, err)
		}
		if err := tx.Remove(context.Background(), path); err != nil {
			t.Error(err)
		}
	})
}
