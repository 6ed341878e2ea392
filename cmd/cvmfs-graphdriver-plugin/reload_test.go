package main

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

// proxy is a proxy that counts.
type proxy struct {
	*httptest.Server
	asked    atomic.Int64
	catalogs bool // and no files' content passes
}

func newProxy(t *testing.T, catalogs bool) *proxy {
	p := &proxy{catalogs: catalogs}
	forward := &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}} // requests name their server
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.asked.Add(1)
		if p.catalogs && content.MatchString(r.URL.Path) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

// content is the path of a file's content, and of no catalog or certificate.
var content = regexp.MustCompile(`/data/.*[0-9a-f]$`)

// A proxy that is changed in the configuration counts for a container that runs, by itself within a minute and at once
// where a reload is asked for; one that can't be used leaves the former one.
func TestChangedProxyCountsForAContainerThatReads(t *testing.T) {
	first, second, third := newProxy(t, true), newProxy(t, false), newProxy(t, false)
	config := testutil.Configure(t, map[string]string{fqrn: testutil.ServeReference(t, fqrn)})
	set := func(proxy string) {
		must(t, os.WriteFile(filepath.Join(config, "default.local"),
			[]byte("CVMFS_HTTP_PROXY="+proxy+"\nCVMFS_TIMEOUT=2\nCVMFS_MAX_RETRIES=0\n"), 0o600))
	}
	set(first.URL)
	p := startConfigured(t, t.TempDir(), config)
	p.init(rung{view: "auto"}, object{})
	dir := p.thinContainer("a")
	if first.asked.Load() == 0 {
		t.Fatal("the first proxy isn't used")
	}
	set(second.URL)
	began := time.Now()
	for {
		_, err := os.ReadFile(filepath.Join(dir, "bin", "hello"))
		if err == nil {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatal("the change doesn't count: ", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("it counts after %v", time.Since(began))

	node := control.NewClient(p.root + socket)
	used := func() status.Repository {
		t.Helper()
		s := p.status()
		if len(s.Repositories) != 1 || len(s.Repositories[0].Proxies) != 1 || s.View == "" {
			t.Fatalf("%+v", s)
		}
		return s.Repositories[0]
	}
	if r := used(); r.Proxies[0].Name != second.URL || r.Proxies[0].Answers == 0 || r.Proxies[0].Err != "" ||
		!slices.Contains(r.Settings, status.Setting{
			Name: "CVMFS_HTTP_PROXY", Value: second.URL, Place: "/etc/cvmfs/default.local:1",
		}) {
		t.Errorf("in use: %+v", r)
	}
	set("ftp://nowhere") // nothing comes of that
	if done, err := control.Reload.Do(t.Context(), node, control.None{}, nil); err != nil ||
		len(done.Repositories) != 1 || done.Repositories[0].Err == "" {
		t.Errorf("a proxy that is none: %+v, %v", done, err)
	}
	if r := used(); r.Proxies[0].Name != second.URL || !strings.Contains(r.Err, "CVMFS_HTTP_PROXY") {
		t.Errorf("in use: %+v", r)
	}
	set(third.URL)
	if done, err := control.Reload.Do(t.Context(), node, control.None{}, nil); err != nil ||
		strings.Join(done.Repositories[0].Changed, " ") != "CVMFS_HTTP_PROXY" {
		t.Errorf("%+v, %v", done, err)
	}
	second.Close()
	if text := p.apply("again", "", archive(t, map[string]string{"thin.json": referenceimage.Descriptor(t)})); text != "" {
		t.Error(text)
	}
	must(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			_, err = os.ReadFile(name)
		}
		return err
	}))
	if third.asked.Load() == 0 {
		t.Error("the third proxy isn't used")
	}
}
