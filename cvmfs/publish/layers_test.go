package publish

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
	"cvmfs-graphdriver/internal/layertar/layertartest"
)

// publishLayer publishes one archive at /layer.
func publishLayer(t testing.TB, o LayerOptions, archive []byte) (*Layer, map[string]seen) {
	t.Helper()
	r := newRepo(t, smallChunks(Settings{}))
	tx := begin(t, r)
	l, err := tx.Ingest(context.Background(), "/layer", bytes.NewReader(archive), o)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, tx)
	return l, readAll(t, reader(t, r), "/layer")
}

func xattr(i item, name, value string) item {
	if i.PAXRecords == nil {
		i.PAXRecords = map[string]string{}
	}
	i.PAXRecords["SCHILY.xattr."+name] = value
	return i
}

func symlink(name, to string) item {
	return item{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777, ModTime: at}, ""}
}

func TestHardLinksOfOneFolderAreAGroupAndOthersAreLeftOver(t *testing.T) {
	l, got := publishLayer(t, LayerOptions{}, pack(t,
		file644("a/one", "same"), hardLink("a/two", "a/one"), hardLink("a/three", "./a/two"),
		file644("b/here", "spread"), hardLink("b/beside", "b/here"), hardLink("c/there", "/b/here"),
		symlink("d/link", "nowhere"), hardLink("d/again", "d/link"),
		item{tar.Header{Typeflag: tar.TypeChar, Name: "e/null", Devmajor: 1, Devminor: 3, ModTime: at}, ""},
		hardLink("e/zero", "e/null"),
		file644("f/kept", "first"), hardLink("f/link", "f/kept"), file644("f/kept", "second"),
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
	second := folder755("merged/")
	second.Mode, second.Uid = 0o700, 5
	_, got := publishLayer(t, LayerOptions{}, pack(t,
		file644("file", "one"), file644("file", "two"),
		folder755("merged"), file644("merged/kept", "kept"), second,
		file644("was a folder/inside", ""), file644("was a folder", "now a file"),
		file644("was a file", ""), folder755("was a file/"), file644("was a file/inside", "in"),
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
	_, got := publishLayer(t, LayerOptions{}, pack(t,
		folder755("usr/lib/"), symlink("lib", "usr/lib"), file644("lib/libc.so", "c"), file644("lib/deep/er", "d"),
		symlink("up", "../../../usr"), file644("up/out", "o"),
		symlink("usr/abs", "/lib/deep"), file644("usr/abs/also", "a"), hardLink("usr/linked", "lib/libc.so"),
	))
	for _, path := range []string{"usr/lib/libc.so", "usr/lib/deep/er", "usr/out", "usr/lib/deep/also", "usr/linked"} {
		if _, ok := got[path]; !ok {
			t.Errorf("%s is missing", path)
		}
	}
}

func TestFoldersTheArchiveDoesNotMentionAreRootsAndAsOldAsWhatNeedsThem(t *testing.T) {
	i := file644("./a//b/c", "x")
	i.Uid = 7
	_, got := publishLayer(t, LayerOptions{}, pack(t, i))
	want := seen{Mode: 0o040755, Mtime: at.Unix(), MtimeN: int32(at.Nanosecond())}
	if got["a"] != want || got["a/b"] != want {
		t.Errorf("got %+v and %+v, want %+v", got["a"], got["a/b"], want)
	}
}

func TestRootsOwnAttributesAreLeftOver(t *testing.T) {
	root := xattr(item{tar.Header{
		Typeflag: tar.TypeDir, Name: "./", Mode: 0o1750, Uid: 3, Gid: 4,
		ModTime: time.Unix(99, 7),
	}, ""}, "user.r", "oot")
	l, got := publishLayer(t, LayerOptions{}, pack(t, root, file644("a", "")))
	want := Leftover{
		Root:   &Attributes{Mode: 0o1750, UID: 3, GID: 4, Mtime: 99, MtimeN: 7},
		Xattrs: map[string][]catalog.Xattr{"": {{Name: "user.r", Value: []byte("oot")}}},
	}
	if diff := cmp.Diff(want, l.Leftover); diff != "" {
		t.Errorf("leftover (-want +got):\n%s", diff)
	}
	if row := (seen{Mode: 0o040755, Mtime: 99, MtimeN: 7}); got[""] != row {
		t.Errorf("the root's row is %+v, want %+v", got[""], row)
	}
}

func TestAttributesThatDoNotFitAreLeftOverWhole(t *testing.T) {
	big := strings.Repeat("v", 256)
	many := file644("many", "")
	for i := range 300 {
		many = xattr(many, fmt.Sprintf("user.%03d", i), "v")
	}
	l, got := publishLayer(t, LayerOptions{}, pack(t,
		xattr(xattr(file644("big", ""), "user.big", big), "user.small", "s"), many,
		xattr(xattr(file644("overlay", ""), "trusted.overlay.opaque", "y"), "user.overlay.origin", "x"),
		xattr(file644("a/linked", ""), "user.big", big), hardLink("b/linked", "a/linked"),
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
	l, got := publishLayer(t, LayerOptions{}, pack(t,
		file644("a/.cvmfscatalog", "mine"), file644("a/b/.cvmfscatalog", ""), file644("c/.cvmfsautocatalog", ""),
		file644("d/x", ""), file644("a/b/file", "f"),
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
	var items []item
	for i := range 30 {
		for j := range 40 {
			items = append(items, file644(fmt.Sprintf("usr/d%02d/f%02d", i, j), fmt.Sprint(i, j)))
		}
	}
	for i := range 100 {
		items = append(items, file644(fmt.Sprintf("flat/f%03d", i), ""))
	}
	o := LayerOptions{most: 200, least: 20}
	l, got := publishLayer(t, o, pack(t, items...))
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
	again, _ := publishLayer(t, o, pack(t, items...))
	if diff := cmp.Diff(l, again); diff != "" {
		t.Errorf("the same archive once more (-first +second):\n%s", diff)
	}
}

// wide is a file with some extended attributes of the greatest size.
func wide(name string, attrs ...int) item {
	i := file644(name, "")
	for _, n := range attrs {
		i = xattr(i, fmt.Sprint("user.", n), strings.Repeat("v", 65_535))
	}
	return i
}

// hardLinkOf makes a hard link's entry of one that is a file's.
func hardLinkOf(i item, to string) item {
	i.Typeflag, i.Linkname = tar.TypeLink, to
	return i
}

func TestArchivesAtFaultAreRefused(t *testing.T) {
	whole := pack(t, file644("a", strings.Repeat("x", 3000)), file644("b", ""))
	raw := func(h tar.Header) []byte { return pack(t, item{Header: h}) }
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
		"a hard link to a folder":      pack(t, folder755("a"), hardLink("b", "a")),
		"a hard link to the root":      pack(t, hardLink("b", ".")),
		"a hard link to itself":        pack(t, file644("a", ""), hardLink("a", "./a")),
		"a hard link to later":         pack(t, hardLink("b", "a"), file644("a", "")),
		"below a file":                 pack(t, file644("a", ""), file644("a/b", "")),
		"below a loop":                 pack(t, symlink("a", "b"), symlink("b", "a"), file644("a/c", "")),
		"an attribute that is too big": pack(t, xattr(file644("a", ""), "user.a", strings.Repeat("v", 65_536))),
		"attributes that are too big":  pack(t, wide("a", 1, 2, 3, 4)),
		"too big when merged":          pack(t, wide("a", 1, 2), hardLinkOf(wide("b", 3, 4), "a")),
		"a device that is too big":     raw(tar.Header{Typeflag: tar.TypeChar, Name: "a", Devmajor: 4096}),
		"an attribute's long name":     pack(t, xattr(file644("a", ""), strings.Repeat("n", 256), "v")),
		"an unknown type":              raw(tar.Header{Typeflag: 'V', Name: "a"}),
		"too many entries":             pack(t, file644("1", ""), file644("2", ""), file644("3", ""), file644("4", "")),
		"too many bytes": pack(t, file644("1", strings.Repeat("x", 6000)),
			file644("2", strings.Repeat("x", 6000))),
	} {
		t.Run(what, func(t *testing.T) {
			r := newRepo(t, smallChunks(Settings{}))
			tx := begin(t, r)
			_, err := tx.Ingest(context.Background(), "/layer", bytes.NewReader(archive),
				LayerOptions{MaxEntries: 3, MaxBytes: 10_000})
			if !errors.Is(err, ErrArchive) {
				t.Fatalf("got %v, want ErrArchive", err)
			}
			if s := commit(t, tx); s.Changed {
				t.Error("something of it was published")
			}
		})
	}
}

func TestIngestTakesWhatEnginesTake(t *testing.T) {
	layertartest.Run(t, true, func(t *testing.T, archive []byte) ([]string, error) {
		r := newRepo(t, smallChunks(Settings{}))
		tx := begin(t, r)
		if _, err := tx.Ingest(context.Background(), "/layer", bytes.NewReader(archive), LayerOptions{}); err != nil {
			if s := commit(t, tx); s.Changed {
				t.Error("something of it was published")
			}
			return nil, err
		}
		commit(t, tx)
		tree := []string{}
		for path, s := range readAll(t, reader(t, r), "/layer") {
			f := layertartest.File{
				Path: path, Mode: s.Mode, UID: s.UID, GID: s.GID, Mtime: s.Mtime, Size: s.Size, Rdev: s.Rdev,
				Target: s.Target,
			}
			if s.Xattrs != "" {
				f.Xattrs = []string{strings.TrimSpace(strings.ReplaceAll(s.Xattrs, `"`, ""))}
			}
			if path != "" && path != catalogMarker {
				tree = append(tree, f.Line())
			}
		}
		return tree, nil
	})
}

func TestWhatNoFileCanHaveIsLeftOutWithANote(t *testing.T) {
	owner := file644("a", "")
	owner.Uid = 1 << 33
	l, got := publishLayer(t, LayerOptions{}, pack(t, owner, xattr(symlink("l", "a"), "user.x", "1"),
		symlink(".", "a")))
	if l.Stats.LeftOut != 3 || len(l.Notes) != 3 || got["a"].UID != 0 || got["l"].Xattrs != "" {
		t.Errorf("%+v, %v", l, got)
	}
}

func TestPathThatEscapesByLinksGrowsNoLongerThanAPath(t *testing.T) {
	// Each entry leads through a link to the end of the tree so far, and goes on from there.
	items := []item{folder755("0")}
	path, name := "0", strings.Repeat("n", 200)
	for i := range 40 {
		items = append(items, symlink(fmt.Sprintf("l%d", i), path), folder755(fmt.Sprintf("l%d/%s/", i, name)))
		if path += "/" + name; len(path) > 4000 {
			path = fmt.Sprintf("l%d/%s", i, name)
		}
	}
	r := newRepo(t, smallChunks(Settings{}))
	tx := begin(t, r)
	_, err := tx.Ingest(context.Background(), "/layer", bytes.NewReader(pack(t, items...)), LayerOptions{})
	if !errors.Is(err, ErrArchive) || !strings.Contains(err.Error(), "4095") {
		t.Errorf("got %v, want ErrArchive that names the limit", err)
	}
}

func TestBytesBehindTheEndMarkerAreReadAndIgnored(t *testing.T) {
	archive := append(pack(t, file644("a", "x")), bytes.Repeat([]byte("garbage"), 10_000)...)
	r := newRepo(t, smallChunks(Settings{}))
	tx := begin(t, r)
	rest := bytes.NewReader(archive)
	if _, err := tx.Ingest(context.Background(), "/layer", rest, LayerOptions{}); err != nil {
		t.Fatal(err)
	}
	if rest.Len() > 0 {
		t.Errorf("%d bytes were not read", rest.Len())
	}
}

func TestLayerIsNotPutOverWhatIsThere(t *testing.T) {
	r := newRepo(t, smallChunks(Settings{}))
	tx := begin(t, r)
	ingest(t, tx, "/layers/one", pack(t, file644("a", "x")))
	for _, path := range []string{"/layers/one", "/layers", "/layers/one/a"} {
		if _, err := tx.Ingest(context.Background(), path, bytes.NewReader(pack(t)), LayerOptions{}); !errors.Is(err,
			fs.ErrExist) {
			t.Errorf("%s: got %v, want fs.ErrExist", path, err)
		}
	}
}

func FuzzIngest(f *testing.F) {
	var small []item // large inputs take the engine a minute each to make smaller
	for _, i := range everything() {
		if len(i.content) < 5000 {
			small = append(small, i)
		}
	}
	f.Add(pack(f, small...))
	f.Add(pack(f, file644("a/one", "same"), hardLink("a/two", "a/one"), symlink("l", "a"), file644("l/x", "y")))
	f.Add(pack(f, file644("a/.cvmfscatalog", ""), folder755("./"),
		xattr(file644("x", ""), "user.a", strings.Repeat("v", 300))))
	f.Add(pack(f)[:600])
	tx := begin(f, newRepo(f, smallChunks(Settings{Compression: "none"})))
	n := 0
	f.Fuzz(func(t *testing.T, archive []byte) {
		n++
		path := fmt.Sprintf("/layer%d", n)
		l, err := tx.Ingest(context.Background(), path, bytes.NewReader(archive),
			LayerOptions{MaxEntries: 1000, MaxBytes: 1 << 20, most: 10, least: 2})
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
