package fetch

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func body(t *testing.T, f *Fetcher, r Request) (text string, err error) {
	err = f.Do(t.Context(), r, func(body io.Reader) error {
		b, err := io.ReadAll(body)
		text = string(b)
		return err
	})
	return text, err
}

// A server that can't give a part gives nothing: its whole file, which may be of any size, is not read.
func TestPartOfAFile(t *testing.T) {
	whole := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "0123456789")
	}))
	defer whole.Close()
	parts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Unix(1, 0), strings.NewReader("0123456789"))
	}))
	defer parts.Close()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{parts.URL, "file://" + dir} {
		f := fetcher(t, quick(url))
		for r, want := range map[Request]string{
			{Path: "f"}: "0123456789", {Path: "f", Offset: 2, Length: 3}: "234", {Path: "f", Length: 1}: "0",
			{Path: "f", Offset: 9, Length: 1}: "9",
		} {
			if got, err := body(t, f, r); err != nil || got != want {
				t.Errorf("%s: %+v: %q, %v", url, r, got, err)
			}
		}
	}
	if got, err := body(t, fetcher(t, quick(whole.URL)), Request{Path: "f", Offset: 2, Length: 3}); err == nil ||
		!strings.Contains(err.Error(), "the whole file instead of a part") {
		t.Errorf("%q, %v", got, err)
	}
	f := fetcher(t, quick(whole.URL, parts.URL))
	if got, err := body(t, f, Request{Path: "f", Offset: 2, Length: 3}); err != nil || got != "234" {
		t.Errorf("%q, %v", got, err)
	}
}

// What servers are told is one line of plain characters, whatever a publisher calls a file.
func TestServersAreToldThePathWhereTheyAreToBe(t *testing.T) {
	var mu sync.Mutex
	var told []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, fmt.Sprintf("%q", r.Header["Cvmfs-Info"]))
		for name := range r.Header {
			if strings.HasPrefix(name, "X-") {
				t.Errorf("a header %s", name)
			}
		}
	}))
	defer server.Close()
	infos := []string{"/a b/ü", "/x\r\nX-Evil: 1", strings.Repeat("/long", 1000), ""}
	for _, on := range []bool{false, true} {
		cfg := quick(server.URL)
		cfg.TellInfo, cfg.TimeoutDirect = on, time.Minute
		f := fetcher(t, cfg)
		for _, info := range infos {
			if _, err := body(t, f, Request{Path: "data/x", Info: info}); err != nil {
				t.Error(err)
			}
		}
	}
	want := []string{`[]`, `[]`, `[]`, `[]`, `["/a%20b/%C3%BC"]`, `["/x%0D%0AX-Evil:%201"]`, `[]`, `[]`}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestRequestsStayBelowTheServersAddress(t *testing.T) {
	f := fetcher(t, quick("file://"+t.TempDir()))
	for _, path := range []string{"", ".", "..", "../f", "a/../../f", "/f", "a//b", "a/", "a/./b", "a\x00b"} {
		_, err := body(t, f, Request{Path: path})
		if err == nil || !strings.Contains(err.Error(), "not a path inside") {
			t.Errorf("%q: %v", path, err)
		}
	}
	if _, err := body(t, f, Request{Path: "a\xff"}); err == nil || strings.Contains(err.Error(), "not a path inside") {
		t.Errorf("a name that isn't UTF-8: %v", err)
	}
	if _, err := f.External(); !errors.Is(err, ErrNoExternal) {
		t.Error(err)
	}
}

// What is asked of servers of external files is counted with the rest, once for each host.
func TestExternalServersAreCounted(t *testing.T) {
	server := files(t)
	cfg := quick(server.URL + "/a")
	external := quick(server.URL + "/b")
	cfg.External = &external
	f := fetcher(t, cfg)
	mustGet(t, f, "x")
	e, err := f.External()
	if err != nil {
		t.Fatal(err)
	}
	mustGet(t, e, "y")
	hosts, stats := f.Hosts(), f.Stats()
	servers, proxies := f.Members()
	if len(hosts) != 1 || hosts[0].Attempts != 2 || stats.Requests != 2 || len(servers) != 2 || len(proxies) != 1 ||
		servers[1].Name != server.URL+"/b" || servers[1].Answers != 1 {
		t.Errorf("%+v, %+v, %+v, %+v", hosts, stats, servers, proxies)
	}
}
