package catalog

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/hash"
)

func digestOf(s string) hash.Digest { return hash.SHAKE128.Digest([]byte(s)) }

// kinds is a nested catalog with a row of each kind. The sizes, flags and link counts are what readers must see.
var kinds = map[string]*Entry{
	"/sw": {
		Name: "sw", Mode: 0o040755, UID: 1, GID: 2, Size: 4096, Mtime: -7, MtimeN: 999_999_999, Nlink: 3,
		Flags: NestedRoot,
	},
	"/sw/empty": {
		Name: "empty", Mode: 0o104755, Mtime: 1, Nlink: 1, Digest: digestOf("x"), Compression: hash.None,
		Xattrs: []Xattr{{"security.capability", []byte("\x01\x00")}, {"user.a", []byte{}}},
	},
	"/sw/big": {Name: "big", Mode: 0o100644, Size: 30, Nlink: 1, Chunks: []Chunk{
		{0, 10, digestOf("a")}, {10, 15, digestOf("b")}, {25, 5, digestOf("c")},
	}},
	"/sw/one":      {Name: "one", Mode: 0o100644, Size: 3, Nlink: 2, Group: 1, Digest: digestOf("y")},
	"/sw/two":      {Name: "two", Mode: 0o100644, Size: 3, Nlink: 2, Group: 1, Digest: digestOf("y")},
	"/sw/\xff\xfe": {Name: "\xff\xfe", Mode: 0o120777, Size: 3, Nlink: 1, Target: "\xffto"},
	"/sw/null":     {Name: "null", Mode: 0o020666, Rdev: 0x103, Nlink: 1},
	"/sw/disk":     {Name: "disk", Mode: 0o060660, Rdev: 1<<44 | 5, Nlink: 1},
	"/sw/pipe":     {Name: "pipe", Mode: 0o010600, Nlink: 1},
	"/sw/.hidden":  {Name: ".hidden", Mode: 0o100600, Nlink: 1, Digest: digestOf("z"), Flags: Hidden},
	"/sw/deeper":   {Name: "deeper", Mode: 0o040700, Size: 4096, Nlink: 2, Flags: Mountpoint},
}

// typeFlags are what rowFlags adds; readers go by the mode.
const typeFlags = flagDir | flagFile | flagLink | flagSpecial | 7<<algorithmAt | 7<<compressAt

