package publish_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	. "cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/gc"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/cvmfs/trust"
	. "cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
)

func TestFreshRepositoryIsRevisionZero(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN})
	head, err := r.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := head.Manifest
	if m.Revision != 0 || !m.GarbageCollectable || m.AltPaths || m.TTL != 240*time.Second || m.Metainfo.IsZero() {
		t.Errorf("manifest %+v", m)
	}
	got := ReadAll(t, Newest(t, r), "")
	root := got[""]
	if len(got) != 1 || root.Mode != 0o040755 {
		t.Errorf("the root folder: %+v", got)
	}
	tags, err := r.ReadHistory(t.Context(), m)
	if err != nil || len(tags.Tags) != 1 || tags.Tags[0].Name != "trunk" ||
		tags.Tags[0].Description != "empty repository" {
		t.Errorf("tags %+v, %v", tags, err)
	}
	log, err := r.ReadReflog(t.Context(), m.Reflog)
	if err != nil {
		t.Fatal(err)
	}
	for d, kind := range map[hash.Digest]history.Kind{
		m.Root: history.Catalog, m.Certificate: history.Certificate, m.History: history.Tags,
		m.Metainfo: history.Metainfo,
	} {
		if !log.Has(d, kind) {
			t.Errorf("the reflog has no %v %v", kind, d)
		}
	}
	if _, err := r.Storage().Stat(t.Context(), ".cvmfs_master_replica"); err != nil {
		t.Error(err)
	}
	for i := range 256 {
		if info, err := os.Stat(filepath.Join(r.Dir(), WWWFolder, FQRN, fmt.Sprintf("data/%02x", i))); err != nil ||
			info.Mode().Perm() != 0o755 {
			t.Errorf("folder %02x: %v", i, err)
		}
	}
}

