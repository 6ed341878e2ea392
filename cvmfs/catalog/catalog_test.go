package catalog

import (
	"context"
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

// tree is a small catalog with one of everything.
func tree(s *script) {
	s.row(row{path: "", mode: 0o040755, size: 4096, hardlinks: 3, flags: 1})
	s.row(row{path: "/file", hash: digestBytes, size: 5, uid: 1000})
	s.row(row{path: "/rmd", hash: digestBytes, flags: 4 | 1<<8 | 1<<11})
	s.row(row{path: "/big", size: 30, flags: 4 | 64 | 2<<8, hash: digestBytes})
	s.chunk("/big", 20, 10)
	s.chunk("/big", 0, 20)
	s.row(row{path: "/nobody", hash: digestBytes, uid: 1<<32 - 1})
	s.row(row{path: "/link", mode: 0o120777, symlink: "$(A)/b", size: 6, flags: 12})
	s.row(row{path: "/disk", mode: 0o060600, size: 8<<8 | 1, flags: 20})
	s.row(row{path: "/one", hash: digestBytes, hardlinks: 3<<32 | 2})
	s.row(row{path: "/two", hash: digestBytes, hardlinks: 3<<32 | 2})
	s.row(row{path: "/dir", mode: 0o040700, size: 4096, hardlinks: 2, flags: 3, hash: digestBytes})
	s.row(row{path: "/hidden", hash: digestBytes, flags: 4 | 0x8000})
	s.exec("INSERT INTO nested_catalogs (path, sha1) VALUES ('/dir', ?)", strings.Repeat("ab", 20))
}

func open7(t *testing.T) *Catalog {
	t.Helper()
	path := build(t, schema7, func(s *script) {
		tree(s)
		s.exec("UPDATE catalog SET xattr = ?, mtimens = 7 WHERE name = 'file'", []byte("\x01\x01\x06\x03user.axyz"))
		s.exec("UPDATE catalog SET xattr = ? WHERE name = 'rmd'", []byte("\x02\x01\x06\x03user.axyz"))
		s.exec("UPDATE nested_catalogs SET size = 12288")
	})
	return mustOpen(t, path)
}

func mustOpen(t testing.TB, path string) *Catalog {
	t.Helper()
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func digest(a hash.Algorithm) hash.Digest { return hash.Digest{Algorithm: a} }

var wantTree = map[string]Entry{
	"": {Mode: 0o040755, Size: 4096, Nlink: 3, Flags: 1},
	"file": {
		Mode: 0o100644, UID: 1000, Size: 5, MtimeN: 7, Nlink: 1, Flags: 4, Digest: digest(hash.SHA1),
		Xattrs: []Xattr{{"user.a", []byte("xyz")}},
	},
	"rmd": {
		Mode: 0o100644, Size: 10, Nlink: 1, Flags: 4 | 1<<8 | 1<<11, Digest: digest(hash.RIPEMD160),
		Compression: hash.None,
	},
	"big": {
		Mode: 0o100644, Size: 30, Nlink: 1, Flags: 4 | 64 | 2<<8,
		Chunks: []Chunk{{0, 20, digest(hash.SHAKE128)}, {20, 10, digest(hash.SHAKE128)}},
	},
	"link":   {Mode: 0o120777, Size: 6, Nlink: 1, Flags: 12, Target: "$(A)/b"},
	"disk":   {Mode: 0o060600, Rdev: 8<<8 | 1, Nlink: 1, Flags: 20},
	"one":    {Mode: 0o100644, Size: 10, Nlink: 2, Group: 3, Flags: 4, Digest: digest(hash.SHA1)},
	"two":    {Mode: 0o100644, Size: 10, Nlink: 2, Group: 3, Flags: 4, Digest: digest(hash.SHA1)},
	"dir":    {Mode: 0o040700, Size: 4096, Nlink: 2, Flags: 1 | Mountpoint},
	"nobody": {Mode: 0o100644, UID: 65534, Size: 10, Nlink: 1, Flags: 4, Digest: digest(hash.SHA1)},
	"hidden": {Mode: 0o100644, Size: 10, Nlink: 1, Flags: 4 | Hidden, Digest: digest(hash.SHA1)},
}

func readAll(t *testing.T, c *Catalog) map[string]Entry {
	t.Helper()
	got := map[string]Entry{}
	err := c.Rows(context.Background(), func(path, parent hash.PathHash, e *Entry) error {
		full := e.Name
		if full != "" {
			full = "/" + full
		}
		if path != hash.OfPath(full) || full != "" && parent != hash.OfPath("") {
			t.Errorf("row %q has path %v and parent %v", e.Name, path, parent)
		}
		got[e.Name] = *e
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func named(m map[string]Entry, mtime int64) map[string]Entry {
	out := map[string]Entry{}
	for name, e := range m {
		e.Name, e.Mtime = name, mtime
		out[name] = e
	}
	return out
}

func TestRowsGiveEveryColumnItsMeaning(t *testing.T) {
	c := open7(t)
	if diff := cmp.Diff(named(wantTree, 1_700_000_000), readAll(t, c)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	if c.Revision() != 42 || c.TTL() != 10*time.Minute || c.RootPrefix() != "" {
		t.Errorf("revision %d, TTL %v, prefix %q; want 42, 10m, none", c.Revision(), c.TTL(), c.RootPrefix())
	}
}

func TestOldSchemaReadsWithMissingColumnsEmpty(t *testing.T) {
	c := mustOpen(t, build(t, schema0, tree))
	want := named(wantTree, 1_700_000_000)
	file := want["file"]
	file.MtimeN, file.Xattrs = 0, nil
	want["file"] = file
	if diff := cmp.Diff(want, readAll(t, c)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	nested, err := c.Nested()
	if err != nil || len(nested) != 1 || nested[0].Size != 0 {
		t.Errorf("Nested() = %v, %v; want one of unknown size", nested, err)
	}
	if c.TTL() != DefaultTTL || c.Revision() != 7 {
		t.Errorf("TTL %v, revision %d; want the default and 7", c.TTL(), c.Revision())
	}
}

func TestColumnsAreFoundByNameWhereverTheyStand(t *testing.T) {
	moved := strings.Replace(schema7, "mtime INTEGER, mtimens INTEGER, flags", "mtime INTEGER, flags", 1) +
		"ALTER TABLE catalog ADD mtimens INTEGER;"
	c := mustOpen(t, build(t, moved, func(s *script) {
		tree(s)
		s.exec("UPDATE catalog SET mtimens = 99 WHERE name = 'two'")
	}))
	if got := readAll(t, c)["two"].MtimeN; got != 99 {
		t.Errorf("nanoseconds %d, want 99", got)
	}
}

func TestLookupAndListAgreeWithRows(t *testing.T) {
	c := open7(t)
	all := readAll(t, c)
	for name, want := range all {
		path := ""
		if name != "" {
			path = "/" + name
		}
		got, err := c.Lookup(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, *got); diff != "" {
			t.Errorf("Lookup(%q) (-row +got):\n%s", path, diff)
		}
	}
	list, err := c.List("")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name)
	}
	if diff := cmp.Diff([]string{"big", "dir", "disk", "file", "hidden", "link", "nobody", "one", "rmd", "two"},
		names); diff != "" {
		t.Errorf("List(root) (-want +got):\n%s", diff)
	}
	if _, err := c.Lookup("/nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lookup of a missing path: %v, want fs.ErrNotExist", err)
	}
}

func TestNestedCatalogsAreSortedAndKnownBySize(t *testing.T) {
	nested, err := open7(t).Nested()
	if err != nil {
		t.Fatal(err)
	}
	d, _ := hash.Parse(strings.Repeat("ab", 20))
	if diff := cmp.Diff([]Nested{{"/dir", d, 12288}}, nested); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRowsEndWithTheContext(t *testing.T) {
	c := mustOpen(t, build(t, schema7, func(s *script) {
		for i := range 3000 {
			s.row(row{
				path: "/" + strings.Repeat("x", i%200) + string(rune('a'+i%20)) + time.Duration(i).String(),
				hash: digestBytes,
			})
		}
	}))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := c.Rows(ctx, func(_, _ hash.PathHash, _ *Entry) error { return nil })
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want context.Canceled alone", err)
	}
}

func TestInconsistentRowsAreRefusedByName(t *testing.T) {
	for what, r := range map[string]row{
		"no name":                 {path: "/bad", name: ""},
		"a slash in the name":     {path: "/bad", name: "b/ad"},
		"a NUL in the name":       {path: "/bad", name: []byte("b\x00d")},
		"dot":                     {path: "/bad", name: "."},
		"dot dot":                 {path: "/bad", name: ".."},
		"a name of 256 bytes":     {path: "/bad", name: strings.Repeat("n", 256)},
		"a negative size":         {path: "/bad", size: -1},
		"no links":                {path: "/bad", hardlinks: 5 << 32},
		"negative links":          {path: "/bad", hardlinks: -1},
		"no file type":            {path: "/bad", mode: 0o644},
		"an unknown file type":    {path: "/bad", mode: 0o170644},
		"an unknown algorithm":    {path: "/bad", flags: 4 | 3<<8},
		"an unknown compression":  {path: "/bad", flags: 4 | 2<<11},
		"a short digest":          {path: "/bad", hash: []byte("short")},
		"text for a number":       {path: "/bad", uid: "root"},
		"a fraction":              {path: "/bad", mtime: 1.5},
		"an owner beyond 32 bits": {path: "/bad", uid: 1 << 32},
		"a link to nowhere":       {path: "/bad", mode: 0o120777, symlink: ""},
		"a link with a NUL":       {path: "/bad", mode: 0o120777, symlink: []byte("a\x00b")},
		"a link of 4096 bytes":    {path: "/bad", mode: 0o120777, symlink: strings.Repeat("l", 4096)},
		"no chunks":               {path: "/bad", flags: 4 | 64},
		"a root that is a file":   {path: ""},
		"a root with a name":      {path: "", mode: 0o040755, name: "root"},
	} {
		t.Run(what, func(t *testing.T) {
			c := mustOpen(t, build(t, schema7, func(s *script) { s.row(r) }))
			err := c.Rows(context.Background(), func(_, _ hash.PathHash, _ *Entry) error { return nil })
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("Rows: got %v, want ErrInvalid", err)
			}
			if !strings.Contains(err.Error(), "row ") || !strings.Contains(err.Error(), c.path) {
				t.Errorf("%q names neither row nor catalog", err)
			}
			if _, err := c.Lookup(r.path); !errors.Is(err, ErrInvalid) {
				t.Errorf("Lookup: got %v, want ErrInvalid", err)
			}
		})
	}
}

func TestChunksMustCoverTheFile(t *testing.T) {
	for what, chunks := range map[string][][2]int64{
		"a gap":             {{0, 10}, {11, 19}},
		"an overlap":        {{0, 20}, {10, 20}},
		"a late start":      {{1, 29}},
		"too little":        {{0, 10}, {10, 10}},
		"too much":          {{0, 10}, {10, 21}},
		"a sum that wraps":  {{0, 1<<63 - 1}, {1<<63 - 1, 1<<63 - 1}},
		"an empty one":      {{0, 0}, {0, 30}},
		"a negative offset": {{-10, 10}, {0, 30}},
	} {
		t.Run(what, func(t *testing.T) {
			c := mustOpen(t, build(t, schema7, func(s *script) {
				s.row(row{path: "/big", size: 30, flags: 68})
				for _, k := range chunks {
					s.chunk("/big", k[0], k[1])
				}
			}))
			err := c.Rows(context.Background(), func(_, _ hash.PathHash, _ *Entry) error { return nil })
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
}

func TestHostileDatabasesAreRefused(t *testing.T) {
	replaced := func(old, with string) string { return strings.Replace(schema7, old, with, 1) }
	for what, schema := range map[string]string{
		"a view":              replaced("CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path))", "CREATE VIEW nested_catalogs AS SELECT 'x' path, 'y' sha1, 0 size"),
		"a virtual table":     replaced("CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key))", "CREATE VIRTUAL TABLE properties USING fts5(key, value)"),
		"a computed column":   replaced("xattr BLOB", "xattr BLOB AS (zeroblob(1000000)) VIRTUAL"),
		"a missing table":     replaced("CREATE TABLE chunks", "CREATE TABLE junks"),
		"a missing column":    replaced("symlink TEXT", "simlink TEXT"),
		"an unknown schema":   replaced("'2.5'", "'2.6'"),
		"no schema":           replaced("('schema', '2.5'), ", ""),
		"a revision of words": replaced("'42'", "'many'"),
		"a TTL beyond reason": replaced("'600'", "'99999999999999999999'"),
		"UTF-16":              "PRAGMA encoding = 'UTF-16le';" + schema7,
		"a write-ahead log":   "PRAGMA journal_mode = WAL;" + schema7,
		"a prefix with ..":    schema7 + "INSERT INTO properties VALUES ('root_prefix', '/a/../b');",
		"a relative prefix":   schema7 + "INSERT INTO properties VALUES ('root_prefix', 'a');",
		"a hundred tables":    schema7 + tables(100),
		"a property of a blob": schema7 +
			"DROP TABLE properties; CREATE TABLE properties (key, value); INSERT INTO properties VALUES ('schema', x'00'), ('schema', '2.5');",
	} {
		t.Run(what, func(t *testing.T) {
			path := build(t, schema, func(*script) {})
			if c, err := Open(path); !errors.Is(err, ErrInvalid) {
				if err == nil {
					c.Close()
				}
				t.Errorf("Open: got %v, want ErrInvalid", err)
			}
		})
	}
}

func tables(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("CREATE TABLE t" + strings.Repeat("x", i) + " (a);")
	}
	return b.String()
}

func TestSearchesWithoutAnIndexAreRefused(t *testing.T) {
	for what, schema := range map[string]string{
		"no key": strings.Replace(schema7, ", CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2)", "", 1),
		"another key": strings.Replace(schema7, "pk_catalog PRIMARY KEY (md5path_1, md5path_2)",
			"pk_catalog PRIMARY KEY (name, md5path_1)", 1),
	} {
		c := mustOpen(t, build(t, schema, tree))
		if _, err := c.Lookup("/file"); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Lookup: got %v, want ErrInvalid", what, err)
		}
		readAll(t, c)
	}
}

func TestDamagedFilesAreRefused(t *testing.T) {
	whole, err := os.ReadFile(build(t, schema7, tree))
	if err != nil {
		t.Fatal(err)
	}
	for what, content := range map[string][]byte{
		"nothing":      nil,
		"a head":       whole[:100],
		"one page":     whole[:4096],
		"a cut end":    whole[:len(whole)-4096],
		"no database":  []byte(strings.Repeat("no", 4096)),
		"zeros inside": append(append(append([]byte{}, whole[:4096]...), make([]byte, 8192)...), whole[12288:]...),
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "catalog")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := Open(path)
			if err == nil {
				defer c.Close()
				err = c.Rows(context.Background(), func(_, _ hash.PathHash, _ *Entry) error { return nil })
			}
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrInvalid) {
		t.Errorf("a folder: got %v, want ErrInvalid", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: got %v, want fs.ErrNotExist", err)
	}
}

func TestNestedCatalogsOutsideTheSubtreeAreRefused(t *testing.T) {
	for _, path := range []string{"", "/", "/sw", "/swx/a", "/other", "sw/a", "/sw/../etc", "/sw/a/", "/sw//a"} {
		c := mustOpen(t, build(t, schema7, func(s *script) {
			s.exec("INSERT INTO properties VALUES ('root_prefix', '/sw')")
			s.exec("INSERT INTO nested_catalogs VALUES (?, ?, 0)", path, strings.Repeat("ab", 20))
		}))
		_, err := c.Nested()
		_, _, other := c.NestedFor("/sw/b")
		if !errors.Is(err, ErrInvalid) || !errors.Is(other, ErrInvalid) {
			t.Errorf("nested catalog at %q below /sw: got %v and %v, want ErrInvalid", path, err, other)
		}
	}
}

// A file may not be written to by reading it, and odd characters in its path may not be taken for options.
func TestOpenLeavesTheFileAlone(t *testing.T) {
	source := build(t, schema7, tree)
	dir := filepath.Join(t.TempDir(), "50% of? a#b")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x y")
	if err := os.Rename(source, path); err != nil {
		t.Fatal(err)
	}
	c := mustOpen(t, path)
	readAll(t, c)
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("folder holds %v (%v), want the catalog alone", names, err)
	}
}

func FuzzOpen(f *testing.F) {
	for _, schema := range []string{schema7, schema0} {
		content, err := os.ReadFile(build(f, "PRAGMA page_size = 512;"+schema, tree))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	f.Add([]byte("SQLite format 3\x00"))
	path := filepath.Join(f.TempDir(), "catalog")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Open(path)
		if err != nil {
			return
		}
		defer c.Close()
		c.Nested()
		c.NestedFor("/dir/file")
		c.Lookup("/file")
		c.List("")
		c.Rows(context.Background(), func(_, _ hash.PathHash, e *Entry) error {
			if e.Name == "." || strings.Contains(e.Name, "/") || e.Size < 0 || e.Nlink == 0 {
				t.Errorf("impossible row %+v", e)
			}
			return nil
		})
	})
}

// A cycle of pages must end: here an inner page is made its own child many times over.
func TestEndlessTablesEnd(t *testing.T) {
	c := mustOpen(t, endless(t, "catalog", build(t, "PRAGMA page_size = 512;"+schema7, func(s *script) {
		for i := range 200 {
			s.row(row{path: "/" + time.Duration(i).String(), hash: digestBytes})
		}
	})))
	c.maxRows = 50
	err := c.Rows(context.Background(), func(_, _ hash.PathHash, _ *Entry) error { return nil })
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

// None of the rows is the one that is looked for, so none of a search's would be counted.
func TestEndlessTablesOfNestedCatalogsEnd(t *testing.T) {
	unindexed := strings.Replace(schema7, ", CONSTRAINT pk_nested_catalogs PRIMARY KEY (path)", "", 1)
	c := mustOpen(t, endless(t, "nested_catalogs", build(t, "PRAGMA page_size = 512;"+unindexed, func(s *script) {
		for i := range 200 {
			s.exec("INSERT INTO nested_catalogs VALUES (?, '', 0)", fmt.Sprintf("/%d", i))
		}
	})))
	c.maxRows = 50
	if n, ok, err := c.NestedFor("/a/b"); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, %v, %v, want ErrInvalid", n, ok, err)
	}
}

// endless returns a file in which all cells of a table's root point to the first leaf: the same rows come again and
// again.
func endless(t *testing.T, table, path string) string {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	var root int64
	if err := db.QueryRow("SELECT rootpage FROM sqlite_master WHERE name = ?", table).Scan(&root); err != nil {
		t.Fatal(err)
	}
	db.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := b[(root-1)*512 : root*512]
	cells := int(page[3])<<8 | int(page[4])
	first := int(page[12])<<8 | int(page[13])
	for i := range cells {
		at := int(page[12+2*i])<<8 | int(page[13+2*i])
		copy(page[at:at+4], page[first:first+4])
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNestedForIsTheDeepestAtOrAboveAPath(t *testing.T) {
	// Names that a file's own order takes for equal are other names.
	deep := "/sw/" + strings.Repeat("x/", 2000) + "x"
	loose := strings.Replace(schema7, "nested_catalogs (path TEXT,", "nested_catalogs (path TEXT COLLATE NOCASE,", 1)
	c := mustOpen(t, build(t, loose, func(s *script) {
		s.exec("INSERT INTO properties VALUES ('root_prefix', '/sw')")
		for _, path := range []string{"/sw/a", "/sw/a/b/c", "/sw/a-b", "/sw/LIB", deep} {
			s.exec("INSERT INTO nested_catalogs VALUES (?, ?, 0)", path, strings.Repeat("ab", 20))
		}
	}))
	for path, want := range map[string]string{
		"/sw": "", "/sw/a": "/sw/a", "/sw/a/b": "/sw/a", "/sw/a/b/c": "/sw/a/b/c", "/sw/a/b/c/d": "/sw/a/b/c",
		"/sw/a-": "", "/sw/a-b/c": "/sw/a-b", "/sw/lib/x": "", "/sw/LIB/x": "/sw/LIB", "/other": "", "": "",
		deep[:len(deep)-2]: "", deep + "/y": deep,
	} {
		if n, ok, err := c.NestedFor(path); err != nil || n.Path != want || ok != (want != "") {
			t.Errorf("%.20s: got %.20q, %v, %v, want %.20q", path, n.Path, ok, err, want)
		}
	}
}
