package objects

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// imageSet is a folder of images, as a driver keeps it.
type imageSet struct {
	dir string

	mu      sync.Mutex
	mounted map[string]bool
}

func newImages(dir string) *imageSet { return &imageSet{dir: dir, mounted: map[string]bool{}} }

func (i *imageSet) Images() (list []Image, err error) {
	entries, err := os.ReadDir(i.dir)
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, e := range entries {
		list = append(list, Image{Key: e.Name(), Table: i.path(e.Name()), Mounted: i.mounted[e.Name()]})
	}
	return list, err
}

func (i *imageSet) path(key string) string { return filepath.Join(i.dir, key, "objects") }

func (i *imageSet) mount(key string, mounted bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.mounted[key] = mounted
}

// used sets when an image was last used, long ago.
func (i *imageSet) used(t testing.TB, key string, ago time.Duration) {
	t.Helper()
	at := time.Now().Add(-ago)
	if err := os.Chtimes(i.path(key), at, at); err != nil {
		t.Fatal(err)
	}
}

// add makes an image of objects and returns where its table names them.
func (i *imageSet) add(t testing.TB, key string, objs ...Object) (*Table, []Ref) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(i.dir, key), 0o755))
	must(t, os.WriteFile(i.path(key), encode(t, []string{"r"}, from(objs, 0)), 0o600))
	table, err := OpenTable(i.path(key))
	must(t, err)
	x := NewIndex([16]byte{})
	x.Add(table)
	refs := make([]Ref, table.Len())
	for n := range refs {
		refs[n] = Ref{x, table, uint32(n)}
	}
	return table, refs
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// cached is a store that knows images, with a limit.
func cached(t testing.TB, repo *repository, limit int64) (*Store, *imageSet) {
	t.Helper()
	dir := t.TempDir()
	images := newImages(filepath.Join(dir, "images"))
	must(t, os.Mkdir(images.dir, 0o755))
	cfg := configIn(dir, sources{"r": fetcher(t, repo.URL)})
	cfg.Images, cfg.Limits = images, Limits{Limit: limit, Floor: 1}
	return open(t, cfg), images
}

// several stores contents of a size, each another.
func several(repo *repository, seed, n, size int) (objs []Object) {
	for i := range n {
		objs = append(objs, repo.whole(noise(seed+i, size)))
	}
	return objs
}

// fetchAll fetches what there is room for, if need be after eviction, for which a single fetch waits a moment only.
func fetchAll(t testing.TB, s *Store, refs []Ref) {
	t.Helper()
	for _, r := range refs {
		eventually(t, "room for an object", func() bool {
			err := s.Fetch(t.Context(), r)
			if errors.Is(err, ErrLimit) {
				return false
			}
			must(t, err)
			return true
		})
	}
}

func here(s *Store, refs []Ref) (n int) {
	for _, r := range refs {
		if s.Has(r) {
			n++
		}
	}
	return n
}

// idle waits until eviction has come to its end.
func idle(t testing.TB, s *Store) {
	t.Helper()
	eventually(t, "the end of eviction", func() bool {
		s.eviction.mu.Lock()
		defer s.eviction.mu.Unlock()
		return !s.eviction.running
	})
}

// diskUse adds up what files take.
func diskUse(t testing.TB, s *Store) (bytes int64) {
	t.Helper()
	for _, name := range names(t, s.cfg.Dir) {
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(s.cfg.Dir, place(name)), &st))
		bytes += st.Blocks * sector
	}
	return bytes
}

const mib = 1 << 20

func TestEvictionTakesWhatWasUsedLongestAgo(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 4*mib)
	shared := repo.whole(noise(999, 100_000))
	var all [][]Ref
	for i, key := range []string{"a", "b", "c"} {
		_, refs := images.add(t, key, append(several(repo, 100*i, 10, 100_000), shared)...)
		fetchAll(t, s, refs)
		images.used(t, key, time.Duration(10-i)*time.Hour)
		all = append(all, refs)
	}
	images.used(t, "a", time.Hour) // a is the one used last, b the first to go
	_, more := images.add(t, "d", several(repo, 1000, 14, 100_000)...)
	fetchAll(t, s, more)
	idle(t, s)
	got := []int{here(s, all[0]), here(s, all[1]), here(s, all[2]), here(s, more)}
	if got[0] != 11 || got[1] > 7 || got[2] != 11 || got[3] != 14 {
		t.Errorf("objects left of a, b, c, d: %v of 11, 11, 11, 14", got)
	}
	if !s.Has(all[1][10]) {
		t.Error("what a and b share has a's use")
	}
	st, err := s.Status()
	must(t, err)
	if want := diskUse(t, s); st.Used != want || want > 4*mib || st.Evicted.Objects == 0 {
		t.Errorf("%+v, on disk are %d bytes", st, want)
	}
}

