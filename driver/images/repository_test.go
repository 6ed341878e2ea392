package images_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

const publishedFQRN = "published.example.org"

// publisher is a repository of the test's own and its server.
type publisher struct {
	*testing.T
	repository *publish.Repository
	site       *testutil.Faulty
	wait       int // seconds for an answer; 0: two
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "publisher")
	if err := publish.Create(t.Context(), dir, publish.Settings{FQRN: publishedFQRN}, publish.Options{}); err != nil {
		t.Fatal(err)
	}
	r, err := publish.Open(dir, publish.Options{})
	if err != nil {
		t.Fatal(err)
	}
	files := http.FileServer(http.Dir(filepath.Join(dir, "www")))
	return &publisher{T: t, repository: r, site: testutil.NewFaulty(t, files)}
}

// layer publishes an archive at a path, and beside it the record made of what is left over, changed by change if that
// isn't nil.
func (p *publisher) layer(path string, archive []byte, change func(*thin.Record)) {
	p.Helper()
	tx := p.begin()
	l, err := tx.Ingest(p.Context(), path, bytes.NewReader(archive), publish.LayerOptions{})
	if err != nil {
		p.Fatal(err)
	}
	r := thin.Record{Links: l.Leftover.Links, Markers: l.Leftover.Markers, Xattrs: map[string][]thin.Xattr{}}
	if a := l.Leftover.Root; a != nil {
		r.Root = &thin.Attributes{Mode: a.Mode, UID: a.UID, GID: a.GID, Mtime: a.Mtime, MtimeN: a.MtimeN}
	}
	for path, attrs := range l.Leftover.Xattrs {
		for _, x := range attrs {
			r.Xattrs[path] = append(r.Xattrs[path], thin.Xattr(x))
		}
	}
	if change != nil {
		change(&r)
	}
	if !r.Empty() {
		b, err := r.Encode()
		if err == nil {
			err = tx.WriteFile(p.Context(), path+thin.RecordSuffix, b, 0o644)
		}
		if err != nil {
			p.Fatal(err)
		}
	}
	p.commit(tx)
}

func (p *publisher) begin() *publish.Transaction {
	p.Helper()
	tx, err := p.repository.Begin(p.Context())
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { tx.Abort() })
	return tx
}

func (p *publisher) commit(tx *publish.Transaction) {
	p.Helper()
	if _, err := tx.Commit(p.Context(), publish.CommitOptions{}); err != nil {
		p.Fatal(err)
	}
}

// compose returns the image of layers, bottom to top, composed by a host that knows nothing yet.
func (p *publisher) compose(paths ...string) (*images.Image, error) {
	p.Helper()
	c, chain := p.composer("", paths...)
	return c.Compose(p.Context(), chain)
}

// composer makes one that has fetched nothing, on a folder ("" for one of its own), and the chain of some published
// layers.
func (p *publisher) composer(dir string, paths ...string) (*images.Composer, []images.Layer) {
	p.Helper()
	d := &thin.Descriptor{}
	for _, path := range paths {
		d.Layers = append(d.Layers, thin.Layer{Digest: "0", FQRN: publishedFQRN, Path: path})
	}
	c, _ := composer(p.T, images.Config{Dir: dir, Repositories: p.repositories()})
	return c, []images.Layer{{Thin: d}}
}

// repositories is a client that has fetched nothing.
func (p *publisher) repositories() *client.Repositories {
	p.Helper()
	folder := p.TempDir()
	keys, err := filepath.Glob(filepath.Join(p.repository.Dir(), "keys", "*.pub"))
	if err != nil || len(keys) != 1 {
		p.Fatal(keys, err)
	}
	for name, text := range map[string]string{
		"default.local": fmt.Sprintf("CVMFS_HTTP_PROXY=DIRECT\nCVMFS_TIMEOUT_DIRECT=%d\nCVMFS_MAX_RETRIES=0\n",
			cmp.Or(p.wait, 2)),
		"config.d/" + publishedFQRN + ".conf": "CVMFS_SERVER_URL=" + p.site.URL + "/cvmfs/" + publishedFQRN +
			"\nCVMFS_PUBLIC_KEY=" + keys[0] + "\n",
	} {
		name = filepath.Join(folder, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755),
			os.WriteFile(name, []byte(text), 0o644)); err != nil {
			p.Fatal(err)
		}
	}
	return client.NewRepositories(config.Folder{Dir: folder}, nil, client.Options{Dir: p.TempDir()})
}

