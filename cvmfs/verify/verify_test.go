package verify

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/test/testutil"
)

const features = "features.example.org"

// opened opens a reference repository at servers that fail fast.
func opened(t *testing.T, urls ...string) (*client.Repository, *client.Revision) {
	t.Helper()
	folder := config.Folder{Dir: testutil.Configure(t, map[string]string{features: "'" + strings.Join(urls, ";") + "'"})}
	folder.Overrides = map[string]string{
		"CVMFS_TIMEOUT_DIRECT": "1", "CVMFS_BACKOFF_INIT": "1", "CVMFS_BACKOFF_MAX": "1",
	}
	c, err := folder.Load(features)
	if err != nil {
		t.Fatal(err)
	}
	r, err := client.Open(c, client.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Fetcher().Close)
	v, err := r.Newest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r, v
}

// verified verifies a folder and returns what is bad.
func verified(t *testing.T, r *client.Repository, v *client.Revision, path string, o Options,
) (Summary, []Problem, error) {
	t.Helper()
	var bad []Problem
	o.Problem = func(p Problem) { bad = append(bad, p) }
	s, err := Run(t.Context(), r, v, path, o)
	return s, bad, err
}

// place is the file of an object below the repository's folder.
func place(t *testing.T, v *client.Revision, dir, path string) string {
	t.Helper()
	s, err := v.Stat(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if s.IsDir() {
		return filepath.Join(dir, s.Catalog.Path(hash.Catalog))
	}
	return filepath.Join(dir, s.Digest.Path(hash.File))
}

func TestWhatACatalogThatIsBadHoldsIsPassedOver(t *testing.T) {
	dir := testutil.Repository(t, features)
	_, v := opened(t, testutil.Serve(t, dir))
	lost := place(t, v, dir, "/nested/inner")
	if err := os.WriteFile(lost, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, v := opened(t, testutil.Serve(t, dir)) // without the catalog that is known already
	s, bad, err := verified(t, r, v, "", Options{})
	if err != nil || len(bad) != 1 || bad[0].Kind != Catalog || bad[0].Path != "/nested/inner" || s.Bad != 1 {
		t.Errorf("%+v, %v, %v", s, bad, err)
	}
	if s.Catalogs != 3 || s.Files < 1200 || s.Files >= 1272 {
		t.Errorf("%+v", s)
	}
}

func TestAServerThatLacksFilesIsNoProblemIfAnotherHasThem(t *testing.T) {
	whole, partly := testutil.Repository(t, features), testutil.Repository(t, features)
	_, v := opened(t, testutil.Serve(t, partly))
	if err := os.Remove(place(t, v, partly, "/small/hello.txt")); err != nil {
		t.Fatal(err)
	}
	r, v := opened(t, testutil.Serve(t, partly), testutil.Serve(t, whole))
	s, bad, err := verified(t, r, v, "", Options{})
	if err != nil || len(bad) > 0 || s.Bad != 0 || s.Failures == 0 {
		t.Errorf("%+v, %v, %v", s, bad, err)
	}
}

func TestServersThatDieEndTheRun(t *testing.T) {
	server := testutil.NewFaulty(t, http.FileServerFS(testutil.Reference(t, features)))
	r, v := opened(t, server.URL)
	server.Close()
	began := time.Now()
	s, bad, err := verified(t, r, v, "", Options{Patience: time.Second})
	if !errors.Is(err, ErrUnreachable) || time.Since(began) > 30*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if len(bad) > 60 || s.Bad == 0 {
		t.Errorf("%d problems are told", len(bad))
	}
}

// One object that the server doesn't answer for puts the server in a cool-down, which is no fault of other objects.
func TestAServerThatStallsOnceIsWaitedFor(t *testing.T) {
	dir := testutil.Repository(t, features)
	server := testutil.NewFaulty(t, http.FileServer(http.Dir(dir)))
	r, v := opened(t, server.URL)
	object := place(t, v, "", "/small/hello.txt")
	server.Set(testutil.Fault{Path: object, Silent: true})
	s, bad, err := verified(t, r, v, "/small", Options{Readers: 2, Patience: 4 * time.Second})
	if err != nil || len(bad) != 1 || bad[0].Path != "/small/hello.txt" || s.Bad != 1 {
		t.Errorf("%+v, %v, %v", s, bad, err)
	}
}

func TestVerifyingEndsWithItsContext(t *testing.T) {
	r, v := opened(t, testutil.ServeReference(t, features))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, r, v, "", Options{Problem: func(p Problem) { t.Error(p) }}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Paths that wait for an object's verdict are bounded, and all are told in the end.
func TestAllPathsOfABadObjectAreTold(t *testing.T) {
	var told []string
	gone := make(chan object, 1)
	run := &run{
		o:     Options{Problem: func(p Problem) { told = append(told, p.Path) }},
		known: map[object]bool{}, fetching: map[object]*waiting{}, catalogs: map[hash.Digest]bool{},
	}
	o := object{objects.Stored{Suffix: hash.File, Size: 1}}
	var want []string
	for i := range mostWaiting {
		want = append(want, fmt.Sprint(i))
		if err := run.want(t.Context(), o, want[i], gone); err != nil {
			t.Fatal(err)
		}
	}
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := run.want(soon, o, "more", gone); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v; want it to wait", err)
	}
	run.judge(o, catalog.ErrInvalid)
	if err := run.want(t.Context(), o, "later", gone); err != nil {
		t.Error(err)
	}
	if want = append(want, "later"); !slices.Equal(told, want) || len(gone) != 1 || run.summary.Bad != 1 {
		t.Errorf("%d paths are told, %d bad, %d queued", len(told), run.summary.Bad, len(gone))
	}
}
