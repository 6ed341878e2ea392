package check_test

import (
	"archive/tar"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/publish"
	. "cvmfs-graphdriver/cvmfs/publish/check"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/cvmfs/trust"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
)

func TestMain(m *testing.M) { publishtest.Main(m, nil) }

// checked returns what Run finds.
func checked(t testing.TB, from storage.Reader, o Options) ([]Problem, *Summary) {
	t.Helper()
	var all []Problem
	s, err := Run(context.Background(), from, o, func(p Problem) { all = append(all, p) })
	if err != nil {
		t.Fatal(err)
	}
	if s.Problems != len(all) {
		t.Errorf("%d problems counted, %d reported", s.Problems, len(all))
	}
	return all, s
}

func TestReferenceRepositoriesAreSound(t *testing.T) {
	for _, fqrn := range []string{"features.example.org", "images.example.org", "shake.example.org"} {
		dir := testutil.Repository(t, fqrn)
		keys, err := trust.LoadKeys(testutil.PublicKey(t, fqrn))
		if err != nil {
			t.Fatal(err)
		}
		for _, content := range []bool{true, false} {
			problems, s := checked(t, open(t, dir), Options{
				FQRN: fqrn, Keys: keys, Content: content,
				Dir: t.TempDir(),
			})
			for _, p := range problems {
				t.Errorf("%s: %v", fqrn, p)
			}
			if s.Catalogs < 3 || s.Entries < 80 || s.Objects < 10 || s.Roots < 2 {
				t.Errorf("%s: looked at %+v", fqrn, s)
			}
		}
	}
}

// open opens a reference repository.
func open(t testing.TB, dir string) *storage.Local {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "data/txn"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := storage.OpenLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// soundRepo has one of each thing rules are about.
func soundRepo(t testing.TB) *publish.Repository {
	t.Helper()
	r := publishtest.New(t, publishtest.Small(publish.Settings{}))
	tx := publishtest.Begin(t, r)
	publishtest.Ingest(t, tx, "/layers/one", publishtest.Pack(
		t,
		publishtest.Folder(
			"dir/",
		),
		publishtest.Folder("dir/sub/"),
		publishtest.File("dir/a", "linked"),
		publishtest.HardLink("dir/b", "dir/a"),
		publishtest.File("dir/sub/single", "1"),
		publishtest.File("big", string(testutil.Sample(60_000))),
		publishtest.File("empty", ""),
		publishtest.Entry(
			tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "big", Mode: 0o777, ModTime: publishtest.At},
			"",
		),
		publishtest.Entry(tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600, ModTime: publishtest.At}, ""),
		publishtest.Entry(
			tar.Header{
				Typeflag: tar.TypeChar,
				Name:     "null",
				Mode:     0o666,
				Devmajor: 1,
				Devminor: 3,
				ModTime:  publishtest.At,
			},
			"",
		),
	))
	if err := tx.WriteFile(t.Context(), "/layers/one.record.json", []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	publishtest.Commit(t, tx)
	return r
}

// forger changes a repository's databases and signs what comes of it.
type forger struct {
	t    testing.TB
	r    *publish.Repository
	d    *publish.Draft
	m    manifest.Manifest
	tags *history.History
}