func TestImagesInUseKeepTheirObjects(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 3*mib)
	table, used := images.add(t, "used", several(repo, 0, 8, 100_000)...)
	_, mounted := images.add(t, "mounted", several(repo, 100, 8, 100_000)...)
	_, pinned := images.add(t, "pinned", several(repo, 200, 8, 100_000)...)
	for _, refs := range [][]Ref{used, mounted, pinned} {
		fetchAll(t, s, refs)
	}
	s.Used(table)
	images.mount("mounted", true)
	must(t, s.Pin("pinned", true))
	for _, key := range []string{"used", "mounted", "pinned"} {
		images.used(t, key, time.Hour)
	}
	_, others := images.add(t, "others", several(repo, 300, 40, 100_000)...)
	for _, r := range others {
		if err := s.Fetch(t.Context(), r); err != nil && !errors.Is(err, ErrLimit) {
			t.Fatal(err)
		}
	}
	idle(t, s)
	if got := []int{here(s, used), here(s, mounted), here(s, pinned)}; !cmp.Equal(got, []int{8, 8, 8}) {
		t.Errorf("objects left: %v", got)
	}
	if n := diskUse(t, s); n > 3*mib {
		t.Errorf("%d bytes on disk", n)
	}
	must(t, s.Pin("pinned", false))
	images.mount("mounted", false)
	done, err := s.Clean(t.Context(), CleanOptions{To: 1})
	if !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), "for 1 images that are mounted") {
		t.Errorf("what is used keeps more than was asked for: %v", err)
	}
	got := []int{here(s, used), here(s, mounted), here(s, pinned), here(s, others)}
	if !cmp.Equal(got, []int{8, 0, 0, 0}) {
		t.Errorf("%+v removed; objects left: %v", done, got)
	}
}

// An image that is mounted while its objects are about to go keeps those that are still here.
func TestUsedImageIsTakenOutOfAPlan(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	table, refs := images.add(t, "a", several(repo, 0, 200, 1000)...)
	fetchAll(t, s, refs)
	p, err := s.makePlan(t.Context(), planLength, false, func(ctx context.Context) (*survey, error) {
		v, err := s.survey(ctx)
		return v, err
	}, (*known).inUse)
	must(t, err)
	if _, err := s.step(p, 1<<30); err != nil {
		t.Fatal(err)
	}
	left := here(s, refs)
	if left == 0 || left == len(refs) {
		t.Fatalf("a step left %d of %d objects", left, len(refs))
	}
	s.Used(table)
	for range 10 {
		if _, err := s.step(p, 1<<30); err != nil {
			t.Fatal(err)
		}
	}
	if n := here(s, refs); n != left {
		t.Errorf("%d objects left of the %d there were when the image was used", n, left)
	}
}

// What is pinned, or used, after a plan was dropped is in none any more: whoever still has it removes nothing.
func TestAPlanThatWasDroppedRemovesNothing(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 64*mib)
	_, refs := images.add(t, "a", several(repo, 0, 5, 10_000)...)
	fetchAll(t, s, refs)
	plan := func() *plan {
		p, err := s.makePlan(t.Context(), planLength, false, s.survey, (*known).inUse)
		must(t, err)
		s.eviction.mu.Lock()
		defer s.eviction.mu.Unlock()
		s.eviction.main = p
		return p
	}
	p := plan()
	must(t, s.Pin("a", true))
	if done, err := s.step(p, 1<<30); !errors.Is(err, errDropped) || done.Objects > 0 {
		t.Errorf("%+v of a pinned image, %v", done, err)
	}
	must(t, s.Pin("a", false))
	plan()
	s.eviction.forgetPlan()
	if done, err := s.evictStep(t.Context(), 1<<30); err != nil || done.Objects == 0 { // all, if time is enough
		t.Errorf("%+v, %v: a new plan", done, err)
	}
}

// An image that is used while a plan is being made keeps its objects, too.
func TestImageUsedWhileAPlanIsMadeIsNotInIt(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	table, refs := images.add(t, "a", several(repo, 0, 20, 1000)...)
	fetchAll(t, s, refs)
	done, err := s.purge(t.Context(), func(ctx context.Context) (*survey, error) {
		s.Used(table)
		s.eviction.mu.Lock()
		s.eviction.holds = nil // as if images had been listed before
		s.eviction.mu.Unlock()
		return s.survey(ctx)
	}, (*known).inUse)
	if err != nil || done.Objects != 0 || here(s, refs) != 20 {
		t.Errorf("%+v, %v, %d objects left", done, err, here(s, refs))
	}
}

