package gc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/check"
	"cvmfs-graphdriver/cvmfs/publish/gc"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/test/publishtest"
)

func TestMain(m *testing.M) {
	publishtest.Main(m, func(ctx context.Context, r *publish.Repository) error {
		_, err := gc.Run(ctx, r, gc.Options{Grace: -1})
		return err
	})
}

// reopened is a repository some time later.
func reopened(t testing.TB, r *publish.Repository, later time.Duration) *publish.Repository {
	t.Helper()
	r, err := publish.Open(r.Dir(), publish.Options{Now: func() time.Time { return time.Now().Add(later) }})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func collect(t testing.TB, r *publish.Repository, o gc.Options) *gc.Summary {
	t.Helper()
	s, err := gc.Run(context.Background(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// published makes a repository of so many revisions.
func published(t testing.TB, revisions uint64) *publish.Repository {
	t.Helper()
	r := publishtest.New(t, publishtest.Small(publish.Settings{}))
	for number := uint64(1); number <= revisions; number++ {
		if err := publishtest.PublishNumber(publishtest.Begin(t, r), number); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// contents lists all files of a repository with their content's digests.
func contents(t testing.TB, r *publish.Repository) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := r.Storage().List(t.Context(), "", func(f storage.File) error {
		b, err := storage.ReadFile(t.Context(), r.Storage(), f.Name, 1<<30)
		all[f.Name] = hash.SHA1.Digest(b).Hex()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func roots(t testing.TB, r *publish.Repository) int {
	t.Helper()
	path := filepath.Join(t.TempDir(), "reflog")
	raw, err := storage.ReadFile(t.Context(), r.Storage(), history.ReflogFile, history.MaxSize)
	if err == nil {
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	log, err := history.ReadReflog(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, ref := range log.Refs {
		if ref.Kind == history.Catalog {
			n++
		}
	}
	return n
}

func TestCollectionKeepsTheNewestRevisionAndItsPredecessor(t *testing.T) {
	r := published(t, 9)
	before := len(contents(t, r))
	s := collect(t, r, gc.Options{})
	// Revisions 9 and 8, which is trunk-previous, of 0 to 9.
	if s.Kept != 2 || s.Removed != 8 || len(s.Tags) != 7 || s.Objects == 0 || s.Bytes == 0 || s.Orphans != 0 {
		t.Errorf("%+v", s)
	}
	// a history and the status came
	if after := len(contents(t, r)); after != before-s.Objects+1 && after != before-s.Objects+2 {
		t.Errorf("%d files before and %d after %d were removed", before, after, s.Objects)
	}
	if n := roots(t, r); n != 2 {
		t.Errorf("%d revisions in the reflog", n)
	}
	publishtest.CheckNumber(t, r, 9)
	publishtest.MustBeSound(t, r)
	if again := collect(t, r, gc.Options{Grace: -1}); again.Objects != 0 || again.Removed != 0 || again.Kept != 2 {
		t.Errorf("a second collection found %+v", again)
	}
	status, err := storage.ReadFile(t.Context(), r.Storage(), ".cvmfs_status.json", 1000)
	if err != nil || !strings.Contains(string(status), `"last_gc":"`+r.Now().Format("Mon Jan")) {
		t.Errorf("status %q, %v", status, err)
	}
	if _, err := os.Stat(filepath.Join(r.Dir(), "gc.doomed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the list of what to remove is left: %v", err)
	}
	for number := uint64(10); number <= 12; number++ {
		if err := publishtest.PublishNumber(publishtest.Begin(t, r), number); err != nil {
			t.Fatal(err)
		}
	}
	publishtest.CheckNumber(t, r, 12)
	publishtest.MustBeSound(t, r)
}

func TestCollectionKeepsWhatItIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		o       gc.Options
		tagged  uint64
		age     time.Duration // of all that was published
		kept    int
		removed int
	}{
		"three older ones":        {gc.Options{KeepRevisions: 3}, 0, 0, 4, 3},
		"more than there are":     {gc.Options{KeepRevisions: 50}, 0, 0, 7, 0},
		"those of an hour":        {gc.Options{KeepAge: time.Hour}, 0, 0, 7, 0},
		"none of an hour":         {gc.Options{KeepAge: time.Hour}, 0, 2 * time.Hour, 2, 5},
		"a tag":                   {gc.Options{}, 2, 0, 3, 4},
		"a tag and one older one": {gc.Options{KeepRevisions: 1}, 2, 0, 3, 4},
	} {
		t.Run(name, func(t *testing.T) {
			r := publishtest.New(t, publishtest.Small(publish.Settings{}))
			for number := uint64(1); number <= 6; number++ {
				tx := publishtest.Begin(t, r)
				if err := tx.WriteFile(t.Context(), "/file", fmt.Append(nil, number), 0o644); err != nil {
					t.Fatal(err)
				}
				o := publish.CommitOptions{}
				if number == c.tagged {
					o.Tag = "release/1.0"
				}
				if _, err := tx.Commit(t.Context(), o); err != nil {
					t.Fatal(err)
				}
			}
			r = reopened(t, r, c.age)
			s := collect(t, r, c.o)
			if s.Kept != c.kept || s.Removed != c.removed || roots(t, r) != c.kept {
				t.Errorf("%+v with %d revisions left, want %d kept and %d removed", s, roots(t, r), c.kept, c.removed)
			}
			if got := publishtest.MustBeSound(t, r); got.Revision != 6 {
				t.Errorf("revision %d", got.Revision)
			}
			tags, err := r.Tags(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			released := slices.ContainsFunc(tags, func(tag history.Tag) bool { return tag.Name == "release/1.0" })
			if released != (c.tagged != 0) {
				t.Errorf("tags %+v", tags)
			}
		})
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	r := published(t, 7)
	before := contents(t, r)
	dry := collect(t, r, gc.Options{DryRun: true})
	if diff := cmp.Diff(before, contents(t, r)); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
	if wet := collect(t, r, gc.Options{}); !cmp.Equal(dry, wet) {
		t.Errorf("it told %+v and would do %+v", dry, wet)
	}
}

func TestOrphansGoWhenTheyAreOld(t *testing.T) {
	r := published(t, 1)
	orphan := func(content string, age time.Duration) string {
		d := publishtest.Object(t, r, hash.Chunk, []byte(content))
		path := filepath.Join(r.Storage().String(), d.Path(hash.Chunk))
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
		return d.Path(hash.Chunk)
	}
	old, young := orphan("old", 25*time.Hour), orphan("young", time.Hour)
	publishtest.Put(t, r.Storage(), "data/ab/README", "not ours")
	s := collect(t, r, gc.Options{KeepRevisions: 9})
	if s.Orphans != 1 || s.Objects != 1 || s.Young != 1 || s.Foreign != 1 {
		t.Errorf("%+v", s)
	}
	left := contents(t, r)
	if left[old] != "" || left[young] == "" || left["data/ab/README"] == "" {
		t.Errorf("old left: %t, young left: %t, another's left: %t", left[old] != "", left[young] != "",
			left["data/ab/README"] != "")
	}
	if s := collect(t, r, gc.Options{KeepRevisions: 9, Grace: -1}); s.Objects != 1 || contents(t, r)[young] != "" {
		t.Errorf("without grace: %+v", s)
	}
	publishtest.MustBeSound(t, r)
}

// What a layer was made of is known by its content: after it was collected it must be stored again.
func TestContentThatWasCollectedIsStoredAgain(t *testing.T) {
	r := published(t, 9) // the layer of revision 1 went with 6
	collect(t, r, gc.Options{})
	tx := publishtest.Begin(t, r)
	if err := publishtest.PublishNumber(tx, 1); err != nil {
		t.Fatal(err)
	}
	publishtest.MustBeSound(t, r)
	if got := publishtest.ReadAll(t, publishtest.Newest(t, r), "/layers/1"); got["d3/f39"].Size == 0 {
		t.Errorf("%+v", got)
	}
}

func TestReadersOfTheNewestRevisionNoticeNothing(t *testing.T) {
	r := published(t, 7)
	v := publishtest.Newest(t, r)
	collect(t, r, gc.Options{Grace: -1})
	before := publishtest.ReadAll(t, v, "")
	after := publishtest.Newest(t, r)
	if after.Number != v.Number {
		t.Errorf("revision %d after %d", after.Number, v.Number)
	}
	if diff := cmp.Diff(before, publishtest.ReadAll(t, after, "")); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
}

func TestCollectionIsRefused(t *testing.T) {
	no := false
	r := publishtest.New(t, publishtest.Small(publish.Settings{GarbageCollectable: &no}))
	if _, err := gc.Run(t.Context(), r, gc.Options{}); !errors.Is(err, gc.ErrNotCollectable) {
		t.Errorf("a repository that isn't collectable: %v", err)
	}
	r = published(t, 7)
	begun := publishtest.Begin(t, r)
	if _, err := gc.Run(t.Context(), r, gc.Options{}); !errors.Is(err, publish.ErrLocked) {
		t.Errorf("while a transaction runs: %v", err)
	}
	if err := begun.Abort(); err != nil {
		t.Fatal(err)
	}
	if _, err := gc.Run(t.Context(), r, gc.Options{KeepRevisions: -1}); err == nil {
		t.Error("it keeps -1 revisions")
	}
	head, err := r.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kept := contents(t, r)
	root := filepath.Join(r.Storage().String(), head.Manifest.Root.Path(hash.Catalog))
	stored, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	overwrite := func(content []byte) {
		if err := os.WriteFile(root, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	overwrite([]byte("\x78\x9c\x03\x00\x00\x00\x00\x01"))
	if _, err := gc.Run(t.Context(), r, gc.Options{}); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("with a damaged catalog: %v", err)
	}
	overwrite(stored)
	if diff := cmp.Diff(kept, contents(t, r)); diff != "" {
		t.Errorf("a collection that was refused changed something (-before +after)\n%s", diff)
	}
	r = reopened(t, r, 366*24*time.Hour)
	if _, err := gc.Run(t.Context(), r, gc.Options{}); !errors.Is(err, publish.ErrExpired) {
		t.Errorf("with an expired whitelist: %v", err)
	}
}

// mortal is a storage that can be changed so many times, and then no more.
type mortal struct {
	*storage.Local
	mu   sync.Mutex
	left int
}

var errDead = errors.New("dead")

func (m *mortal) spend() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left == 0 {
		return errDead
	}
	m.left--
	return nil
}

func (m *mortal) Put(ctx context.Context, name string, content io.Reader, size int64) error {
	if err := m.spend(); err != nil {
		return err
	}
	return m.Local.Put(ctx, name, content, size)
}

func (m *mortal) Remove(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := m.spend(); err != nil {
			return err
		}
		if err := m.Local.Remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// mustBeReadable checks a repository whose publisher died: its reflog may be ahead of its manifest, which the next to
// take the lock mends. Readers have no business with it.
func mustBeReadable(t testing.TB, r *publish.Repository) {
	t.Helper()
	problems, _ := publishtest.Check(t, r)
	for _, p := range problems {
		if p.Rule != check.RuleReflog {
			t.Error(p)
		}
	}
}

func TestCollectionCutOffAnywhereIsFinishedByTheNext(t *testing.T) {
	whole := published(t, 7)
	next := func(left int) int { return max(left+1, left*5/4) }
	if testing.Short() {
		next = func(left int) int { return max(left+1, left*4) }
	}
	changes := 0
	for _, publishAgain := range []bool{false, true} {
		for left, done := 0, false; !done; left = next(left) {
			dir := filepath.Join(t.TempDir(), "repo")
			if err := os.CopyFS(dir, os.DirFS(whole.Dir())); err != nil {
				t.Fatal(err)
			}
			local, err := storage.OpenLocal(filepath.Join(dir, "www/cvmfs", whole.FQRN()))
			if err != nil {
				t.Fatal(err)
			}
			dying, err := publish.Open(dir, publish.Options{Storage: &mortal{Local: local, left: left}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = gc.Run(t.Context(), dying, gc.Options{})
			if done = err == nil; !done && !errors.Is(err, errDead) {
				t.Fatal(err)
			}
			changes = left
			r, err := publish.Open(dir, publish.Options{})
			if err != nil {
				t.Fatal(err)
			}
			mustBeReadable(t, r)
			publishtest.CheckNumber(t, r, 7)
			if publishAgain {
				if err := publishtest.PublishNumber(publishtest.Begin(t, r), 8); err != nil {
					t.Fatal(err)
				}
			}
			collect(t, r, gc.Options{}) // within the grace: what was doomed goes nevertheless
			publishtest.MustBeSound(t, r)
			// The history that was to be published is an orphan, and young.
			if s := collect(t, r, gc.Options{Grace: -1, DryRun: true}); s.Objects > 1 || s.Orphans != s.Objects {
				t.Errorf("cut off after %d changes, then finished, and %+v is left", left, s)
			}
		}
	}
	if changes < 20 {
		t.Errorf("a collection made %d changes: too few to have been tried", changes)
	}
}

// TestHistoryThatACutOffCollectionStoredSurvivesTheNext has the second collection publish the very object that the
// first left as an orphan, and that it found to be removed.
func TestHistoryThatACutOffCollectionStoredSurvivesTheNext(t *testing.T) {
	r := published(t, 3)
	local := r.Storage().(*storage.Local)
	dying, err := publish.Open(
		r.Dir(),
		publish.Options{Storage: &mortal{Local: local, left: 1}},
	) // the history, and not the reflog
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gc.Run(t.Context(), dying, gc.Options{}); !errors.Is(err, errDead) {
		t.Fatalf("got %v, want a collection that was cut off", err)
	}
	collect(t, r, gc.Options{Grace: -1})
	publishtest.MustBeSound(t, r)
	publishtest.CheckNumber(t, r, 3)
	if s := collect(t, r, gc.Options{Grace: -1}); s.Objects != 0 {
		t.Errorf("a second collection found %+v", s)
	}
}

func TestKilledWhileCollectingTheRepositoryIsSound(t *testing.T) {
	rounds := 15
	if testing.Short() {
		rounds = 4
	}
	r := publishtest.New(t, publishtest.Small(publish.Settings{}))
	random := rand.New(rand.NewPCG(3, 4))
	for range rounds {
		publishtest.Kill(t, r, time.Duration(random.IntN(200))*time.Millisecond)
		head, err := r.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		publishtest.CheckNumber(t, r, head.Manifest.Revision)
		mustBeReadable(t, r)
	}
	collect(t, r, gc.Options{Grace: -1})
	publishtest.MustBeSound(t, r)
	if s := collect(t, r, gc.Options{Grace: -1}); s.Objects != 0 {
		t.Errorf("a second collection found %+v", s)
	}
}
