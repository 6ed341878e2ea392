package client

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"cvmfs-graphdriver/test/testutil"
)

// site is a server of one repository, held in memory, that counts requests and does as it is told.
type site struct {
	url string

	mu    sync.Mutex
	files map[string][]byte
	seen  map[string]int
	dead  bool
}

func newSite(t testing.TB, files map[string][]byte) *site {
	t.Helper()
	s := &site{files: maps.Clone(files), seen: map[string]int{}}
	server := httptest.NewServer(http.StripPrefix("/cvmfs/", s))
	t.Cleanup(server.Close)
	s.url = server.URL + "/cvmfs"
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		panic(http.ErrAbortHandler)
	}
	s.seen[r.URL.Path]++
	b, ok := s.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Write(b)
}

// change replaces a file; nil removes it.
func (s *site) change(name string, fn func([]byte) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := fn([]byte(string(s.files[name])))
	if s.files[name] = b; b == nil {
		delete(s.files, name)
	}
}

// count is how many requests there were for paths that contain part.
func (s *site) count(part string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, times := range s.seen {
		if strings.Contains(path, part) {
			n += times
		}
	}
	return n
}

func (s *site) die() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
}

// referenceSite serves a reference repository.
func referenceSite(t *testing.T, fqrn string) *site {
	t.Helper()
	files := map[string][]byte{}
	for name, f := range testutil.Reference(t, fqrn) {
		files[name] = f.Data
	}
	return newSite(t, files)
}