func TestReadsGoOnWhereImagesInUseHoldAll(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	const limit = 4 * mib
	s, images := cached(t, repo, limit)
	objs := several(repo, 0, 80, 100_000)
	chunked := noise(500, 3*mib)
	objs = append(objs, repo.chunked(chunked, 256<<10))
	_, refs := images.add(t, "a", objs...)
	images.mount("a", true)
	stored := 0
	for i, r := range refs[:80] {
		err := s.Fetch(t.Context(), r)
		if err == nil {
			stored++
		} else if !errors.Is(err, ErrLimit) || errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		b := make([]byte, 100_000)
		if n, err := s.ReadAt(t.Context(), r, b, 0); n != len(b) || !bytes.Equal(b, noise(i, 100_000)) {
			t.Fatalf("object %d: %d bytes, %v", i, n, err)
		}
	}
	for off := 0; off < len(chunked); off += 64 << 10 {
		b := make([]byte, 64<<10)
		if n, err := s.ReadAt(t.Context(), refs[80], b, int64(off)); n != len(b) || !bytes.Equal(b, chunked[off:][:n]) {
			t.Fatalf("at %d: %d bytes, %v", off, n, err)
		}
		if st, _ := s.Status(); st.Used > limit+limit/unstoredPart+2*(256<<10) {
			t.Fatalf("%+v", st)
		}
	}
	if n := repo.Requests(objs[80].Chunks[3].Digest.Hex()[2:]); n != 1 {
		t.Errorf("a chunk was fetched %d times for reads one after another", n)
	}
	if stored == 80 || diskUse(t, s) > limit {
		t.Errorf("%d objects stored, %d bytes on disk", stored, diskUse(t, s))
	}
	st, _ := s.Status()
	if st.Unstored == 0 || st.Refused != 0 {
		t.Errorf("%+v", st)
	}
	// Somebody stops a container: things are stored again.
	images.mount("a", false)
	_, more := images.add(t, "b", several(repo, 600, 5, 100_000)...)
	s.admission.unstick()
	eventually(t, "objects to be stored again", func() bool { return s.Fetch(t.Context(), more[0]) == nil })
}

// A disk that others fill is told by name, and all is well again when there is room.
func TestDiskFilledByOthersIsToldAndRecovers(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	dir := smallDisk(t, 8*mib)
	cfg := configIn(dir, sources{"r": fetcher(t, repo.URL)})
	images := newImages(filepath.Join(dir, "images"))
	must(t, os.Mkdir(images.dir, 0o755))
	cfg.Images = images
	s := open(t, cfg)
	objs := several(repo, 0, 10, 100_000)
	_, refs := images.add(t, "a", append(objs, repo.chunked(noise(50, 300_000), 100_000))...)
	images.mount("a", true)
	fetchAll(t, s, refs[:5])
	ballast := filepath.Join(dir, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 7*mib+100<<10), 0o600))
	var full *SpaceError
	for _, r := range refs[8:] {
		err := s.Fetch(t.Context(), r)
		if !errors.Is(err, syscall.ENOSPC) || !errors.As(err, &full) || full.Floor != 8*mib/20 {
			t.Errorf("%v", err)
		}
		if _, err := s.ReadAt(t.Context(), r, make([]byte, 10), 0); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%v", err)
		}
	}
	if here(s, refs[:5]) != 5 {
		t.Error("objects of a mounted image have gone: their space wouldn't have come free")
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if free := int64(st.Bavail) * st.Bsize; free < 8*mib/20 {
		t.Errorf("%d bytes free: we went below the floor", free)
	}
	must(t, os.Remove(ballast))
	fetchAll(t, s, refs)
}

// What isn't in use gives way to others who fill the disk.
func TestCacheGivesWayAtTheFloor(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	dir := smallDisk(t, 8*mib)
	images := newImages(filepath.Join(dir, "images"))
	must(t, os.Mkdir(images.dir, 0o755))
	cfg := configIn(dir, sources{"r": fetcher(t, repo.URL)})
	cfg.Images = images
	s := open(t, cfg)
	_, old := images.add(t, "old", several(repo, 0, 30, 100_000)...)
	fetchAll(t, s, old)
	must(t, os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 9*mib/2), 0o600))
	_, young := images.add(t, "young", several(repo, 100, 5, 100_000)...)
	images.used(t, "old", time.Hour)
	fetchAll(t, s, young)
	idle(t, s)
	st, err := s.Status()
	must(t, err)
	if here(s, old) == 30 || here(s, young) != 5 || st.Free < st.Floor || st.Freed < 100_000 {
		t.Errorf("%d of 30 old objects, %d of 5 young ones; %+v", here(s, old), here(s, young), st)
	}
}

