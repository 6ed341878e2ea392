package objects

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/test/testutil"
)

// many puts n objects of 1000 bytes and one in chunks into a repository and a table.
func many(t *testing.T, repo *repository, n int) (*Index, *Table) {
	t.Helper()
	var objs []Object
	for i := range n {
		objs = append(objs, repo.whole(noise(i, 1000)))
	}
	objs = append(objs, repo.chunked(noise(n, 5000), 1024))
	x, tab := NewIndex([16]byte{}), table(t, "r", objs...)
	x.Add(tab)
	return x, tab
}

func TestCompleteFetchesWhatIsMissing(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	x, tab := many(t, repo, 40)
	for _, pos := range []uint32{0, 7, 39} {
		if err := s.Fetch(t.Context(), Ref{x, tab, pos}); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(Share{Objects: 3, Of: 41, Bytes: 3000, OfBytes: 45_000}, s.Local(tab)); d != "" {
		t.Errorf("before: -want +got\n%s", d)
	}
	asked := repo.Requests("/data/")
	done, err := s.Complete(t.Context(), x, tab)
	if d := cmp.Diff(Completion{Fetched: 38, Bytes: 42_000, Here: 3, Of: 41}, done); d != "" || err != nil {
		t.Errorf("%v -want +got\n%s", err, d)
	}
	if n := repo.Requests("/data/") - asked; n != 37+5 {
		t.Errorf("%d requests, want one for each of 37 objects and 5 chunks", n)
	}
	if d := cmp.Diff(Share{Objects: 41, Of: 41, Bytes: 45_000, OfBytes: 45_000}, s.Local(tab)); d != "" {
		t.Errorf("after: -want +got\n%s", d)
	}
	if done, err := s.Complete(t.Context(), x, tab); done != (Completion{Here: 41, Of: 41}) || err != nil {
		t.Errorf("again: %+v, %v", done, err)
	}
	if most := repo.MostAtOnce(); most > completers+8 { // the chunks of one object come at once
		t.Errorf("%d requests at once", most)
	}
}

func TestCompletePassesOverWhatCannotBeHad(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s := newStore(t, repo)
	x, tab := many(t, repo, 10)
	lost, _ := tab.At(3)
	repo.Set(testutil.Fault{Path: lost.Digest.Path(hash.File), Status: http.StatusNotFound})
	done, err := s.Complete(t.Context(), x, tab)
	if done.Fetched != 10 || done.Failed != 1 || err != nil {
		t.Errorf("%+v, %v", done, err)
	}
}

func TestCompleteEndsWhereGoingOnIsNoUse(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	x, tab := many(t, repo, 200)
	small := smallDisk(t, 4<<20)
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T) (*Store, context.Context)
		want    error
	}{
		{"no server", func(t *testing.T) (*Store, context.Context) {
			return open(t, configIn(t.TempDir(), sources{"r": fetcher(t, "http://127.0.0.1:1")})), t.Context()
		}, fetch.ErrUnavailable},
		{"nobody wants it", func(t *testing.T) (*Store, context.Context) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return newStore(t, repo), ctx
		}, context.Canceled},
		{"store closed", func(t *testing.T) (*Store, context.Context) {
			s := newStore(t, repo)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return s, t.Context()
		}, nil},
		{"nearly full disk", func(t *testing.T) (*Store, context.Context) {
			s := open(t, configIn(small, sources{"r": fetcher(t, repo.URL)}))
			if err := os.WriteFile(filepath.Join(small, "ballast"), make([]byte, 4<<20-200<<10), 0o600); err != nil {
				t.Fatal(err)
			}
			return s, t.Context()
		}, syscall.ENOSPC},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, ctx := c.prepare(t)
			done, err := s.Complete(ctx, x, tab)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%+v, %v", done, err)
			}
			if done.Failed > completers {
				t.Errorf("%d failures before it gave up", done.Failed)
			}
		})
	}
}

func TestLocalEstimatesFromASample(t *testing.T) {
	t.Parallel()
	s := newStore(t, newRepository(t))
	objs := make([]Object, 10_000)
	for i := range objs {
		objs[i] = Object{
			Digest: hash.SHA1.Digest([]byte{byte(i), byte(i >> 8)}), Compression: hash.None,
			Size: int64(100 + i%7),
		}
		if i < 5000 { // the first folders only
			if err := os.WriteFile(filepath.Join(s.cfg.Dir, objs[i].Path()), make([]byte, objs[i].Size),
				0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := s.Local(table(t, "r", objs...))
	if !got.Estimated || got.Of != 10_000 || got.Objects < 4900 || got.Objects > 5100 ||
		got.Bytes < got.OfBytes*48/100 || got.Bytes > got.OfBytes*52/100 {
		t.Errorf("%+v", got)
	}
	if got := s.Local(table(t, "r")); got != (Share{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestScatteredNumbersAreAllThereAndSpread(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 10, 12, 1000, 1024, 4096} {
		seen := slices.Collect(scattered(n))
		for i, first := 0, seen[:n/4]; i < len(first); i++ {
			if n >= 1000 && i > 0 && (first[i]-first[i-1]+n)%n < n/4 {
				t.Fatalf("%d: %d follows %d", n, first[i], first[i-1])
			}
		}
		slices.Sort(seen)
		for i, v := range seen {
			if i != v {
				t.Fatalf("%d: %v", n, seen)
			}
		}
		if len(seen) != n {
			t.Errorf("%d numbers below %d", len(seen), n)
		}
	}
}