// fetched returns the path of the one object fetched so far that is neither a catalog nor a certificate.
func (p *publisher) fetched() string {
	p.Helper()
	found := map[string]bool{}
	for _, r := range p.site.Log() {
		if strings.Contains(r.URL.Path, "/data/") && !strings.HasSuffix(r.URL.Path, "C") &&
			!strings.HasSuffix(r.URL.Path, "X") {
			found[r.URL.Path] = true
		}
	}
	if len(found) != 1 {
		p.Fatalf("fetched %v, want one object", found)
	}
	return slices.Collect(maps.Keys(found))[0]
}

// archive makes a layer's archive.
func archive(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Format = tar.FormatPAX
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_500_000_000, 1)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// rich is a layer with all that a catalog has no place for.
func rich(t *testing.T) []byte {
	long := map[string]string{"SCHILY.xattr.user.long": strings.Repeat("x", 1000)}
	return archive(t,
		tar.Header{Name: "./", Mode: 0o1750, Uid: 3, Gid: 4, PAXRecords: long},
		tar.Header{Name: "a/", Mode: 0o755}, tar.Header{Name: "a/file", Mode: 0o640, Size: 5, PAXRecords: long},
		tar.Header{Name: "b/", Mode: 0o755}, tar.Header{
			Name: "b/file", Typeflag: tar.TypeLink, Linkname: "a/file",
			Mode: 0o640,
		},
		tar.Header{Name: "b/again", Typeflag: tar.TypeLink, Linkname: "b/file", Mode: 0o640},
		tar.Header{Name: "a/link", Typeflag: tar.TypeSymlink, Linkname: "file", Mode: 0o777},
		tar.Header{Name: "b/link", Typeflag: tar.TypeLink, Linkname: "a/link", Mode: 0o777},
		tar.Header{Name: "a/.cvmfscatalog", Mode: 0o600, Size: 1}, tar.Header{Name: ".cvmfscatalog", Mode: 0o644},
	)
}

func TestAPublishedLayerIsComposedAsItsArchiveSays(t *testing.T) {
	testutil.NeedRoot(t) // before anything is published
	p := newPublisher(t)
	p.layer("/layers/l", rich(t), nil)
	image, err := p.compose("/layers/l")
	if err != nil {
		t.Fatal(err)
	}
	entries, _ := show(t, mount(t, image))
	long := hex.EncodeToString(bytes.Repeat([]byte("x"), 1000))
	got := map[string]string{}
	for _, e := range entries {
		text := fmt.Sprintf("%o %d", e.Mode, e.Nlink)
		if e.Same != "" {
			text += " " + e.Same
		}
		if e.Xattrs["user.long"] == long {
			text += " long"
		}
		got[e.Path] = text
	}
	for path, want := range map[string]string{
		"": "41750 4 long", "/a/file": "100640 3 /a/file long", "/b/file": "100640 3 /a/file long",
		"/b/again": "100640 3 /a/file long",
		"/a/link":  "120777 2 /a/link", "/b/link": "120777 2 /a/link", "/a/.cvmfscatalog": "100600 1",
		"/.cvmfscatalog": "100644 1",
	} {
		if got[path] != want {
			t.Errorf("%q is %q, want %q", path, got[path], want)
		}
	}
	if root := entries[0]; root.UID != 3 || root.GID != 4 || root.Mtime != 1_500_000_000 {
		t.Errorf("the root folder is %+v", root)
	}
}

func TestWithoutItsRecordALayerIsWhatTheCatalogSays(t *testing.T) {
	testutil.NeedRoot(t) // before anything is published
	p := newPublisher(t)
	p.layer("/layers/l", rich(t), func(r *thin.Record) { *r = thin.Record{} })
	image, err := p.compose("/layers/l")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range first(show(t, mount(t, image))) {
		if e.Mode&syscall.S_IFMT != syscall.S_IFDIR && e.Nlink != 1 || filepath.Base(e.Path) == ".cvmfscatalog" ||
			e.Path == "" && e.Mode&0o7777 != 0o755 {
			t.Errorf("%+v is what only a record says", e)
		}
	}
}

func first[A, B any](a A, _ B) A { return a }