func TestRemovedImageGivesItsObjectsBack(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	shared := several(repo, 500, 3, 1000)
	gone, a := images.add(t, "a", append(several(repo, 0, 100, 1000), shared...)...)
	_, b := images.add(t, "b", append(several(repo, 200, 10, 1000), shared...)...)
	fetchAll(t, s, a)
	fetchAll(t, s, b)
	must(t, os.RemoveAll(filepath.Join(images.dir, "a")))
	s.Forget(gone)
	eventually(t, "the objects of the removed image to go", func() bool { return here(s, a) == 3 })
	if here(s, b) != 13 {
		t.Errorf("%d of 13 objects of the other image are left", here(s, b))
	}
}

// Below what is left to others objects go, and nothing is refused.
func TestTheCacheGivesWayBeforeTheFloor(t *testing.T) {
	t.Parallel()
	both := Limits{Limit: 1000, Floor: 50, Yield: 20}.on(1000)
	for free, want := range map[int64]int64{250: -50, 200: 0, 150: 50, 60: 140} {
		g := admission{limits: both}
		if _, over := g.excess(free, 500, limitEnd, floorEnd); over != want {
			t.Errorf("%d free: %d too few, want %d", free, over, want)
		}
		if _, err := g.promise(1, free, 500, true); err != nil {
			t.Errorf("%d free: %v", free, err)
		}
	}
	g := admission{limits: both}
	if _, err := g.promise(1, 50, 0, true); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("at the floor: %v", err)
	}
	g = admission{limits: Limits{Floor: 80}.on(1000)}
	if _, over := g.excess(90, 500, limitEnd, floorEnd); over != 0 {
		t.Errorf("%d too few for the floor alone", over)
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	shared := several(repo, 500, 3, 10_000)
	_, a := images.add(t, "a", append(several(repo, 0, 10, 10_000), shared...)...)
	_, b := images.add(t, "b", append(several(repo, 200, 10, 10_000), shared...)...)
	_, c := images.add(t, "c", several(repo, 300, 10, 10_000)...)
	all := slices.Concat(a[:10], b, c)
	images.used(t, "b", time.Hour)
	images.mount("c", true)
	for _, step := range []struct {
		o       CleanOptions
		a, b, c int
		err     error
	}{
		{CleanOptions{Image: "c"}, 13, 13, 10, ErrInUse},
		{CleanOptions{Image: "none"}, 13, 13, 10, os.ErrNotExist},
		{CleanOptions{To: -1}, 13, 13, 10, nil},
		{CleanOptions{Image: "a", To: 1}, 13, 13, 10, nil},
		{CleanOptions{Image: "a"}, 3, 13, 10, nil},
		{CleanOptions{To: 28 * 12 << 10}, 13, 8, 10, nil},
		{CleanOptions{}, 0, 0, 10, nil},
	} {
		fetchAll(t, s, all)
		_, err := s.Clean(t.Context(), step.o)
		bad := step.o.To < 0 || step.o.To > 0 && step.o.Image != ""
		if (err != nil) != (bad || step.err != nil) || step.err != nil && !errors.Is(err, step.err) {
			t.Errorf("%+v: %v", step.o, err)
		}
		if got := []int{here(s, a), here(s, b), here(s, c)}; !cmp.Equal(got, []int{step.a, step.b, step.c}) {
			t.Errorf("%+v: objects left %v", step.o, got)
		}
		if st, _ := s.Status(); st.Used != diskUse(t, s) {
			t.Errorf("%+v: %d bytes used, %d on disk", step.o, st.Used, diskUse(t, s))
		}
	}
}

func TestListAndPrewarm(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	_, a := images.add(t, "a", several(repo, 0, 10, 1000)...)
	images.add(t, "b", several(repo, 100, 10, 1000)...)
	images.used(t, "b", time.Hour)
	fetchAll(t, s, a[:4])
	images.mount("b", true)
	must(t, s.Pin("a", true))
	list, err := s.List(t.Context())
	must(t, err)
	for i := range list {
		list[i].Used = time.Time{}
	}
	want := []Entry{
		{Key: "a", Pinned: true, Local: Share{Objects: 4, Of: 10, Bytes: 4000, OfBytes: 10_000}},
		{Key: "b", Mounted: true, Local: Share{Of: 10, OfBytes: 10_000}},
	}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Error(diff)
	}
	done, err := s.Prewarm(t.Context(), NewIndex([16]byte{}), "b", func(Completion) {})
	if err != nil || done.Fetched != 10 {
		t.Errorf("%+v, %v", done, err)
	}
	if list, err = s.List(t.Context()); err != nil || list[0].Key != "b" || list[0].Local.Objects != 10 {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := s.Prewarm(t.Context(), NewIndex([16]byte{}), "c", func(Completion) {}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an image that isn't there: %v", err)
	}
}

