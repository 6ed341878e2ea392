package client

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
)

// External files are what servers of their own have at the files' paths, as far as it has the catalog's digests.
func TestExternalFilesAreVerified(t *testing.T) {
	const none = 4 | catalog.External | catalog.Flags(hash.None)<<11
	f := newForge(t)
	text := []byte("ten bytes!")
	packed := f.object(text, hash.File) // nobody asks for it there
	stored := f.files[packed.Path(hash.File)]
	delete(f.files, packed.Path(hash.File))
	raw := hash.SHA1.Digest(text)
	f.publish(f.catalog("", []entry{
		{path: ""},
		{path: "/raw", mode: file, size: 10, digest: raw, flags: none},
		{path: "/packed", mode: file, size: 10, digest: packed, flags: 4 | catalog.External},
		{path: "/odd \xff%41?#", mode: file, size: 10, digest: raw, flags: none},
		{path: "/lie", mode: file, size: 10, digest: raw, flags: none},
		{path: "/endless", mode: file, size: 10, digest: raw, flags: none},
		{path: "/short", mode: file, size: 9, digest: raw, flags: none},
		{path: "/absent", mode: file, size: 10, digest: raw, flags: none},
	}), 1, time.Now())
	content := map[string][]byte{
		"/x/raw": text, "/x/packed": stored, "/x/odd \xff%41?#": text, "/x/lie": []byte("other text"),
		"/x/endless": bytes.Repeat([]byte("ten bytes!"), 1<<20), "/x/short": text,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := content[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}))
	defer server.Close()
	url := f.serve()
	cfg := f.config()
	var err error
	cfg.Fetcher, err = fetch.New(fetch.Config{
		Servers: []string{url}, External: &fetch.Config{Servers: []string{server.URL + "/x"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRepository(cfg)
	if err != nil {
		t.Fatal(err)
	}
	v := newest(t, r)
	for path, want := range map[string]error{
		"/raw": nil, "/packed": nil, "/odd \xff%41?#": nil, "/lie": fetch.ErrBadData, "/endless": fetch.ErrBadData,
		"/short": fetch.ErrBadData, "/absent": ErrIncomplete,
	} {
		c, err := v.OpenPath(t.Context(), path, 0, 100)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if err != nil {
			continue
		}
		if b, err := io.ReadAll(c); err != nil || !bytes.Equal(b, text) {
			t.Errorf("%s: %q, %v", path, b, err)
		}
		c.Close()
	}
	// Without servers for them they can't be read, and the error says what to set.
	v = newest(t, open(t, f.config(), url))
	if _, err := v.OpenPath(t.Context(), "/raw", 0, 100); !errors.Is(err, fetch.ErrNoExternal) ||
		!strings.Contains(err.Error(), "CVMFS_EXTERNAL_URL") {
		t.Error(err)
	}
}