// The record is part of what an image is made of, its absence too.
func TestAnotherRecordMakesAnotherImage(t *testing.T) {
	p := newPublisher(t)
	key := func() string {
		t.Helper()
		image, err := p.compose("/layers/l")
		if err != nil {
			t.Fatal(err)
		}
		return image.Key
	}
	write := func(text string) {
		t.Helper()
		tx := p.begin()
		if err := tx.WriteFile(t.Context(), "/layers/l"+thin.RecordSuffix, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		p.commit(tx)
	}
	p.layer("/layers/l", rich(t), func(r *thin.Record) { *r = thin.Record{} })
	keys := map[string]string{key(): "no record"}
	for _, text := range []string{
		`{"version":1}`, `{"version":1,"root":{"mode":448}}`,
		`{"version":1,"root":{"mode":449}}`,
	} {
		write(text)
		k := key()
		if keys[k] != "" {
			t.Errorf("%s gives the image of %s", text, keys[k])
		}
		keys[k] = text
		if again := key(); again != k {
			t.Errorf("%s gives image %s and then %s", text, k, again)
		}
	}
}

func TestBadRecordsAreRefused(t *testing.T) {
	p := newPublisher(t)
	for name, c := range map[string]struct {
		record string
		says   string
	}{
		"no JSON":              {"{", "unexpected end"},
		"a newer version":      {`{"version":7}`, "upgrade the driver"},
		"a path upwards":       {`{"version":1,"markers":["../.cvmfscatalog"]}`, "component"},
		"a contradiction":      {`{"version":1,"links":[["a/file","a"]]}`, "convert the image again"},
		"no path of the layer": {`{"version":1,"xattrs":{"a/file/x":[{"name":"user.a","value":""}]}}`, `"a/file/x"`},
		"a huge attribute": {`{"version":1,"xattrs":{"a/file":[{"name":"user.a","value":"` + strings.Repeat("AAAA",
			1<<16/3+1) + `"}]}}`, "attribute"},
		"too many attributes": {`{"version":1,"xattrs":{"a/file":[` + attributes(300) + `]}}`, "extended attributes"},
		"nothing":             {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := "/layers/" + strings.ReplaceAll(name, " ", "-")
			p := &publisher{T: t, repository: p.repository, site: p.site}
			p.layer(path, rich(t), func(r *thin.Record) { *r = thin.Record{} })
			tx := p.begin()
			if err := tx.WriteFile(t.Context(), path+thin.RecordSuffix, []byte(c.record), 0o644); err != nil {
				t.Fatal(err)
			}
			p.commit(tx)
			if _, err := p.compose(path); err == nil || !strings.Contains(err.Error(), c.says) ||
				!strings.Contains(err.Error(), "record") && name != "too many attributes" {
				t.Errorf("got %v, want an error about the record with %q", err, c.says)
			}
		})
	}
	for name, c := range map[string]struct {
		record tar.Header
		says   string
	}{
		"a folder": {tar.Header{Name: "l.record.json/", Mode: 0o755}, "not a regular file"},
		"a symbolic link": {
			tar.Header{Name: "l.record.json", Typeflag: tar.TypeSymlink, Linkname: "l/file"},
			"not a regular file",
		},
		"65 MiB": {tar.Header{Name: "l.record.json", Mode: 0o644, Size: 65 << 20}, "the limit is"},
	} {
		t.Run(name, func(t *testing.T) {
			above := "/above/" + strings.ReplaceAll(name, " ", "-")
			p := &publisher{T: t, repository: p.repository, site: p.site}
			p.layer(above, archive(t, tar.Header{Name: "l/", Mode: 0o755},
				tar.Header{Name: "l/file", Mode: 0o644, Size: 1}, c.record), nil)
			if _, err := p.compose(above + "/l"); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error with %q", err, c.says)
			}
		})
	}
}

// attributes are so many of 1,000 bytes each.
func attributes(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`{"name":"user.%d","value":"%s"}`, i, strings.Repeat("AAAA", 333)))
	}
	return strings.Join(list, ",")
}