// damage flips bits in half of 50 objects and cuts the others.
func damage(t *testing.T, s *Store, refs []Ref) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	for i, r := range refs[:50] {
		path := filepath.Join(s.cfg.Dir, r.Path())
		must(t, os.Chmod(path, 0o644))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		at := random.Int64N(r.Size())
		if i%2 == 0 {
			var b [1]byte
			f.ReadAt(b[:], at)
			b[0] ^= 1 << random.IntN(8)
			_, err = f.WriteAt(b[:], at)
		} else {
			err = f.Truncate(at)
		}
		must(t, errors.Join(err, f.Close()))
	}
}

func TestDamageIsFoundAndMended(t *testing.T) {
	t.Parallel()
	for _, way := range []struct {
		name string
		find func(ctx context.Context, s *Store) (Verified, error)
	}{
		{"all", func(ctx context.Context, s *Store) (Verified, error) { return s.Verify(ctx, "", func(Verified) {}) }},
		{"an image", func(ctx context.Context, s *Store) (Verified, error) { return s.Verify(ctx, "a", func(Verified) {}) }},
		{"scrub", func(ctx context.Context, s *Store) (Verified, error) {
			state := s.readScrub()
			for range folders {
				if err := s.scrubFolder(ctx, &state); err != nil {
					return state.Round, err
				}
				state = s.readScrub() // as the next process would
			}
			return state.Last, nil
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			repo := newRepository(t)
			s, images := cached(t, repo, 100*mib)
			s.cfg.ScrubRate = 1 << 40
			_, refs := images.add(t, "a", several(repo, 0, 200, 3000)...)
			fetchAll(t, s, refs)
			damage(t, s, refs)
			v, err := way.find(t.Context(), s)
			if err != nil || v.Objects != 200 || v.Damaged != 50 || len(v.Names) != 50 {
				t.Errorf("%+v, %v", v, err)
			}
			if n := here(s, refs[:50]); n != 0 {
				t.Errorf("%d of 50 damaged objects are still here", n)
			}
			fetchAll(t, s, refs)
			for i, r := range refs {
				holds(t, s, r, noise(i, 3000))
			}
			st, err := s.Status()
			if err != nil || st.Damaged != 50 || st.Used != diskUse(t, s) {
				t.Errorf("%+v, %v; on disk are %d bytes", st, err, diskUse(t, s))
			}
		})
	}
}

func TestSizesOfAUsedImageAreChecked(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	for name, absent := range map[string]int{"all of it is here": 0, "a part of it is here": 100} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, images := cached(t, repo, 100*mib)
			table, refs := images.add(t, "a", several(repo, 0, 100+absent, 3000)...)
			refs = refs[:100]
			fetchAll(t, s, refs)
			damage(t, s, refs)
			s.Used(table)
			eventually(t, "the short objects to go", func() bool {
				st, _ := s.Status()
				return st.Objects == 75 && here(s, refs) == 75
			})
		})
	}
}

func TestWhatNothingWasRecordedOfStays(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	_, refs := images.add(t, "a", several(repo, 0, 2, 3000)...)
	fetchAll(t, s, refs)
	for _, r := range refs {
		path := filepath.Join(s.cfg.Dir, r.Path())
		must(t, os.Chmod(path, 0o600)) // needed by all but root
		must(t, unix.Removexattr(path, attribute))
	}
	must(t, os.Truncate(filepath.Join(s.cfg.Dir, refs[1].Path()), 100))
	v, err := s.Verify(t.Context(), "", func(Verified) {})
	if err != nil || v.Unrecorded != 1 || v.Damaged != 1 || !s.Has(refs[0]) {
		t.Errorf("%+v, %v", v, err)
	}
}

// A store that was closed knows what it holds; one that was killed takes what was known, and counts.
func TestUseIsKnownAtStart(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	s := open(t, cfg)
	all := refs(t, several(repo, 0, 20, 10_000)...)
	fetchAll(t, s, all[:10])
	used := diskUse(t, s)
	must(t, s.Close())
	s = open(t, cfg)
	if st, _ := s.Status(); st.Used != used || !st.Counted || st.Objects != 10 {
		t.Errorf("after a clean end: %+v, %d on disk", st, used)
	}
	must(t, s.sync(false))
	fetchAll(t, s, all) // and the process is killed: the mark doesn't know of these
	s = open(t, cfg)
	if st, _ := s.Status(); st.Used != used || st.Counted {
		t.Errorf("after a kill: %+v", st)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go s.Run(ctx)
	used = diskUse(t, s)
	eventually(t, "the objects to be counted", func() bool {
		st, _ := s.Status()
		return st.Counted && st.Used == used && st.Objects == 20
	})
}

// A store that an older version wrote has no ledger.
func TestStoreWithoutLedgerIsCounted(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	s := open(t, cfg)
	fetchAll(t, s, refs(t, several(repo, 0, 20, 10_000)...))
	used := diskUse(t, s)
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(cfg.State, markFile),
		fmt.Appendf(nil, `{"boot":%q,"clean":true,"synced":%q}`, s.boot, time.Now().Format(time.RFC3339)), 0o600))
	s = open(t, cfg)
	if st, _ := s.Status(); st.Counted {
		t.Errorf("%+v", st)
	}
	must(t, s.count(t.Context()))
	if st, _ := s.Status(); !st.Counted || st.Used != used {
		t.Errorf("%+v, %d on disk", st, used)
	}
}