func TestEmptyFileIsTheKnownObject(t *testing.T) {
	for algorithm, want := range map[string]string{
		"sha1":     "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78",
		"shake128": "28d94b83b7229b331fc601362b8e272e02665122-shake128",
	} {
		r := New(t, Settings{FQRN: FQRN, Algorithm: algorithm})
		tx := Begin(t, r)
		if err := tx.WriteFile(t.Context(), "/empty", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		Commit(t, tx)
		d, err := hash.Parse(want)
		if err != nil {
			t.Fatal(err)
		}
		b, err := storage.ReadFile(t.Context(), r.Storage(), d.Path(hash.File), 100)
		if err != nil || len(b) == 0 {
			t.Errorf("%s: %x, %v", algorithm, b, err)
		}
	}
}

func TestTransactionWithoutChangesPublishesNothing(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN})
	tx := Begin(t, r)
	if err := tx.WriteFile(t.Context(), "/a/b", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	first := Commit(t, tx)
	tx = Begin(t, r)
	for _, err := range []error{
		tx.WriteFile(t.Context(), "/a/b", []byte("x"), 0o644), tx.Mkdir(t.Context(), "/a"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	second := Commit(t, tx)
	if second.Changed || second.Root != first.Root || second.Revision != 1 {
		t.Errorf("%+v after %+v", second, first)
	}
}

func TestFilesAreWrittenReadReplacedAndRemoved(t *testing.T) {
	ctx := t.Context()
	r := New(t, Small(Settings{}))
	tx := Begin(t, r)
	large := string(testutil.Sample(50_000))
	for path, content := range map[string]string{"/a/small": "s", "/a/large": large, "/empty": ""} {
		if err := tx.WriteFile(ctx, path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Symlink(ctx, "a/small", "/link"); err != nil {
		t.Fatal(err)
	}
	Commit(t, tx)
	tx = Begin(t, r)
	if b, err := tx.ReadFile(ctx, "/a/large"); err != nil || string(b) != large {
		t.Errorf("read back %d bytes, %v", len(b), err)
	}
	if err := tx.WriteFile(ctx, "/a/small", []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tx.Remove(ctx, "/a/large"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"remove nothing":    tx.Remove(ctx, "/a/large"),
		"remove below":      tx.Remove(ctx, "/none/at/all"),
		"read nothing":      func() error { _, err := tx.ReadFile(ctx, "/none"); return err }(),
		"read in no folder": func() error { _, err := tx.ReadFile(ctx, "/none/x"); return err }(),
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want fs.ErrNotExist", what, err)
		}
	}
	Commit(t, tx)
	got := ReadAll(t, Newest(t, r), "")
	var names []string
	for name := range got {
		names = append(names, name)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"", "a", "a/small", "empty", "link"}, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got["a/small"].Mode != 0o100600 || got["a/small"].Size != 5 || got["link"].Target != "a/small" {
		t.Errorf("%+v", got)
	}
}

func TestPathsThatMustNotBeWrittenAreRefused(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN})
	tx := Begin(t, r)
	if err := tx.WriteFile(t.Context(), "/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := tx.Mkdir(t.Context(), "/folder"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"", "/", "relative", "/a/", "//a", "/a/../b", "/./a", "/a\x00", "/.cvmfscatalog", "/a/.cvmfscatalog",
		"/a/.cvmfsautocatalog",
		"/file/below", "/" + strings.Repeat("n", 256), "/folder",
	} {
		if err := tx.WriteFile(t.Context(), path, []byte("x"), 0o644); err == nil {
			t.Errorf("%.40q was written", path)
		}
	}
}

// model is what many publishes should have left.
type model map[string]map[string]Seen

func TestManyPublishesWithRemovalsReadBack(t *testing.T) {
	ctx := t.Context()
	r := New(t, Small(Settings{Algorithm: "shake128"}))
	random := rand.New(rand.NewPCG(3, 4))
	layers := model{}
	var digests []hash.Digest
	publishes := 30
	if testing.Short() {
		publishes = 12 // the least of which one removes a layer and a folder of another
	}
	for number := range publishes {
		tx := Begin(t, r)
		for n := range 1 + random.IntN(2) {
			var items []Item
			for i := range 5 + random.IntN(20) {
				items = append(items, File(fmt.Sprintf("d%d/f%d", i%3, i),
					fmt.Sprint(random.IntN(20), strings.Repeat("y", random.IntN(9000)))))
			}
			items = append(items, Folder("d0"), Folder("d1"), Folder("d2"))
			path := fmt.Sprintf("/layers/%d.%d", number, n)
			if _, err := tx.Ingest(ctx, path, bytes.NewReader(Pack(t, items...)),
				LayerOptions{MostRows: 12, LeastRows: 3}); err != nil {
				t.Fatal(err)
			}
			layers[path] = Expect(items)
		}
		if paths := slices.Sorted(maps.Keys(layers)); number%3 == 2 {
			path := paths[random.IntN(len(paths))]
			if err := tx.Remove(ctx, path); err != nil {
				t.Fatal(err)
			}
			delete(layers, path)
		}
		if paths := slices.Sorted(maps.Keys(layers)); number%4 == 3 {
			// Within a layer: its nested catalogs change, those beside them don't.
			path := paths[random.IntN(len(paths))]
			if err := tx.Remove(ctx, path+"/d1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			maps.DeleteFunc(layers[path], func(name string, _ Seen) bool {
				return name == "d1" ||
					strings.HasPrefix(name, "d1/")
			})
		}
		s := Commit(t, tx)
		digests = append(digests, s.Root)
		if !testing.Short() || number%5 == 4 { // they read all there is
			checkModel(t, r, layers)
			checkStatistics(t, r)
		}
	}
	head, err := r.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tags, err := r.ReadHistory(ctx, head.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	trunk, _ := tags.Find("trunk")
	previous, _ := tags.Find("trunk-previous")
	last := len(digests) - 1
	if trunk.Root != digests[last] || previous.Root != digests[last-1] || trunk.Description != "current HEAD" {
		t.Errorf("trunk %+v, trunk-previous %+v", trunk, previous)
	}
	if len(tags.Tags) != len(digests)+2 {
		t.Errorf("%d tags after %d publishes", len(tags.Tags), len(digests))
	}
	if s := MustBeSound(t, r); s.Roots != len(digests) { // each has its automatic tag
		t.Errorf("%d of %d revisions were checked", s.Roots, len(digests))
	}
	if _, err := gc.Run(t.Context(), r, gc.Options{Grace: -1}); err != nil {
		t.Fatal(err)
	}
	MustBeSound(t, r)
	checkModel(t, r, layers)
}

// checkModel reads every layer back.
func checkModel(t *testing.T, r *Repository, layers model) {
	t.Helper()
	got := ReadAll(t, Newest(t, r), "/layers")
	for path, want := range layers {
		below := strings.TrimPrefix(path, "/layers/") + "/"
		for name, s := range want {
			if diff := cmp.Diff(untimed(s), untimed(got[below+name])); diff != "" {
				t.Fatalf("%s/%s (-want +got):\n%s", path, name, diff)
			}
		}
	}
	for name := range got {
		layer, rest, _ := strings.Cut(name, "/")
		_, there := layers["/layers/"+layer][rest]
		if !there && rest != "" && !catalog.IsMarker(filepath.Base(rest)) {
			t.Fatalf("%s is there, and shouldn't be", name)
		}
	}
}

// untimed forgets a folder's time: it is that of the last change within.
func untimed(s Seen) Seen {
	if s.Mode&unix.S_IFMT == unix.S_IFDIR {
		s.Mtime, s.MtimeN = 0, 0
	}
	return s
}

func TestUnchangedCatalogsKeepTheirDigests(t *testing.T) {
	r := New(t, Small(Settings{}))
	tx := Begin(t, r)
	Ingest(t, tx, "/layers/one", Pack(t, Everything()...))
	Commit(t, tx)
	one, err := Newest(t, r).Holder(t.Context(), "/layers/one/bin")
	if err != nil {
		t.Fatal(err)
	}
	tx = Begin(t, r)
	l := Ingest(t, tx, "/layers/two", Pack(t, Everything()...))
	if l.Stats.NewObjects != 0 || l.Stats.ReusedFiles != l.Stats.Files {
		t.Errorf("the same content again: %+v", l.Stats)
	}
	if s := Commit(t, tx); s.Catalogs != 2 {
		t.Errorf("%d catalogs were written, want the layer's and the root's", s.Catalogs)
	}
	after, err := Newest(t, r).Holder(t.Context(), "/layers/one/bin")
	if err != nil || after != one {
		t.Errorf("layer one's catalog is %v now, was %v (%v)", after, one, err)
	}
}

func TestContentIsStoredAgainIfItsObjectIsGone(t *testing.T) {
	r := New(t, Small(Settings{}))
	tx := Begin(t, r)
	Ingest(t, tx, "/one", Pack(t, Everything()...))
	Commit(t, tx)
	for _, damage := range []func(path string) error{
		os.Remove,
		func(path string) error { return os.Truncate(path, 0) },
	} {
		objects, err := filepath.Glob(filepath.Join(r.Dir(), WWWFolder, FQRN, "data/??/*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range objects {
			if !strings.ContainsAny(path[len(path)-1:], "CHXM") {
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
			}
		}
		tx = Begin(t, r)
		tx.Remove(t.Context(), "/two") // is there the second time
		Ingest(t, tx, "/two", Pack(t, Everything()...))
		Commit(t, tx)
		ReadAll(t, Newest(t, r), "/two")
	}
}

func TestLayersAreIngestedAtOnce(t *testing.T) {
	r := New(t, Small(Settings{}))
	tx := Begin(t, r)
	archive := Pack(t, Everything()...)
	var running sync.WaitGroup
	stored := make([]int, 8)
	for i := range stored {
		running.Go(func() {
			l, err := tx.Ingest(context.Background(), fmt.Sprintf("/layers/%d", i), bytes.NewReader(archive),
				LayerOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			stored[i] = l.Stats.NewObjects
		})
	}
	running.Wait()
	Commit(t, tx)
	var total int
	for _, n := range stored {
		total += n
	}
	objects, err := filepath.Glob(filepath.Join(r.Dir(), WWWFolder, FQRN, "data/??/*"))
	if err != nil {
		t.Fatal(err)
	}
	files := slices.DeleteFunc(objects,
		func(path string) bool { return strings.ContainsAny(path[len(path)-1:], "CHXM") })
	if total != len(files) {
		t.Errorf("%d objects were stored, there are %d", total, len(files))
	}
	v := Newest(t, r)
	for i := range stored {
		if got := ReadAll(t, v, fmt.Sprintf("/layers/%d", i)); len(got) != len(Everything())+2 {
			t.Errorf("layer %d has %d entries", i, len(got))
		}
	}
}

func TestSecondPublisherIsRefusedAndToldOfTheFirst(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN})
	tx := Begin(t, r)
	_, err := r.Begin(t.Context())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("got %v, want ErrLocked and the process", err)
	}
	if err := tx.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := Begin(t, r).Abort(); err != nil {
		t.Fatal(err)
	}
}

func TestExpiredWhitelistIsRefused(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN, WhitelistDays: 1})
	later, err := Open(r.Dir(), Options{Now: func() time.Time { return time.Now().Add(48 * time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := later.Begin(t.Context()); !errors.Is(err, ErrExpired) ||
		!strings.Contains(err.Error(), "publish resign") {
		t.Errorf("got %v, want ErrExpired and the remedy", err)
	}
	head, err := later.Head(t.Context())
	if !errors.Is(err, trust.ErrExpired) || head == nil || head.Manifest.Revision != 0 {
		t.Errorf("head %+v, %v", head, err)
	}
	Begin(t, r) // the lock is free
}

func TestTagsDoNotMove(t *testing.T) {
	r := New(t, Settings{FQRN: FQRN})
	for i, want := range []error{nil, fs.ErrExist} {
		tx := Begin(t, r)
		if err := tx.Mkdir(t.Context(), fmt.Sprintf("/%d", i)); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Commit(t.Context(), CommitOptions{Tag: "v1", Description: "one"}); !errors.Is(err, want) {
			t.Errorf("commit %d: %v, want %v", i, err, want)
		}
	}
	if v := Newest(t, r); v.Number != 1 {
		t.Errorf("revision %d", v.Number)
	}
}

func TestRepositoryIsCreatedWholeOrNotAtAll(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "repo")
	for _, s := range []Settings{
		{FQRN: "Not A Name"},
		{FQRN: FQRN, Algorithm: "md5"},
		{FQRN: FQRN, Compression: "zstd"},
		{FQRN: FQRN, MaxChunk: 1},
		{FQRN: FQRN, TTL: -1},
	} {
		if err := Create(t.Context(), dir, s, Options{}); err == nil {
			t.Errorf("%+v: was created", s)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Create(ended, dir, Settings{FQRN: FQRN, Keys: Keys()}, Options{}); err == nil {
		t.Error("created in spite of the context's end")
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("%v is left behind, %v", left, err)
	}
	if err := Create(t.Context(), dir, Settings{FQRN: FQRN, Keys: Keys()}, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), dir, Settings{FQRN: FQRN, Keys: Keys()}, Options{}); !errors.Is(
		err,
		fs.ErrExist,
	) {
		t.Errorf("a second time: %v, want fs.ErrExist", err)
	}
}

func TestFullDiskIsReportedAndTheNextPublishWorks(t *testing.T) {
	disk := testutil.SmallDisk(t, "8m")
	r := NewIn(t, disk, Settings{FQRN: FQRN})
	tx := Begin(t, r)
	Ingest(t, tx, "/small", Pack(t, Everything()...))
	Commit(t, tx)
	tx = Begin(t, r)
	random := rand.NewChaCha8([32]byte{})
	noise := make([]byte, 12<<20)
	random.Read(noise)
	_, err := tx.Ingest(
		t.Context(),
		"/large",
		bytes.NewReader(Pack(t, File("noise", string(noise)))),
		LayerOptions{},
	)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if err := tx.Abort(); err != nil {
		t.Error(err)
	}
	if v := Newest(t, r); v.Number != 1 {
		t.Errorf("revision %d", v.Number)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	tx = Begin(t, r)
	Ingest(t, tx, "/large", Pack(t, File("noise", string(noise))))
	Commit(t, tx)
	ReadAll(t, Newest(t, r), "")
}

func TestReadOnlyFolderIsRefusedWithARemedy(t *testing.T) {
	disk := testutil.SmallDisk(t, "8m")
	r := NewIn(t, disk, Settings{FQRN: FQRN})
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Begin(t.Context()); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "may be written") {
		t.Errorf("got %v, want EROFS and the remedy", err)
	}
}
