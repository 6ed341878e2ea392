package objects

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
)

// External content comes from where the table says it is, whole or in parts, and is kept under the same name as any.
func TestExternalObjects(t *testing.T) {
	plain := noise(1, 10_000)
	var mu sync.Mutex
	ranges := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		ranges[r.URL.Path+" "+r.Header.Get("Range")]++
		mu.Unlock()
		b := plain
		if r.URL.Path == "/lie" {
			b = noise(2, 10_000)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}))
	defer server.Close()
	repo := newRepository(t)
	f, err := fetch.New(fetch.Config{
		Servers: []string{repo.URL}, External: &fetch.Config{Servers: []string{server.URL}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunks := func(file string) Object {
		o := Object{Size: 10_000, Compression: hash.None, External: true, File: file}
		for off := 0; off < 10_000; off += 4000 {
			b := plain[off:min(off+4000, 10_000)]
			o.Chunks = append(o.Chunks, catalog.Chunk{
				Offset: int64(off), Size: int64(len(b)), Digest: hash.SHA1.Digest(b),
			})
		}
		return o
	}
	whole := Object{
		Digest: hash.SHA1.Digest(plain), Size: 10_000, Compression: hash.None, External: true, File: "/whole",
	}
	lie := whole
	lie.File = "/lie"
	for name, o := range map[string]Object{"whole": whole, "chunks": chunks("/chunks")} {
		s := open(t, configIn(t.TempDir(), sources{"r": f}))
		r := ref(t, o)
		b := make([]byte, 100)
		if n, err := s.ReadAt(t.Context(), r, b, 4500); err != nil || !bytes.Equal(b[:n], plain[4500:4600]) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		if name == "chunks" && ranges["/chunks bytes=4000-7999"] != 1 || name == "whole" && ranges["/whole "] != 1 {
			t.Errorf("%s: asked for %v", name, ranges)
		}
		if err := s.Fetch(t.Context(), r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		holds(t, s, r, plain)
	}
	for name, o := range map[string]Object{"whole": lie, "chunks": chunks("/lie")} {
		s := open(t, configIn(t.TempDir(), sources{"r": f}))
		x := NewIndex([16]byte{})
		add := func(o Object) Ref {
			table, err := parseTable(encode(t, []string{"r"}, from([]Object{o}, 0)))
			if err != nil {
				t.Fatal(err)
			}
			x.Add(table)
			r, _ := x.Lookup(o.Name())
			return r
		}
		r := add(o)
		if err := s.Fetch(t.Context(), r); err == nil || s.Has(r) {
			t.Errorf("%s: a lie is believed", name)
		}
		// Another table knows where the content is.
		r = add(map[string]Object{"whole": whole, "chunks": chunks("/chunks")}[name])
		if err := s.Fetch(t.Context(), r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