// The former server still answers requests while the new one has begun.
func TestTwoProcessesShareAStore(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	old, images := cached(t, repo, 100*mib)
	objs := several(repo, 0, 200, 1000)
	_, a := images.add(t, "a", objs...)
	fetchAll(t, old, a[:100])
	next := open(t, old.cfg)
	// Both fetch the same things at once.
	var group sync.WaitGroup
	for _, s := range []*Store{old, next} {
		group.Go(func() {
			for _, r := range a {
				if err := s.Fetch(t.Context(), r); err != nil {
					t.Error(err)
				}
				if err := s.LinkFresh(r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if _, err := old.Clean(t.Context(), CleanOptions{}); !errors.Is(err, errSucceeded) {
		t.Errorf("the former owner evicts: %v", err)
	}
	if here(next, a) != 200 {
		t.Error("objects have gone")
	}
	mark := func() string {
		b, err := os.ReadFile(filepath.Join(old.cfg.State, markFile))
		must(t, err)
		return string(b)
	}
	must(t, next.sync(true))
	before := mark()
	must(t, old.Close())
	if mark() != before {
		t.Error("the former owner has written the mark of its successor")
	}
	must(t, next.count(t.Context()))
	if st, _ := next.Status(); st.Objects != 200 || st.Used != diskUse(t, next) {
		t.Errorf("%+v, on disk are %d bytes", st, diskUse(t, next))
	}
	must(t, next.fresh.adopt(time.Time{}))
	next.fresh.sweep(time.Now().Add(freshAge))
	if list := names(t, next.cfg.Fresh); len(list) != 0 {
		t.Errorf("%d fresh links stay", len(list))
	}
}

// churn fetches for ever with a small limit, so that eviction never ends.
func churn(dir, url string) {
	f, err := childFetcher(url)
	if err != nil {
		panic(err)
	}
	cfg := configIn(dir, sources{"r": f})
	cfg.Limits = Limits{Limit: 4 * mib, Floor: 1}
	s, err := Open(cfg)
	if err != nil {
		panic(err)
	}
	go s.Run(context.Background())
	for !s.ledger.exact.Load() {
		time.Sleep(time.Millisecond)
	}
	x, t := killTable()
	fmt.Println("ready")
	for {
		for i := range killObjects {
			if err := s.Fetch(context.Background(), Ref{x, t, uint32(i)}); err != nil && !errors.Is(err, ErrLimit) {
				panic(err)
			}
		}
	}
}

func TestKilledWhileEvicting(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	want := killServer(repo)
	dir := t.TempDir()
	for range 5 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childFolder+"="+dir, childURL+"="+repo.URL, childTask+"=churn")
		out, err := cmd.StdoutPipe()
		must(t, err)
		cmd.Stderr = os.Stderr
		must(t, cmd.Start())
		io.ReadFull(out, make([]byte, 6)) // ready; if not, what follows says so
		eventually(t, "objects to come", func() bool { return len(names(t, filepath.Join(dir, "store/objects"))) > 100 })
		time.Sleep(300 * time.Millisecond)
		must(t, cmd.Process.Kill())
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the child ended of itself: %v", err)
		}
		for _, name := range names(t, filepath.Join(dir, "store/objects")) {
			got, err := os.ReadFile(filepath.Join(dir, "store/objects", place(name)))
			if err != nil || !bytes.Equal(got, want[name]) || want[name] == nil {
				t.Errorf("%s is wrong: %d bytes, %v", name, len(got), err)
			}
		}
	}
	cfg := configIn(dir, sources{})
	cfg.Limits = Limits{Limit: 4 * mib, Floor: 1}
	s := open(t, cfg)
	must(t, s.count(t.Context()))
	st, err := s.Status()
	if err != nil || st.Used != diskUse(t, s) || st.Used > 4*mib || st.Used < 2*mib {
		t.Errorf("%+v, %v; on disk are %d bytes", st, err, diskUse(t, s))
	}
}

// A store without a ledger can evict before it is counted, and count afterwards.
func TestEvictionBeforeCounting(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	cfg := configIn(t.TempDir(), sources{"r": fetcher(t, repo.URL)})
	s := open(t, cfg)
	objs := refs(t, several(repo, 0, 20, 10_000)...)
	fetchAll(t, s, objs)
	must(t, s.Close())
	must(t, os.Remove(filepath.Join(cfg.State, markFile)))
	s = open(t, cfg)
	for range 2 { // the second survey is made when more has gone than the ledger knew of
		s.eviction.forgetPlan()
		if done, err := s.evictStep(t.Context(), 1); err != nil || done.Objects == 0 {
			t.Fatalf("%+v, %v", done, err)
		}
	}
	if st, err := s.Status(); err != nil || st.Used < 0 || st.Objects < 0 {
		t.Errorf("%+v, %v", st, err)
	}
	must(t, s.count(t.Context()))
	if st, _ := s.Status(); st.Used != diskUse(t, s) || st.Objects != int64(here(s, objs)) {
		t.Errorf("%+v, %d bytes on disk in %d objects", st, diskUse(t, s), here(s, objs))
	}
}

func TestBlocksGivenInAdvanceAreNotCounted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ size, allocated, want int64 }{
		{0, 0, 0}, {10, 0, 0}, {3000, 4096, 4096}, {3000, 8192, 8192}, // an attribute's block; within the inode
		{100_000, 102_400, 102_400}, {100_000, 196_608, 102_400}, {20_000_000, 33_488_896, 20_000_768}, // of XFS
	} {
		st := unix.Stat_t{Size: c.size, Blksize: 4096, Blocks: c.allocated / sector}
		if got := settledBlocks(&st) * sector; got != c.want {
			t.Errorf("%d bytes with %d allocated: %d, want %d", c.size, c.allocated, got, c.want)
		}
	}
}