func newForger(t testing.TB, r *publish.Repository) *forger {
	t.Helper()
	d, err := r.Draft(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := &forger{t: t, r: r, d: d, m: *d.Head}
	if f.tags, err = d.Tags(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

// edit runs statements on a database and stores what comes of it.
func (f *forger) edit(d hash.Digest, s hash.Suffix, statements ...string) (hash.Digest, int64) {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), "database")
	if err := storage.FetchDatabase(f.t.Context(), f.r.Storage(), d, s, 1<<30, path); err != nil {
		f.t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, text := range statements {
		if _, err := db.Exec(text); err != nil {
			f.t.Fatalf("%s: %v", text, err)
		}
	}
	if err := db.Close(); err != nil {
		f.t.Fatal(err)
	}
	plain, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	return publishtest.Object(f.t, f.r, s, plain), int64(len(plain))
}

// root changes the root catalog.
func (f *forger) root(statements ...string) {
	f.t.Helper()
	f.m.Root, f.m.RootSize = f.edit(f.m.Root, hash.Catalog, statements...)
	trunk, _ := f.tags.Find(history.Trunk)
	trunk.Root, trunk.Size = f.m.Root, f.m.RootSize
	f.tags.Set(trunk)
}

// layer changes the nested catalog of the layer.
func (f *forger) layer(statements ...string) {
	f.t.Helper()
	top := filepath.Join(f.t.TempDir(), "root")
	if err := storage.FetchDatabase(f.t.Context(), f.r.Storage(), f.m.Root, hash.Catalog, 1<<30, top); err != nil {
		f.t.Fatal(err)
	}
	c, err := catalog.Open(top)
	if err != nil {
		f.t.Fatal(err)
	}
	nested, err := c.Nested()
	if err = errors.Join(err, c.Close()); err != nil || len(nested) != 1 {
		f.t.Fatalf("nested catalogs %v, %v", nested, err)
	}
	d, size := f.edit(nested[0].Digest, hash.Catalog, statements...)
	f.root(fmt.Sprintf("UPDATE nested_catalogs SET sha1 = '%v', size = %d", d, size))
}

// publish signs it all.
func (f *forger) publish() {
	f.t.Helper()
	if err := f.d.Publish(f.t.Context(), &f.m, f.tags); err != nil {
		f.t.Fatal(err)
	}
}

// resign signs the manifest alone.
func (f *forger) resign() {
	f.t.Helper()
	text, err := f.m.Text()
	if err != nil {
		f.t.Fatal(err)
	}
	key, err := trust.LoadPrivateKey(strings.TrimSuffix(f.r.MasterKeyFile(), ".pub") + ".key")
	if err != nil {
		f.t.Fatal(err)
	}
	letter, err := trust.SignManifest(text, f.m.Root.Algorithm, key)
	if err != nil {
		f.t.Fatal(err)
	}
	publishtest.Put(f.t, f.r.Storage(), manifest.FileName, string(letter))
}

// local is the path of a file of the repository.
func (f *forger) local(name string) string {
	return filepath.Join(f.r.Storage().String(), name)
}

func (f *forger) write(name, content string) {
	f.t.Helper()
	if err := os.WriteFile(f.local(name), []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *forger) remove(name string) {
	f.t.Helper()
	if err := os.Remove(f.local(name)); err != nil {
		f.t.Fatal(err)
	}
}

// layerSQL and rootSQL change a catalog and publish.
func layerSQL(statements ...string) func(*forger) {
	return func(f *forger) { f.layer(statements...); f.publish() }
}

func rootSQL(statements ...string) func(*forger) {
	return func(f *forger) { f.root(statements...); f.publish() }
}

// objectOf returns the name of a file's object.
func objectOf(content string) string {
	return hash.SHA1.Digest(publishtest.Stored([]byte(content))).Path(hash.File)
}

// pathSQL sets a row's hashes.
func pathSQL(column, path string) string {
	h := hash.OfPath(path)
	return fmt.Sprintf("%s_1 = %d, %s_2 = %d", column, h.P1, column, h.P2)
}

func TestEachRuleBrokenOnPurposeIsFoundByName(t *testing.T) {
	soundRepo(t) // makes the keys all others share
	for name, c := range map[string]struct {
		spoil func(*forger)
		want  []string
	}{
		"nothing":                   {func(*forger) {}, nil},
		"nothing, but signed again": {func(f *forger) { f.layer(); f.publish() }, nil},

		// The repository as a whole.
		"no manifest":           {func(f *forger) { f.remove(manifest.FileName) }, []string{RuleSignature}},
		"a manifest of garbage": {func(f *forger) { f.write(manifest.FileName, "garbage") }, []string{RuleSignature}},
		"a changed manifest": {
			func(f *forger) { f.tamper(manifest.FileName, "\nD240", "\nD241") },
			[]string{RuleSignature},
		},
		"no whitelist": {func(f *forger) { f.remove(trust.WhitelistFile) }, []string{RuleSignature}},
		"no certificate": {
			func(f *forger) { f.remove(f.m.Certificate.Path(hash.Certificate)) },
			[]string{RuleSignature},
		},
		"another revision":  {func(f *forger) { f.m.Revision++; f.resign() }, []string{RuleManifest, RuleHistory}},
		"another TTL":       {func(f *forger) { f.m.TTL *= 2; f.resign() }, []string{RuleManifest}},
		"another root size": {func(f *forger) { f.m.RootSize++; f.resign() }, []string{RuleSize}},
		"no metainfo": {
			func(f *forger) { f.remove(f.m.Metainfo.Path(hash.Metainfo)) },
			[]string{RuleMetainfo},
		},
		"metainfo of words": {
			func(f *forger) { f.m.Metainfo = f.object(hash.Metainfo, "words"); f.publish() },
			[]string{RuleMetainfo},
		},
		"no reflog":              {func(f *forger) { f.remove(history.ReflogFile) }, []string{RuleReflog}},
		"a reflog of garbage":    {func(f *forger) { f.write(history.ReflogFile, "garbage") }, []string{RuleReflog}},
		"a reflog nobody summed": {func(f *forger) { f.m.Reflog = hash.Digest{}; f.resign() }, []string{RuleReflog}},
		"a reflog without the root": {func(f *forger) {
			log := f.d.Reflog
			log.Refs = slices.DeleteFunc(log.Refs, func(r history.Ref) bool { return r.Digest == f.m.Root })
			f.relog()
		}, []string{RuleReflog}},
		"another's reflog": {
			func(f *forger) { f.d.Reflog.FQRN = "other.example.org"; f.relog() },
			[]string{RuleReflog},
		},
		"no history": {func(f *forger) { f.remove(f.m.History.Path(hash.History)) }, []string{RuleHistory}},
		"a trunk that stayed": {
			func(f *forger) { f.tagSQL("UPDATE tags SET revision = 0 WHERE name = 'trunk'") },
			[]string{RuleHistory},
		},
		"a branch without tag": {
			func(f *forger) { f.tagSQL("INSERT INTO branches VALUES ('x', '', 0)") },
			[]string{RuleHistory},
		},
		"a branch with a bad name": {func(f *forger) {
			f.tagSQL("INSERT INTO branches VALUES ('x y', '', 0)",
				"UPDATE tags SET branch = 'x y' WHERE name = 'trunk-previous'")
		}, []string{RuleHistory}},
		"no tags at all": {func(f *forger) { f.tagSQL("DELETE FROM tags") }, []string{RuleHistory}},
		"a tag of no branch": {
			func(f *forger) { f.tagSQL("UPDATE tags SET branch = 'y' WHERE name = 'trunk-previous'") },
			[]string{RuleHistory},
		},
		"a tag before its branch": {
			func(f *forger) { f.tagSQL("UPDATE branches SET initial_revision = 1") },
			[]string{RuleHistory},
		},
		"a tag from the future": {
			func(f *forger) { f.tagSQL("UPDATE tags SET revision = 9 WHERE name = 'trunk-previous'") },
			[]string{RuleHistory},
		},
		"a tag with a bad name": {
			func(f *forger) { f.tagSQL("UPDATE tags SET name = 'a b' WHERE name = 'trunk-previous'") },
			[]string{RuleHistory},
		},
		"another's history": {
			func(f *forger) { f.tagSQL("UPDATE properties SET value = 'other' WHERE key = 'fqrn'") },
			[]string{RuleHistory},
		},
		"a tag's wrong size": {
			func(f *forger) { f.tagSQL("UPDATE tags SET size = 77 WHERE name = 'trunk-previous'") },
			[]string{RuleSize},
		},
		"a tag of nothing": {func(f *forger) {
			f.tagSQL("UPDATE tags SET hash = '" + strings.Repeat("ab", 20) + "' WHERE name = 'trunk-previous'")
		}, []string{RuleCatalog}},
		"alternative names": {func(f *forger) { f.m.AltPaths = true; f.resign() }, []string{RuleAltPaths}},

		// Catalogs.
		"no root catalog": {
			func(f *forger) { f.remove(f.m.Root.Path(hash.Catalog)) },
			[]string{RuleCatalog},
		},
		"a damaged root catalog": {func(f *forger) {
			f.write(f.m.Root.Path(hash.Catalog),
				"\x78\x9c\x03\x00\x00\x00\x00\x01")
		}, []string{RuleCatalog}},
		"another schema": {
			layerSQL("UPDATE properties SET value = '2.6' WHERE key = 'schema'"),
			[]string{RuleCatalog},
		},
		"a write-ahead log": {layerSQL("PRAGMA journal_mode = WAL"), []string{RuleCatalog}},
		"a view for a table": {
			layerSQL("DROP TABLE chunks",
				"CREATE VIEW chunks AS SELECT 0 md5path_1, 0 md5path_2, 0 offset, 0 size, x'00' hash"),
			[]string{RuleCatalog},
		},
		"a catalog elsewhere": {
			layerSQL("UPDATE properties SET value = '/layers/two' WHERE key = 'root_prefix'"),
			[]string{RulePrefix},
		},
		"a nested catalog's wrong size":   {rootSQL("UPDATE nested_catalogs SET size = size + 1"), []string{RuleSize}},
		"a nested catalog without digest": {rootSQL("UPDATE nested_catalogs SET sha1 = ''"), []string{RuleMounts}},
		"no row for the root": {
			layerSQL("DELETE FROM catalog WHERE flags & 32",
				"UPDATE statistics SET value = value - 1 WHERE counter = 'self_dir'"),
			[]string{RuleRoot, RuleFolder, RuleStatistics},
		},
		"another mode": {
			layerSQL("UPDATE catalog SET mode = mode | 2 WHERE flags & 32"),
			[]string{RuleRoot},
		},
		"another time": {
			layerSQL("UPDATE catalog SET mtime = 1 WHERE flags & 32"),
			[]string{RuleRoot},
		},
		"no nanoseconds": {
			layerSQL("UPDATE catalog SET mtimens = NULL WHERE flags & 32"),
			[]string{RuleRoot},
		},
		"attributes on one side": {layerSQL("UPDATE catalog SET xattr = x'01010603757365722e6178797a' WHERE flags & 32", "UPDATE statistics SET value = 1 WHERE counter = 'self_xattr'"), []string{RuleRoot, RuleStatistics}},
		"no name for the root": {
			layerSQL("UPDATE catalog SET name = '' WHERE flags & 32"),
			[]string{RuleRoot, RuleRow},
		},
		"a root without its flag": {
			layerSQL("UPDATE catalog SET flags = 1 WHERE flags & 32"),
			[]string{RuleRoot},
		},
		"a root with a parent": {
			rootSQL("UPDATE catalog SET parent_1 = 1 WHERE name = ''"),
			[]string{RuleRoot},
		},
		"a mount without flag": {
			rootSQL("UPDATE catalog SET flags = 1 WHERE name = 'one'"),
			[]string{RuleMounts, RuleFolder},
		},
		"a mount without catalog": {
			rootSQL("UPDATE catalog SET flags = 3 WHERE name = 'layers'"),
			[]string{RuleMounts},
		},
		"a row below a mount": {rootSQL("UPDATE catalog SET " + pathSQL("md5path", "/layers/one/x") + ", " +
			pathSQL("parent", "/layers/one") + ", name = 'x' WHERE name = 'one.record.json'"), []string{RuleMounts}},
		"a mount listed twice": {
			rootSQL("INSERT INTO bind_mountpoints SELECT * FROM nested_catalogs"),
			[]string{RuleMounts},
		},
		"a nested flag inside": {
			layerSQL("UPDATE catalog SET flags = 33 WHERE name = 'sub'"),
			[]string{RuleMounts},
		},
		"an orphan": {
			layerSQL("UPDATE catalog SET parent_1 = 1 WHERE name = 'single'"),
			[]string{RuleTree},
		},
		"folders in a circle": {layerSQL("UPDATE catalog SET " + pathSQL("parent", "/layers/one/dir/sub") +
			" WHERE name = 'sub'"), []string{RuleTree, RuleFolder}},
		"a row at another path": {
			layerSQL("UPDATE catalog SET name = 'other' WHERE name = 'single'"),
			[]string{RuleTree},
		},
		"a wrong counter": {
			layerSQL("UPDATE statistics SET value = value + 1 WHERE counter = 'self_regular'"),
			[]string{RuleStatistics},
		},
		"a wrong sum": {
			rootSQL("UPDATE statistics SET value = value - 1 WHERE counter = 'subtree_file_size'"),
			[]string{RuleStatistics},
		},
		"a missing counter": {
			layerSQL("DELETE FROM statistics WHERE counter = 'self_external'"),
			[]string{RuleStatistics},
		},

		// Rows.
		"a name of NULL": {
			layerSQL("UPDATE catalog SET name = NULL WHERE name = 'single'"),
			[]string{RuleRow, RuleTree},
		},
		"a target of NULL": {
			layerSQL("UPDATE catalog SET symlink = NULL WHERE name = 'single'"),
			[]string{RuleRow},
		},
		"no links": {
			layerSQL("UPDATE catalog SET hardlinks = 0 WHERE name = 'single'"),
			[]string{RuleRow},
		},
		"no type":              {layerSQL("UPDATE catalog SET mode = 0 WHERE name = 'pipe'"), []string{RuleRow}},
		"a link's wrong flags": {layerSQL("UPDATE catalog SET flags = 8 WHERE name = 'link'"), []string{RuleRow}},
		"an unknown digest": {
			layerSQL("UPDATE catalog SET flags = flags | 0x300 WHERE name = 'single'"),
			[]string{RuleRow},
		},
		"broken attributes": {layerSQL("UPDATE catalog SET xattr = x'0201' WHERE name = 'single'",
			"UPDATE statistics SET value = 1 WHERE counter = 'self_xattr'"), []string{RuleRow, RuleStatistics}},
		"text for a number": {
			layerSQL("UPDATE catalog SET size = 'large' WHERE name = 'single'"),
			[]string{RuleCatalog},
		},
		"a marker too few": {
			layerSQL("DELETE FROM catalog WHERE name = '.cvmfscatalog'",
				"UPDATE statistics SET value = value - 1 WHERE counter = 'self_regular'"),
			[]string{RuleMarker, RuleStatistics},
		},
		"a marker within": {layerSQL("UPDATE catalog SET name = '.cvmfscatalog', " + pathSQL("md5path",
			"/layers/one/dir/sub/.cvmfscatalog") + " WHERE name = 'single'"), []string{RuleMarker}},
		"a marker in the top": {rootSQL("UPDATE catalog SET name = '.cvmfscatalog', " + pathSQL("parent", "") +
			", " + pathSQL("md5path", "/.cvmfscatalog") + " WHERE name = 'one.record.json'"), []string{RuleMarker}},
		"a file without digest": {
			layerSQL("UPDATE catalog SET hash = NULL WHERE name = 'single'"),
			[]string{RuleContent},
		},
		"a folder with digest": {layerSQL("UPDATE catalog SET hash = x'" + strings.Repeat("ab", 20) +
			"' WHERE name = 'sub'"), []string{RuleContent}},
		"a link with digest": {layerSQL("UPDATE catalog SET hash = x'" + strings.Repeat("ab", 20) +
			"' WHERE name = 'link'"), []string{RuleContent}},
		"a pipe with digest": {layerSQL("UPDATE catalog SET hash = x'" + strings.Repeat("ab", 20) +
			"' WHERE name = 'pipe'"), []string{RuleContent}},
		"an external pipe": {
			layerSQL("UPDATE catalog SET flags = flags | 0x80 WHERE name = 'pipe'"),
			[]string{RuleContent},
		},
		"a chunk too few": {
			layerSQL("DELETE FROM chunks WHERE offset = 0",
				"UPDATE statistics SET value = value - 1 WHERE counter = 'self_chunks'"),
			[]string{RuleChunks, RuleStatistics},
		},
		"no chunks": {layerSQL("DELETE FROM chunks",
			"UPDATE statistics SET value = 0 WHERE counter = 'self_chunks'"), []string{RuleChunks, RuleStatistics}},
		"a chunk of nobody": {
			layerSQL("UPDATE chunks SET md5path_1 = 1 WHERE offset > 40000"),
			[]string{RuleChunks},
		},
		"links without group": {
			layerSQL("UPDATE catalog SET hardlinks = 2 WHERE name IN ('a', 'b')"),
			[]string{RuleLinks},
		},
		"a lost link": {layerSQL("UPDATE catalog SET hardlinks = 1 WHERE name = 'b'"), []string{RuleLinks}},
		"links that differ": {
			layerSQL("UPDATE catalog SET mode = mode | 1 WHERE name = 'b'"),
			[]string{RuleLinks},
		},
		"links across folders": {layerSQL("UPDATE catalog SET " + pathSQL("parent", "/layers/one/dir/sub") + ", " +
			pathSQL("md5path", "/layers/one/dir/sub/b") + " WHERE name = 'b'"), []string{RuleLinks}},
		"a folder in a group": {
			layerSQL("UPDATE catalog SET hardlinks = (7 << 32) | 2 WHERE name = 'sub'"),
			[]string{RuleFolder},
		},
		"a folder's wrong count": {
			layerSQL("UPDATE catalog SET hardlinks = 5 WHERE name = 'dir'"),
			[]string{RuleFolder},
		},
		"a folder read directly": {
			layerSQL("UPDATE catalog SET flags = flags | 0x10000 WHERE name = 'dir'"),
			[]string{RuleFolder},
		},
		"a pipe with a size": {layerSQL("UPDATE catalog SET size = 5 WHERE name = 'pipe'"), []string{RuleSpecial}},
		"a device with target": {
			layerSQL("UPDATE catalog SET symlink = 'x' WHERE name = 'null'"),
			[]string{RuleSpecial},
		},
		"a link to nowhere": {layerSQL("UPDATE catalog SET symlink = '' WHERE name = 'link'"), []string{RuleRow}},

		// Objects.
		"a missing object": {func(f *forger) { f.remove(objectOf("1")) }, []string{RuleObject}},
		"a damaged object": {
			func(f *forger) { f.write(objectOf("1"), "\x78\x9c\x03\x00\x00\x00\x00\x01") },
			[]string{RuleObject},
		},
		"a cut object":    {func(f *forger) { f.write(objectOf("linked"), "\x78\x9c") }, []string{RuleObject}},
		"an empty object": {func(f *forger) { f.write(objectOf("linked"), "") }, []string{RuleObject}},
		"another size": {
			layerSQL("UPDATE catalog SET size = 2 WHERE name = 'single'",
				"UPDATE statistics SET value = value + 1 WHERE counter = 'self_file_size'"),
			[]string{RuleObject, RuleStatistics},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of the time is spent on waiting for the disk
			r := soundRepo(t)
			c.spoil(newForger(t, r))
			problems, _ := publishtest.Check(t, r)
			var got []string
			for _, p := range problems {
				if !slices.Contains(got, p.Rule) {
					got = append(got, p.Rule)
				}
			}
			slices.Sort(got)
			slices.Sort(c.want)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("rules broken (-want +got):\n%s%v", diff, problems)
			}
		})
	}
}

// object stores an object of any content.
func (f *forger) object(s hash.Suffix, plain string) hash.Digest {
	f.t.Helper()
	return publishtest.Object(f.t, f.r, s, []byte(plain))
}

// tamper replaces text in a file.
func (f *forger) tamper(name, old, with string) {
	f.t.Helper()
	b, err := os.ReadFile(f.local(name))
	if err != nil {
		f.t.Fatal(err)
	}
	changed := strings.Replace(string(b), old, with, 1)
	if changed == string(b) {
		f.t.Fatalf("no %q in %s", old, name)
	}
	f.write(name, changed)
}

// relog publishes the reflog as it is.
func (f *forger) relog() {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), "reflog")
	if err := f.d.Reflog.Write(path); err != nil {
		f.t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	publishtest.Put(f.t, f.r.Storage(), history.ReflogFile, string(raw))
	f.m.Reflog = f.r.Algorithm().Digest(raw)
	f.resign()
}