func writeKinds(t testing.TB, path string) Statistics {
	t.Helper()
	w, err := Create(path, Properties{
		RootPrefix: "/sw", Revision: 9, LastModified: time.Unix(1_800_000_000, 0), Previous: digestOf("before"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"/sw", "/sw/empty", "/sw/big", "/sw/one", "/sw/two", "/sw/\xff\xfe", "/sw/null", "/sw/disk", "/sw/pipe",
		"/sw/.hidden",
		"/sw/deeper",
	} {
		if err := w.Add(name, kinds[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.AddNested(Nested{Path: "/sw/deeper", Digest: digestOf("deeper"), Size: 77}); err != nil {
		t.Fatal(err)
	}
	s, err := w.Finish(Counters{Regular: 5, Dir: 1})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWrittenCatalogReadsAsItWasMeant(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog")
	wrote := writeKinds(t, path)
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.RootPrefix() != "/sw" || c.Revision() != 9 {
		t.Errorf("root prefix %q, revision %d", c.RootPrefix(), c.Revision())
	}
	for name, want := range kinds {
		got, err := c.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		want := *want
		if len(want.Chunks) > 0 {
			want.Flags |= Chunked
		}
		got.Flags &^= typeFlags
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", name, diff)
		}
	}
	nested, err := c.Nested()
	if diff := cmp.Diff([]Nested{{"/sw/deeper", digestOf("deeper"), 77}}, nested); err != nil || diff != "" {
		t.Errorf("nested: %v, (-want +got):\n%s", err, diff)
	}
	read, err := c.Statistics()
	want := Statistics{
		Self: Counters{
			Regular: 5, Symlink: 1, Special: 3, Dir: 2, Nested: 1, Chunked: 1, Chunks: 3, FileSize: 36,
			ChunkedSize: 30, Xattr: 1,
		},
		Subtree: Counters{Regular: 5, Dir: 1},
	}
	if diff := cmp.Diff(want, read); err != nil || diff != "" || wrote != want {
		t.Errorf("statistics: %v, written %+v, (-want +got):\n%s", err, wrote, diff)
	}
}

// TestWrittenCatalogIsOfRevision7 goes past our own reader: the schema, the properties and what the flags are to
// others.
func TestWrittenCatalogIsOfRevision7(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog")
	writeKinds(t, path)
	db := openRaw(t, path)
	for query, want := range map[string]string{
		"SELECT group_concat(key || '=' || value) FROM (SELECT * FROM properties ORDER BY key)": "last_modified=1800000000,previous_revision=" +
			digestOf("before").String() + ",revision=9,root_prefix=/sw,schema=2.5,schema_revision=7",
		"SELECT count(*) FROM statistics": "24",
		"SELECT group_concat(name) FROM (SELECT name FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name)": "bind_mountpoints,catalog,chunks," +
			"idx_catalog_parent,nested_catalogs,properties,statistics",
		"SELECT group_concat(name) FROM pragma_table_info('catalog')": "md5path_1,md5path_2,parent_1,parent_2,hardlinks,hash,size,mode,mtime," +
			"mtimens,flags,name,symlink,uid,gid,xattr",
		"SELECT group_concat(DISTINCT typeof(name) || typeof(symlink) || typeof(mtimens)) FROM catalog": "texttextinteger",
		"SELECT flags FROM catalog WHERE name = 'sw'":                                                   "33",
		"SELECT flags FROM catalog WHERE name = 'deeper'":                                               "3",
		// Appendix A of the format's description
		"SELECT flags || ' ' || (hash IS NULL) FROM catalog WHERE name = 'big'":                               "580 1",
		"SELECT flags || ' ' || length(hash) || ' ' || hex(xattr) FROM catalog WHERE name = 'empty'":          "2564 20 01021302" + "73656375726974792E6361706162696C6974790100" + "0600" + "757365722E61",
		"SELECT flags || ' ' || size FROM catalog WHERE mode = 41471":                                         "12 3",
		"SELECT flags || ' ' || size || ' ' || (hash IS NULL) FROM catalog WHERE name = 'null'":               "20 259 1",
		"SELECT hardlinks FROM catalog WHERE name = 'one'":                                                    "4294967298",
		"SELECT parent_1 = (SELECT md5path_1 FROM catalog WHERE name = 'sw') FROM catalog WHERE name = 'one'": "1",
		"PRAGMA integrity_check": "ok",
		"PRAGMA freelist_count":  "0",
	} {
		var got string
		if err := db.QueryRow(query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", query, got, err, want)
		}
	}
}

func openRaw(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestSameRowsGiveTheSameBytes(t *testing.T) {
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	writeKinds(t, one)
	writeKinds(t, two)
	a, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(two)
	if err != nil {
		t.Fatal(err)
	}
	if string(a) != string(b) {
		t.Error("two catalogs of the same rows differ")
	}
}

func TestRowsThatReadersRefuseAreNotWritten(t *testing.T) {
	file := hash.SHA1.Digest(nil)
	for what, e := range map[string]*Entry{
		"no link":                 {Name: "a", Mode: 0o100644, Digest: file},
		"links without a group":   {Name: "a", Mode: 0o100644, Digest: file, Nlink: 2},
		"a folder in a group":     {Name: "a", Mode: 0o040755, Nlink: 2, Group: 1},
		"a folder with content":   {Name: "a", Mode: 0o040755, Nlink: 2, Digest: file},
		"a file without":          {Name: "a", Mode: 0o100644, Nlink: 1},
		"a file with a target":    {Name: "a", Mode: 0o100644, Nlink: 1, Digest: file, Target: "b"},
		"a link to nothing":       {Name: "a", Mode: 0o120777, Nlink: 1},
		"a link that is too long": {Name: "a", Mode: 0o120777, Nlink: 1, Target: strings.Repeat("x", 4096)},
		"a file as a mount":       {Name: "a", Mode: 0o100644, Nlink: 1, Digest: file, Flags: Mountpoint},
		"a name with a slash":     {Name: "a/b", Mode: 0o040755, Nlink: 2},
		"a name with a NUL":       {Name: "a\x00", Mode: 0o040755, Nlink: 2},
		"no name":                 {Mode: 0o040755, Nlink: 2},
		"a long name":             {Name: strings.Repeat("a", 256), Mode: 0o040755, Nlink: 2},
		"a gap between chunks": {
			Name: "a", Mode: 0o100644, Nlink: 1, Size: 3,
			Chunks: []Chunk{{0, 1, file}, {2, 1, file}},
		},
		"chunks that are too few":  {Name: "a", Mode: 0o100644, Nlink: 1, Size: 3, Chunks: []Chunk{{0, 1, file}}},
		"nanoseconds of a second":  {Name: "a", Mode: 0o010644, Nlink: 1, MtimeN: 1_000_000_000},
		"unsorted attributes":      {Name: "a", Mode: 0o010644, Nlink: 1, Xattrs: []Xattr{{"b", nil}, {"a", nil}}},
		"an attribute without end": {Name: "a", Mode: 0o010644, Nlink: 1, Xattrs: []Xattr{{"b", make([]byte, 256)}}},
		"too many attributes":      {Name: "a", Mode: 0o010644, Nlink: 1, Xattrs: make([]Xattr, 256)},
	} {
		path := filepath.Join(t.TempDir(), "catalog")
		w, err := Create(path, Properties{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.AddHashed(hash.OfPath("/a"), hash.OfPath(""), e); err == nil {
			t.Errorf("%s: was written", what)
		}
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the file is still there: %v", what, err)
		}
	}
}

func TestRowIsNotWrittenTwice(t *testing.T) {
	w, err := Create(filepath.Join(t.TempDir(), "catalog"), Properties{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	e := &Entry{Name: "a", Mode: 0o010644, Nlink: 1}
	if err := w.Add("/a", e); err != nil {
		t.Fatal(err)
	}
	if err := w.Add("/a", e); err == nil {
		t.Error("a second row for the same path was written")
	}
	if err := w.Add("/b", e); err == nil {
		t.Error("a row was written whose path has another name")
	}
}

func TestCatalogIsNotWrittenOverAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog")
	writeKinds(t, path)
	if _, err := Create(path, Properties{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want fs.ErrExist", err)
	}
	if _, err := Open(path); err != nil {
		t.Errorf("what was there: %v", err)
	}
}

func TestNegativeCountersAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog")
	w, err := Create(path, Properties{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(Counters{}.Sub(Counters{Dir: 1})); err == nil ||
		!strings.Contains(err.Error(), "subtree_dir") {
		t.Errorf("got %v, want subtree_dir to be named", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

// BenchmarkWrite writes catalogs of 100,000 files and reports the time a row takes.
func BenchmarkWrite(b *testing.B) {
	const n = 100_000
	entry := Entry{Mode: 0o100644, Nlink: 1, Size: 1234, Mtime: 1_700_000_000, Digest: hash.SHA1.Digest(nil)}
	b.ReportAllocs()
	dir := b.TempDir()
	var size int64
	for b.Loop() {
		path := filepath.Join(dir, "catalog")
		w, err := Create(path, Properties{})
		if err != nil {
			b.Fatal(err)
		}
		for i := range n {
			entry.Name = fmt.Sprintf("file%06d", i)
			if err := w.Add(fmt.Sprintf("/usr/share/dir%03d/%s", i/100, entry.Name), &entry); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := w.Finish(Counters{}); err != nil {
			b.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		size = info.Size()
		os.Remove(path)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/row")
	b.ReportMetric(float64(size)/n, "file-B/row")
}

func FuzzXattrsThatFitComeBack(f *testing.F) {
	f.Add("user.a", []byte("xyz"), "user.b", []byte{})
	f.Fuzz(func(t *testing.T, n1 string, v1 []byte, n2 string, v2 []byte) {
		want := []Xattr{{n1, v1}, {n2, v2}}
		b, err := FormatXattrs(want)
		if err != nil {
			if want[0].Fits() && want[1].Fits() && n1 < n2 {
				t.Fatal(err)
			}
			return
		}
		got, err := ParseXattrs(b)
		if err != nil || len(got) != 2 || got[0].Name != n1 || string(got[1].Value) != string(v2) {
			t.Errorf("wrote %q, read %q, %v", want, got, err)
		}
	})
}

func TestStatisticsOfOlderCatalogsAreRead(t *testing.T) {
	path := build(t, schema0+"CREATE TABLE statistics (counter TEXT, value INTEGER);", func(s *script) {
		s.exec("INSERT INTO statistics VALUES ('self_regular', 6), ('subtree_dir', 12), ('self_future', 1)")
	})
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := c.Statistics()
	if want := (Statistics{Self: Counters{Regular: 6}, Subtree: Counters{Dir: 12}}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}