// What has no room even in an empty cache waits for nothing.
func TestTooLargeObjectsAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	s, _ := cached(t, newRepository(t), mib)
	for _, n := range []int64{2 * mib, 1 << 60} { // beyond the limit, and the file system
		const many = 50 // each of which would wait limitPatience, or floorPatience
		began := time.Now()
		for range many {
			err := s.reserve(t.Context(), n)
			if !errors.Is(err, ErrLimit) && !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("%d bytes: %v", n, err)
			}
			if took := time.Since(began); took > many*limitPatience/2 {
				t.Fatalf("%d bytes: refused after %v", n, took)
			}
		}
	}
}

// An image that is mounted just before its objects are cleaned keeps them.
func TestCleaningLeavesAnImageThatIsUsedMeanwhile(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	table, refs := images.add(t, "a", several(repo, 0, 20, 1000)...)
	fetchAll(t, s, refs)
	s.Used(table)
	look := func(ctx context.Context) (*survey, error) { return s.surveyTables(ctx, table) }
	if done, err := s.purge(t.Context(), look, allBut("a")); err != nil || here(s, refs) != len(refs) {
		t.Errorf("%+v removed, %v", done, err)
	}
}

// An object that can't be read for want of file descriptors is not damaged, nor is one whose reading is interrupted.
// Not parallel: there are none for anybody.
func TestWhatCannotBeVerifiedNowStays(t *testing.T) {
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	table, refs := images.add(t, "a", several(repo, 0, 3, 10_000)...)
	fetchAll(t, s, refs)
	verifyAll := func(ctx context.Context) (v Verified) {
		for i := range table.Len() {
			v.add(s.verifyObject(ctx, table.name(i)))
		}
		return v
	}
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}))
	without := verifyAll(t.Context())
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	interrupted := verifyAll(ctx)
	if without.Unreadable != 3 || without.Damaged != 0 || interrupted.Objects != 0 || here(s, refs) != 3 {
		t.Errorf("without descriptors %+v, interrupted %+v, %d objects left", without, interrupted, here(s, refs))
	}
}

func TestLimitsFollowTheFileSystem(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	for _, c := range []struct {
		set        Limits
		size       int64
		limit, low int64
	}{
		{Limits{}, 100 * gib, 50 * gib, 5 * gib},
		{Limits{}, 1000 * gib, 500 * gib, 50 * gib},
		{Limits{}, 100_000 * gib, 50_000 * gib, 50 * gib},
		{Limits{Limit: 10 * gib, Floor: 3 * gib}, 100 * gib, 10 * gib, 3 * gib},
		{Limits{Limit: 1 << 62}, 100 * gib, 100 * gib, 5 * gib},
	} {
		if got := c.set.on(c.size); got != (Limits{Limit: c.limit, Floor: c.low}) {
			t.Errorf("%+v on %d: %+v", c.set, c.size, got)
		}
	}
}

func TestALowerLimitCountsAtOnce(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	_, refs := images.add(t, "image", several(repo, 0, 40, mib)...)
	fetchAll(t, s, refs)
	must(t, s.SetLimits(Limits{Limit: 10 * mib, Floor: 1}))
	eventually(t, "room", func() bool {
		st, err := s.Status()
		must(t, err)
		return st.Used <= 10*mib
	})
	must(t, s.SetLimits(Limits{Limit: 100 * mib, Floor: 1}))
	fetchAll(t, s, refs)
	if n := here(s, refs); n != len(refs) {
		t.Errorf("%d objects of %d", n, len(refs))
	}
}

