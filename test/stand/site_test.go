package stand

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/testutil"
)

func newSite(t *testing.T) *Site {
	t.Helper()
	s, err := NewSite(t.TempDir(), testutil.Data(t, "repositories", Repository+".tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// get returns the length of an answer's body.
func get(ctx context.Context, url string) (int64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	return io.Copy(io.Discard, response.Body)
}

func TestASiteServesAndCounts(t *testing.T) {
	s := newSite(t)
	info, err := os.Stat(filepath.Join(s.Dir, Repository, ".cvmfspublished"))
	if err != nil {
		t.Fatal(err)
	}
	before := s.Count()
	n, err := get(t.Context(), s.URL(Repository)+"/.cvmfspublished")
	if err != nil || n != info.Size() {
		t.Errorf("got %d bytes, %v, want %d", n, err, info.Size())
	}
	m, err := get(t.Context(), s.URL(Repository)+"/data/7d/1dcdcc3ab24d7c11c362d30a1541bb7fa27242")
	if err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(Count{Requests: 2, Objects: 1, Bytes: n + m}, s.Count().Sub(before)); diff != "" {
		t.Error(diff)
	}
}

func TestASiteFailsAsItIsTold(t *testing.T) {
	s := newSite(t)
	url := s.URL(Repository) + "/.cvmfspublished"
	works := func(after string) {
		t.Helper()
		if _, err := get(t.Context(), url); err != nil {
			t.Errorf("%s: %v", after, err)
		}
	}
	fails := func(while string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := get(ctx, url); err == nil {
			t.Errorf("%s: the file was served", while)
		}
	}
	works("at first")
	s.Withhold(Repository + "/.cvmfspublished")
	fails("withheld")
	s.Withhold("")
	works("given out again")
	resume := s.Stall()
	fails("stalled")
	resume()
	works("resumed")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	fails("stopped")
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	works("started again at the same address")
}
