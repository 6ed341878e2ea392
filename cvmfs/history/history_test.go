package history

import (
	"bytes"
	"compress/zlib"
	"database/sql"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/sqlitefile"
	"cvmfs-graphdriver/test/testutil"
)

func digest(s string) hash.Digest { return hash.SHA1.Digest([]byte(s)) }

func at(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

// two is a history like that of a repository with one publication.
func two() *History {
	return &History{
		FQRN: "test.example.org", Previous: digest("before"),
		Tags: []Tag{
			{Name: Trunk, Root: digest("two"), Revision: 2, Time: at(200), Description: TrunkText, Size: 4096},
			{Name: TrunkPrevious, Root: digest("one"), Revision: 1, Time: at(100), Description: PreviousText},
			{
				Name: "generic-2026-11-23T04:56:09Z", Root: hash.SHAKE128.Digest(nil), Revision: 1, Time: at(150),
				Description: "it's ünusual\n",
			},
		},
	}
}

func log() *Reflog {
	return &Reflog{FQRN: "test.example.org", Refs: []Ref{
		{digest("one"), Catalog, at(100)},
		{digest("certificate"), Certificate, at(100)},
		{digest("tags"), Tags, at(200)},
		{hash.SHAKE128.Digest(nil), Metainfo, at(300)},
	}}
}

func write(t testing.TB, w interface{ Write(string) error }) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := w.Write(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	want := two()
	got, err := Read(write(t, want))
	if err != nil {
		t.Fatal(err)
	}
	want.Branches = []Branch{{}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("history (-want +got)\n%s", diff)
	}
	again, err := Read(write(t, got))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("written again (-want +got)\n%s", diff)
	}
	r, err := ReadReflog(write(t, log()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(log(), r); diff != "" {
		t.Errorf("reflog (-want +got)\n%s", diff)
	}
}

func TestSameContentGivesTheSameBytes(t *testing.T) {
	shuffled := log()
	slices.Reverse(shuffled.Refs)
	for what, pair := range map[string][2]string{
		"history": {write(t, two()), write(t, two())},
		"reflog":  {write(t, log()), write(t, shuffled)},
	} {
		one, err := os.ReadFile(pair[0])
		if err != nil {
			t.Fatal(err)
		}
		other, err := os.ReadFile(pair[1])
		if err != nil || !bytes.Equal(one, other) {
			t.Errorf("%s: %d and %d bytes that differ, %v", what, len(one), len(other), err)
		}
	}
}

// reference returns a plain file of the reference repository with tags.
func reference(t testing.TB) (tags, reflog string) {
	t.Helper()
	files := testutil.Reference(t, "features.example.org")
	_, rest, _ := bytes.Cut(files[".cvmfspublished"].Data, []byte("\nH"))
	name, _, _ := bytes.Cut(rest, []byte("\n"))
	d, err := hash.Parse(string(name))
	if err != nil {
		t.Fatal(err)
	}
	z, err := zlib.NewReader(bytes.NewReader(files[d.Path(hash.History)].Data))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tags, reflog = filepath.Join(dir, "tags"), filepath.Join(dir, "reflog")
	if err := errors.Join(
		os.WriteFile(tags, plain, 0o600),
		os.WriteFile(reflog, files[ReflogFile].Data, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return tags, reflog
}

func TestReferenceFilesAreReadCompletely(t *testing.T) {
	tags, reflog := reference(t)
	h, err := Read(tags)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tag := range h.Tags {
		names = append(names, tag.Name)
	}
	want := []string{"generic-2026-11-23T04:56:09Z", "hardlinks", "first", "second", TrunkPrevious, Trunk}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("tags (-want +got)\n%s", diff)
	}
	first, ok := h.Find("first")
	if !ok || first.Revision != 3 || first.Description != "first" || first.Size != 33792 ||
		first.Time != at(1795409773) ||
		first.Root.String() != "0857a577da667cef9dd39ecd6423939e72d31e5d" {
		t.Errorf("first is %+v", first)
	}
	if h.FQRN != "features.example.org" || h.Previous.String() != "7ecf8d9ed5bcda96a70ac616536b2c41861f19cc" ||
		len(h.Branches) != 1 {
		t.Errorf("%q after %v with the branches %v", h.FQRN, h.Previous, h.Branches)
	}
	if err := h.Write(filepath.Join(t.TempDir(), "again")); err != nil {
		t.Errorf("it can't be written: %v", err)
	}
	r, err := ReadReflog(reflog)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Refs) != 11 || !r.Has(first.Root, Catalog) || r.Has(first.Root, Tags) || r.FQRN != "features.example.org" {
		t.Errorf("%+v", r)
	}
}

func TestTagsAreFoundByDate(t *testing.T) {
	h := two()
	h.Tags = append(h.Tags, Tag{Name: "aside", Root: digest("x"), Revision: 9, Time: at(10), Branch: "other"})
	for seconds, want := range map[int64]string{
		99: "", 100: TrunkPrevious, 199: TrunkPrevious, 200: Trunk,
		1 << 30: Trunk,
	} {
		if got, ok := h.At(at(seconds)); got.Name != want || ok != (want != "") {
			t.Errorf("at %d: %q, %t; want %q", seconds, got.Name, ok, want)
		}
	}
}

func TestSetReplacesAndRemoveTakesAway(t *testing.T) {
	h := two()
	h.Set(Tag{Name: Trunk, Revision: 3})
	h.Set(Tag{Name: "new", Revision: 3})
	if tag, _ := h.Find(Trunk); tag.Revision != 3 || len(h.Tags) != 4 {
		t.Errorf("%+v", h.Tags)
	}
	if !h.Remove("new") || h.Remove("new") || len(h.Tags) != 3 {
		t.Errorf("%+v", h.Tags)
	}
	r := log()
	r.Set(Ref{digest("one"), Catalog, at(900)})
	r.Set(Ref{digest("three"), Catalog, at(900)})
	if len(r.Refs) != 5 || r.Refs[0].Time != at(900) {
		t.Errorf("%+v", r.Refs)
	}
}

func TestWhatReadersRefuseIsNotWritten(t *testing.T) {
	for name, change := range map[string]func(*History){
		"no repository":            func(h *History) { h.FQRN = "" },
		"no tags":                  func(h *History) { h.Tags = nil },
		"a branch without tag":     func(h *History) { h.Branches = []Branch{{}, {Name: "x"}} },
		"a tag on no branch":       func(h *History) { h.Tags[0].Branch = "x" },
		"a tag before its branch":  func(h *History) { h.Branches = []Branch{{InitialRevision: 2}} },
		"an empty name":            func(h *History) { h.Tags[0].Name = "" },
		"a blank":                  func(h *History) { h.Tags[0].Name = "a b" },
		"a name that isn't ASCII":  func(h *History) { h.Tags[0].Name = "ä" },
		"a name of 256 bytes":      func(h *History) { h.Tags[0].Name = strings.Repeat("x", 256) },
		"a newline at the end":     func(h *History) { h.Tags[0].Name = "a\n" },
		"a name twice":             func(h *History) { h.Tags[0].Name = TrunkPrevious },
		"no root":                  func(h *History) { h.Tags[0].Root = hash.Digest{} },
		"a revision without bound": func(h *History) { h.Tags[0].Revision = 1 << 63 },
		"a negative size":          func(h *History) { h.Tags[0].Size = -1 },
		"a time before 1970":       func(h *History) { h.Tags[0].Time = at(-1) },
		"a NUL":                    func(h *History) { h.Tags[0].Description = "a\x00b" },
		"a novel":                  func(h *History) { h.Tags[0].Description = strings.Repeat("x", maxText+1) },
	} {
		h := two()
		change(h)
		dir := t.TempDir()
		if err := h.Write(filepath.Join(dir, "file")); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	for name, r := range map[string]*Reflog{
		"no repository": {Refs: log().Refs},
		"no digest":     {FQRN: "x", Refs: []Ref{{Kind: Catalog, Time: at(1)}}},
		"no such kind":  {FQRN: "x", Refs: []Ref{{digest("x"), 4, at(1)}}},
	} {
		dir := t.TempDir()
		if err := r.Write(filepath.Join(dir, "file")); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	if err := two().Write(write(t, two())); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
}

// script makes a database of its own kind.
func script(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	db, err := sqlitefile.Create(path, text)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

const (
	properties = "CREATE TABLE properties (key, value);"
	revisionOf = "INSERT INTO properties VALUES ('schema', '1.0'), ('fqrn', 'x'), ('schema_revision', "
	sumOne     = "'5798f7f4ca7585d850eea64610a1f73d8f8de7a3'"
	tagsOf0    = "CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER, description TEXT);" +
		"INSERT INTO tags VALUES ('old', " + sumOne + ", 7, 100, 4, 'words');"
)

func TestOlderRevisionsAreRead(t *testing.T) {
	for revision, c := range map[string]struct {
		script string
		size   int64
	}{
		"0": {tagsOf0, 0},
		"1": {tagsOf0 + "ALTER TABLE tags ADD size INTEGER; UPDATE tags SET size = 9;", 9},
		"2": {tagsOf0 + "ALTER TABLE tags ADD size INTEGER; UPDATE tags SET size = 9; CREATE TABLE recycle_bin (hash TEXT, flags INTEGER);", 9},
	} {
		h, err := Read(script(t, properties+revisionOf+"'"+revision+"');"+c.script))
		if err != nil {
			t.Errorf("revision %s: %v", revision, err)
			continue
		}
		d, _ := hash.Parse(strings.Trim(sumOne, "'"))
		want := []Tag{{Name: "old", Root: d, Revision: 7, Time: at(100), Description: "words", Size: c.size}}
		if diff := cmp.Diff(want, h.Tags); diff != "" {
			t.Errorf("revision %s (-want +got)\n%s", revision, diff)
		}
	}
}

func TestHostileFilesAreRefused(t *testing.T) {
	tag := func(values string) string {
		return strings.Replace(tagsOf0, "'old', "+sumOne+", 7, 100, 4, 'words'", values, 1)
	}
	refs := func(values string) string {
		return "CREATE TABLE refs (hash, type, timestamp); INSERT INTO refs VALUES " + values + ";"
	}
	zero := properties + revisionOf + "'0');"
	for name, c := range map[string]struct {
		script string
		read   func(string) error
	}{
		"an unknown revision": {properties + revisionOf + "'4');" + tagsOf0, readTags},
		"a revision of words": {properties + revisionOf + "'many');" + tagsOf0, readTags},
		"an unknown schema": {
			properties + "INSERT INTO properties VALUES ('schema', '2.0');" + tagsOf0,
			readTags,
		},
		"no schema":        {properties + tagsOf0, readTags},
		"a property twice": {zero + "INSERT INTO properties VALUES ('fqrn', 'y');" + tagsOf0, readTags},
		"no properties":    {tagsOf0, readTags},
		"no tags":          {zero, readTags},
		"tags that are a view": {
			zero +
				"CREATE VIEW tags AS SELECT 'a' name, '' hash, 0 revision, 0 timestamp, 0 channel, '' description",
			readTags,
		},
		"a bad predecessor": {
			zero + "INSERT INTO properties VALUES ('previous_revision', 'x');" + tagsOf0,
			readTags,
		},
		"no branches":               {properties + revisionOf + "'3');" + tagsOf0, readTags},
		"a tag without name":        {zero + tag("'', "+sumOne+", 7, 100, 4, 'words'"), readTags},
		"a tag of NULL":             {zero + tag("NULL, "+sumOne+", 7, 100, 4, 'words'"), readTags},
		"a tag twice":               {zero + tagsOf0 + "INSERT INTO tags SELECT * FROM tags;", readTags},
		"a short digest":            {zero + tag("'a', 'abcd', 7, 100, 4, 'words'"), readTags},
		"a negative revision":       {zero + tag("'a', "+sumOne+", -7, 100, 4, 'words'"), readTags},
		"a time beyond reason":      {zero + tag("'a', "+sumOne+", 7, 9000000000000, 4, 'words'"), readTags},
		"a description of bytes":    {zero + tag("'a', "+sumOne+", 7, 100, 4, x'00'"), readTags},
		"a description of 100 KB":   {zero + tag("'a', "+sumOne+", 7, 100, 4, printf('%0100000d', 1)"), readTags},
		"a write-ahead log":         {"PRAGMA journal_mode = WAL;" + zero + tagsOf0, readTags},
		"a reference of no kind":    {zero + refs("("+sumOne+", 4, 1)"), readRefs},
		"a reference of words":      {zero + refs("("+sumOne+", 'catalog', 1)"), readRefs},
		"a reference to nothing":    {zero + refs("('', 0, 1)"), readRefs},
		"a reference twice":         {zero + refs("("+sumOne+", 0, 1), ("+sumOne+", 0, 1)"), readRefs},
		"a newer reflog":            {properties + revisionOf + "'1');" + refs("("+sumOne+", 0, 1)"), readRefs},
		"a reflog without its refs": {zero, readRefs},
	} {
		if err := c.read(script(t, c.script)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, ErrInvalid) {
		t.Errorf("no file: %v", err)
	}
}

func readTags(path string) error {
	_, err := Read(path)
	return err
}

func readRefs(path string) error {
	_, err := ReadReflog(path)
	return err
}

func TestSchemaIsTheReferences(t *testing.T) {
	theirs, theirLog := reference(t)
	for _, pair := range [][2]string{{theirs, write(t, two())}, {theirLog, write(t, log())}} {
		var shapes [2]string
		for i, path := range pair {
			db, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			rows, err := db.Query("SELECT sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name")
			if err != nil {
				t.Fatal(err)
			}
			for rows.Next() {
				var text string
				if err := rows.Scan(&text); err != nil {
					t.Fatal(err)
				}
				shapes[i] += strings.Join(strings.Fields(text), "") + "\n"
			}
			if err := errors.Join(rows.Err(), rows.Close(), db.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(shapes[0], shapes[1]); diff != "" {
			t.Errorf("(-reference +ours)\n%s", diff)
		}
	}
}

func FuzzRead(f *testing.F) {
	tags, reflog := reference(f)
	for _, path := range []string{tags, reflog, write(f, two()), write(f, log())} {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("SQLite format 3\x00"))
	path := filepath.Join(f.TempDir(), "file")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if h, err := Read(path); err == nil {
			for _, tag := range h.Tags {
				if tag.Name == "" || tag.Root.IsZero() || tag.Size < 0 || tag.Time.Year() > 9999 {
					t.Errorf("impossible tag %+v", tag)
				}
			}
		}
		if r, err := ReadReflog(path); err == nil {
			for _, ref := range r.Refs {
				if ref.Digest.IsZero() || ref.Kind > Metainfo {
					t.Errorf("impossible reference %+v", ref)
				}
			}
		}
	})
}