// tagSQL changes the tags and publishes them.
func (f *forger) tagSQL(statements ...string) {
	f.t.Helper()
	f.m.History, _ = f.edit(f.m.History, hash.History, statements...)
	f.d.Reflog.Set(history.Ref{Digest: f.m.History, Kind: history.Tags, Time: f.m.Published})
	f.relog()
}

func TestObjectsAreLookedForEvenIfNotRead(t *testing.T) {
	r := soundRepo(t)
	f := newForger(t, r)
	f.remove(objectOf("1"))
	f.write(objectOf("linked"), "\x78\x9c")
	keys, err := r.MasterKeys()
	if err != nil {
		t.Fatal(err)
	}
	problems, _ := checked(t, r.Storage(), Options{FQRN: r.FQRN(), Keys: keys, Dir: t.TempDir()})
	if len(problems) != 1 || problems[0].Rule != RuleObject || problems[0].At != "/layers/one/dir/sub/single" {
		t.Errorf("got %v, want the one that is missing", problems)
	}
}

func TestExpiredWhitelistIsAProblemAndTheRestIsChecked(t *testing.T) {
	r := soundRepo(t)
	newForger(t, r).remove(objectOf("1"))
	keys, err := r.MasterKeys()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{FQRN: r.FQRN(), Keys: keys, Dir: t.TempDir(), Now: r.Now().AddDate(1, 0, 0)}
	problems, _ := checked(t, r.Storage(), o)
	if len(problems) != 2 || problems[0].Rule != RuleWhitelist || problems[1].Rule != RuleObject {
		t.Errorf("got %v", problems)
	}
	o.Keys, o.Now = nil, r.Now()
	problems, _ = checked(t, r.Storage(), o)
	if len(problems) != 1 || problems[0].Rule != RuleSignature {
		t.Errorf("without the master key: %v", problems)
	}
	o.Keys, o.ReflogSum = keys, hash.SHA1.Digest(nil)
	problems, _ = checked(t, r.Storage(), o)
	if len(problems) != 2 || problems[0].Rule != RuleReflog {
		t.Errorf("with another note of the reflog: %v", problems)
	}
}

