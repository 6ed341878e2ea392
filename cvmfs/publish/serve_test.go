package publish_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/trust"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
	. "cvmfs-graphdriver/test/publishtest"
)

func serve(t testing.TB, r *Repository) string {
	t.Helper()
	s, err := NewServer(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return server.URL
}

func ask(t testing.TB, method, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultTransport.RoundTrip(q)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(b)
}

func TestServedRepositoryIsReadByClients(t *testing.T) {
	r := New(t, Small(Settings{}))
	s := publishFile(t, r, "/file")
	got := NewestAt(t, r, serve(t, r)+"/cvmfs/"+FQRN, t.TempDir())
	if got.Root != s.Root {
		t.Errorf("root %v, want %v", got.Root, s.Root)
	}
}

func TestServedFilesHaveTheHeadersCachesNeed(t *testing.T) {
	r := New(t, Small(Settings{}))
	publishFile(t, r, "/file")
	base := serve(t, r) + "/cvmfs/" + FQRN + "/"
	head, err := r.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	object := head.Manifest.Root.Path(hash.Catalog)
	const short = "public, max-age=61"
	for name, caching := range map[string]string{
		object: "public, max-age=259200, immutable", manifest.FileName: short, trust.WhitelistFile: short,
		history.ReflogFile: short, ".cvmfs_master_replica": short,
	} {
		want, err := os.ReadFile(filepath.Join(r.Storage().String(), name))
		if err != nil {
			t.Fatal(err)
		}
		answer, body := ask(t, "GET", base+name)
		if answer.StatusCode != http.StatusOK || body != string(want) || answer.Header.Get("Cache-Control") != caching {
			t.Errorf("%s: %s, %d bytes, %v", name, answer.Status, len(body), answer.Header)
		}
		if answer, body := ask(t, "HEAD", base+name); answer.StatusCode != http.StatusOK || body != "" ||
			answer.ContentLength != int64(len(want)) {
			t.Errorf("HEAD %s: %s, %d", name, answer.Status, answer.ContentLength)
		}
		if again, _ := ask(t, "GET", base+name, "If-None-Match", answer.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
			t.Errorf("%s, if it changed: %s", name, again.Status)
		}
		if again, _ := ask(t, "GET", base+name, "If-Modified-Since",
			answer.Header.Get("Last-Modified")); again.StatusCode != http.StatusNotModified {
			t.Errorf("%s, if modified: %s", name, again.Status)
		}
		if part, body := ask(t, "GET", base+name, "Range", "bytes=3-9"); part.StatusCode != http.StatusPartialContent ||
			body != string(want[3:10]) {
			t.Errorf("range of %s: %s, %q", name, part.Status, body)
		}
	}
	before, _ := ask(t, "HEAD", base+manifest.FileName)
	publishFile(t, r, "/other")
	if after, _ := ask(t, "GET", base+manifest.FileName, "If-None-Match",
		before.Header.Get("ETag")); after.StatusCode != http.StatusOK {
		t.Errorf("a new manifest: %s", after.Status)
	}
}

func TestNothingElseIsServed(t *testing.T) {
	r := New(t, Small(Settings{}))
	root := r.Storage().String()
	object := "data/ab/" + strings.Repeat("c", 38)
	if err := os.Symlink(r.Key(".key"), filepath.Join(root, object)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "data/txn/half"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	base := serve(t, r)
	here := base + "/cvmfs/" + FQRN + "/"
	for _, url := range []string{
		base + "/", base + "/cvmfs/", here, here + "data", here + "data/", here + "data/ab/", here + "data/txn/half",
		here + object,
		here + "../../../publisher.json", here + "%2e%2e/%2e%2e/%2e%2e/publisher.json",
		here + "..%2f..%2f..%2fkeys/" + FQRN + ".key",
		here + "data/ab/../../.cvmfspublished", here + ".cvmfspublished/", here + ".cvmfspublished%00",
		here + "/.cvmfspublished",
		here + "data/ab/" + strings.Repeat("d", 38), base + "/cvmfs/other.example.org/.cvmfspublished",
		base + "/.cvmfspublished",
	} {
		if answer, body := ask(t, "GET", url); answer.StatusCode != http.StatusNotFound || strings.Contains(body, "PRIVATE") {
			t.Errorf("%s: %s", url, answer.Status)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		if answer, _ := ask(t, method, here+manifest.FileName); answer.StatusCode != http.StatusMethodNotAllowed ||
			answer.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %s", method, answer.Status)
		}
	}
}