// What a mounted image names is never taken for what nobody names, whatever has become of its table.
func TestNothingGoesWhileAMountedImagesTableIsUnreadable(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(path string) error{
		"changed": func(path string) error { return os.WriteFile(path, []byte("CVMFSTB1"), 0o600) },
		"missing": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			repo := newRepository(t)
			s, images := cached(t, repo, 100*mib)
			_, refs := images.add(t, "mounted", several(repo, 0, 5, mib)...)
			fetchAll(t, s, refs)
			images.mount("mounted", true)
			must(t, spoil(images.path("mounted")))
			_, err := s.Clean(t.Context(), CleanOptions{})
			if err == nil || !strings.Contains(err.Error(), "pull it again") {
				t.Errorf("cleaned: %v", err)
			}
			must(t, s.SetLimits(Limits{Limit: mib, Floor: 1}))
			idle(t, s)
			list, err := s.List(t.Context())
			if err != nil || len(list) != 1 || list[0].Err == "" || !list[0].Mounted {
				t.Errorf("%+v, %v", list, err)
			}
			if n := here(s, refs); n != len(refs) {
				t.Errorf("%d objects of %d are left", n, len(refs))
			}
			images.mount("mounted", false)
			if name == "changed" {
				if done, err := s.Clean(t.Context(), CleanOptions{}); err != nil || done.Objects != 5 {
					t.Errorf("unmounted: %+v, %v", done, err)
				}
			}
		})
	}
}

// loadedImages are images whose tables are in memory.
type loadedImages struct {
	*imageSet
	table *Table
}

func (l loadedImages) Images() ([]Image, error) {
	list, err := l.imageSet.Images()
	for i := range list {
		list[i].Loaded = l.table
	}
	return list, err
}

func TestTablesInMemoryCountWhateverBecameOfTheirFiles(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	table, refs := images.add(t, "mounted", several(repo, 0, 5, 1000)...)
	_, others := images.add(t, "other", several(repo, 100, 5, 1000)...)
	fetchAll(t, s, refs)
	fetchAll(t, s, others)
	must(t, os.RemoveAll(filepath.Join(images.dir, "other")))
	must(t, os.WriteFile(images.path("mounted"), nil, 0o600))
	images.mount("mounted", true)
	s.cfg.Images = loadedImages{images, table}
	if done, err := s.Clean(t.Context(), CleanOptions{}); err != nil || done.Objects != 5 || here(s, refs) != 5 {
		t.Errorf("%+v, %v; %d objects are left", done, err, here(s, refs))
	}
}

// A disk without a single free byte is no reason not to serve what is here.
func TestStoreOpensOnAFullDisk(t *testing.T) {
	repo := newRepository(t)
	dir := loopDisk(t, 64*mib)
	for _, boot := range []string{"same", "next"} {
		for _, clean := range []bool{true, false} {
			cfg := configIn(dir, sources{"r": fetcher(t, repo.URL)})
			cfg.Limits, cfg.BootID = Limits{Limit: 40 * mib, Floor: mib}, "same"
			plain, more := noise(len(boot), 5000), noise(1000, 5000)
			all := refs(t, repo.whole(plain), repo.whole(more))
			s, err := Open(cfg)
			must(t, err)
			must(t, s.Fetch(t.Context(), all[0]))
			if clean {
				must(t, s.Close())
			} else {
				must(t, s.sync(false))
				s.end()
				s.dir.Close()
			}
			fill, err := os.Create(filepath.Join(dir, "ballast"))
			must(t, err)
			for size := mib; size > 0; size /= 2 {
				for err = nil; err == nil; {
					_, err = fill.Write(make([]byte, size))
				}
			}
			must(t, fill.Close())
			cfg.BootID = boot
			if s, err = Open(cfg); err != nil {
				t.Fatalf("boot %s, clean %v: %v", boot, clean, err)
			}
			holds(t, s, all[0], plain)
			if err := s.Fetch(t.Context(), all[1]); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("fetched on a full disk: %v", err)
			}
			must(t, os.Remove(fill.Name()))
			must(t, s.Fetch(t.Context(), all[1]))
			must(t, s.sync(false))
			if m, err := s.readMark(); err != nil || m.Clean || m.Boot != boot || time.Since(m.Synced) > time.Minute {
				t.Errorf("the mark is %+v, %v", m, err)
			}
			_, err = s.Clean(t.Context(), CleanOptions{})
			must(t, err)
			must(t, s.Close())
		}
	}
}