// failing is a repository that can't be read for reasons that aren't its own.
type failing struct {
	storage.Reader
	name string
}

var errBroken = errors.New("the network is broken")

func (f failing) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.Contains(name, f.name) {
		return io.NopCloser(iotest.ErrReader(errBroken)), nil
	}
	return f.Reader.Get(ctx, name)
}

func TestWhatCannotBeReadIsAnErrorNotAProblem(t *testing.T) {
	r := soundRepo(t)
	keys, err := r.MasterKeys()
	if err != nil {
		t.Fatal(err)
	}
	head, err := r.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := head.Manifest
	for _, name := range []string{
		manifest.FileName, trust.WhitelistFile, history.ReflogFile, m.Root.Path(hash.Catalog),
		m.History.Path(hash.History), objectOf("1"),
	} {
		o := Options{FQRN: r.FQRN(), Keys: keys, Content: true, Dir: t.TempDir()}
		_, err := Run(
			t.Context(),
			failing{r.Storage(), name},
			o,
			func(p Problem) { t.Errorf("%s: %v", name, p) },
		)
		if !errors.Is(err, errBroken) {
			t.Errorf("%s: got %v", name, err)
		}
		if left, err := os.ReadDir(o.Dir); err != nil || len(left) != 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, r.Storage(), Options{FQRN: r.FQRN(), Keys: keys}, func(Problem) {}); !errors.Is(
		err,
		context.Canceled,
	) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestManyPublishesStaySound(t *testing.T) {
	soundRepo(t) // makes the keys all others share
	for _, s := range []publish.Settings{
		{Algorithm: "sha1", Compression: "zlib"},
		{Algorithm: "shake128", Compression: "zlib"},
		{Algorithm: "sha1", Compression: "none"},
		{Algorithm: "shake128", Compression: "none"},
	} {
		t.Run(s.Algorithm+" "+s.Compression, func(t *testing.T) {
			t.Parallel() // most of the time is spent on waiting for the disk
			r := publishtest.New(t, publishtest.Small(s))
			tx := publishtest.Begin(t, r)
			publishtest.Ingest(t, tx, "/layers/everything", publishtest.Pack(t, publishtest.Everything()...))
			publishtest.Ingest(t, tx, "/layers/links", publishtest.Pack(
				t,
				publishtest.Folder(
					"a/",
				),
				publishtest.File("a/1", "x"),
				publishtest.HardLink("a/2", "a/1"),
				publishtest.HardLink("a/3", "a/1"),
				publishtest.File("b/1", "y"),
				publishtest.HardLink("c/1", "b/1"),
			))
			publishtest.Commit(t, tx)
			for number := uint64(1); number <= 8; number++ {
				if err := publishtest.PublishNumber(publishtest.Begin(t, r), number); err != nil {
					t.Fatal(err)
				}
			}
			if got := publishtest.MustBeSound(t, r); got.Revision != 9 || got.Roots != 9 {
				t.Errorf("looked at %+v", got)
			}
		})
	}
}