func TestARecordThatCannotBeHadIsLikeACatalogThatCannot(t *testing.T) {
	p := newPublisher(t)
	p.layer("/layers/l", rich(t), nil)
	if _, err := p.compose("/layers/l"); err != nil {
		t.Fatal(err)
	}
	record := p.fetched()
	for name, c := range map[string]struct {
		fault testutil.Fault
		want  error
	}{
		"no answer": {testutil.Fault{Refuse: true}, fetch.ErrUnavailable},
		"damaged":   {testutil.Fault{Flip: true}, fetch.ErrBadData},
		"gone":      {testutil.Fault{Status: http.StatusNotFound}, client.ErrIncomplete},
	} {
		t.Run(name, func(t *testing.T) {
			c.fault.Path = record
			p.site.Set(c.fault)
			defer p.site.Set()
			p := &publisher{T: t, repository: p.repository, site: p.site}
			if _, err := p.compose("/layers/l"); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if _, err := p.compose("/layers/l"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// An image that is composed for nobody would lie on disk named by nobody.
func TestNothingIsComposedForACallerThatHasGone(t *testing.T) {
	p := newPublisher(t)
	p.layer("/layers/l", rich(t), nil)
	if _, err := p.compose("/layers/l"); err != nil {
		t.Fatal(err)
	}
	const slow = 300 * time.Millisecond
	record := p.fetched()
	p.site.Set(testutil.Fault{Path: record, Latency: slow})
	before := len(p.site.Log())
	dir := t.TempDir()
	c, chain := p.composer(dir, "/layers/l")
	ctx, cancel := context.WithCancel(t.Context())
	gone, waiting := make(chan error, 1), make(chan error, 1)
	compose := func(ctx context.Context, ended chan error) { ended <- second(c.Compose(ctx, chain)) }
	go compose(ctx, gone)
	asked := func(r *http.Request) bool { return r.URL.Path == record }
	for !slices.ContainsFunc(p.site.Log()[before:], asked) {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that has gone got %v", err)
	}
	time.Sleep(2 * slow) // for what goes on all the same
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("on disk are %v, %v", entries, err)
	}
	// Nor does one that goes take the image from another that waits for it.
	ctx, cancel = context.WithCancel(t.Context())
	go compose(ctx, gone)
	time.Sleep(slow / 6)
	go compose(t.Context(), waiting)
	time.Sleep(slow / 6)
	cancel()
	<-gone
	if err := <-waiting; err != nil {
		t.Errorf("the one that waited: %v", err)
	}
}

// On a long way every answer that is waited for costs a round trip: what all layers need is asked for at once.
func TestCatalogsAndRecordsOfAllLayersAreAskedForAtOnce(t *testing.T) {
	p := newPublisher(t)
	paths := []string{"/layers/a", "/layers/b"} // as many as new connections are made at once, two for each
	for i, path := range paths {
		p.layer(path, rich(t), func(r *thin.Record) { r.Root = &thin.Attributes{Mode: 0o700 + uint32(i)} })
	}
	root := publishtest.Newest(t, p.repository).Root.Path(hash.Catalog)
	files := http.FileServer(http.Dir(filepath.Join(p.repository.Dir(), "www")))
	var mu sync.Mutex
	waiting, all := 0, make(chan struct{})
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/data/") && !strings.HasSuffix(r.URL.Path, "X") &&
			!strings.HasSuffix(r.URL.Path, root) {
			mu.Lock()
			if waiting++; waiting == 2*len(paths) {
				close(all)
			}
			mu.Unlock()
			select {
			case <-all:
			case <-time.After(time.Minute):
				http.Error(w, "the others aren't asked for", http.StatusInternalServerError)
				return
			}
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(site.Close)
	p.site.URL, p.wait = site.URL, 120
	if _, err := p.compose(paths...); err != nil {
		t.Errorf("with %d of %d requests under way: %v", waiting, 2*len(paths), err)
	}
}

// Which of the layers is missing is told, and no other, also where it can't be found out whether it was published
// since.
func TestAnErrorNamesTheLayerItIsAbout(t *testing.T) {
	p := newPublisher(t)
	p.layer("/layers/here", rich(t), nil)
	files := http.FileServer(http.Dir(filepath.Join(p.repository.Dir(), "www")))
	var asked atomic.Int32
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/.cvmfspublished") && asked.Add(1) > 1 {
			http.Error(w, "gone", http.StatusServiceUnavailable)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(site.Close)
	p.site.URL = site.URL
	_, err := p.compose("/layers/here", "/layers/missing")
	if text := fmt.Sprint(err); strings.Contains(text, "/layers/here") || !strings.Contains(text, "/layers/missing") {
		t.Errorf("got %v, want an error about /layers/missing", err)
	}
	if asked.Load() < 2 {
		t.Error("it was not asked whether there is a newer revision")
	}
}
