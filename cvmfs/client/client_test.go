package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/trust"
	"cvmfs-graphdriver/test/testutil"
)

const features = "features.example.org"

// reference is the configuration for a reference repository.
func reference(t *testing.T, fqrn string) sources {
	t.Helper()
	keys, err := trust.LoadKeys(testutil.PublicKey(t, fqrn))
	if err != nil {
		t.Fatal(err)
	}
	return sources{FQRN: fqrn, Keys: keys, Dir: t.TempDir()}
}

func open(t testing.TB, cfg sources, servers ...string) *Repository {
	t.Helper()
	f, err := fetch.New(fetch.Config{
		Servers: servers, Timeout: time.Second, TimeoutDirect: time.Second, BackoffInit: time.Millisecond,
		BackoffMax: 2 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	cfg.Fetcher = f
	r, err := newRepository(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newest(t testing.TB, r *Repository) *Revision {
	t.Helper()
	v, err := r.Newest(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// walkAll reads the tree and every file in it.
func walkAll(ctx context.Context, v *Revision) (paths []string, err error) {
	err = v.Walk(ctx, "", func(n *Node) error {
		paths = append(paths, n.Path)
		if !n.IsRegular() {
			return nil
		}
		c, err := v.Open(ctx, n.Path, n.Entry)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.Copy(io.Discard, c)
		return err
	})
	return paths, err
}

func TestRevisionSaysWhatWasVerified(t *testing.T) {
	cfg := reference(t, features)
	cfg.MaxTTL = time.Minute
	v := newest(t, open(t, cfg, referenceSite(t, features).url))
	root, _ := hash.Parse("ab66511a6c08cb9c9b39832d5931780e833ccdab")
	if v.FQRN != features || v.Number != 4 || v.Root != root || v.TTL != time.Minute {
		t.Errorf("revision %+v", v)
	}
	if v.Published.Unix() != 1795409774 || v.Expires.Year() != 2046 ||
		!strings.HasPrefix(v.Certificate, "66:3E:87:42:") {
		t.Errorf("published %v, expires %v, certificate %q", v.Published, v.Expires, v.Certificate)
	}
}

func TestWalksVisitEverythingOnceInTheirOrder(t *testing.T) {
	v := newest(t, open(t, reference(t, features), referenceSite(t, features).url))
	collect := func(walk func(context.Context, string, func(*Node) error) error, path string) (paths []string) {
		t.Helper()
		err := walk(t.Context(), path, func(n *Node) error {
			paths = append(paths, n.Path)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return paths
	}
	deep, sorted := collect(v.Walk, ""), collect(v.WalkSorted, "")
	if !slices.IsSortedFunc(deep, compareWalk) {
		t.Error("Walk isn't depth first")
	}
	if !slices.IsSorted(sorted) || len(sorted) != 1376 {
		t.Errorf("WalkSorted gave %d paths, want 1376 in order", len(sorted))
	}
	slices.Sort(deep)
	if diff := cmp.Diff(sorted, deep); diff != "" {
		t.Errorf("the walks differ (-sorted +deep):\n%s", diff)
	}
	for _, top := range []string{"/nested", "/nested/inner", "/small", "/small/hello.txt"} {
		var want []string
		for _, p := range sorted {
			if (mount{path: top}).holds(p) {
				want = append(want, p)
			}
		}
		if diff := cmp.Diff(want, collect(v.WalkSorted, top)); diff != "" || len(want) == 0 {
			t.Errorf("walk of %s (-want +got):\n%s", top, diff)
		}
	}
}

func TestLookupAndListAgreeWithWalk(t *testing.T) {
	v := newest(t, open(t, reference(t, features), referenceSite(t, features).url))
	// Mounts differ by their flags: they are looked up in the parent, and walked in the child.
	flags := cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "Flags" }, cmp.Ignore())
	n := 0
	err := v.Walk(t.Context(), "/nested", func(want *Node) error {
		n++
		got, err := v.Lookup(t.Context(), want.Path)
		if err != nil {
			return err
		}
		if diff := cmp.Diff(want.Entry, got, flags); diff != "" {
			t.Errorf("%s (-walk +lookup):\n%s", want.Path, diff)
		}
		return nil
	})
	if err != nil || n < 80 {
		t.Fatalf("%d nodes, %v", n, err)
	}
	nodes, err := v.List(t.Context(), "/nested")
	if err != nil || len(nodes) != 4 && len(nodes) != 3 {
		t.Errorf("List: %d nodes, %v", len(nodes), err)
	}
}

func TestMissingPathsAreNotThere(t *testing.T) {
	v := newest(t, open(t, reference(t, features), referenceSite(t, features).url))
	for _, path := range []string{
		"/nothing", "/nested/nothing", "/nested/inner/no/thing", "/nestedx",
		"/small/hello.txt/x",
	} {
		said := fmt.Sprintf("look up %q in %s, revision %d: %v", path, features, v.Number, fs.ErrNotExist)
		if _, err := v.Lookup(t.Context(), path); !errors.Is(err, fs.ErrNotExist) || err.Error() != said {
			t.Errorf("Lookup(%q): %v, want %q", path, err, said)
		}
		if err := v.Walk(t.Context(), path, func(*Node) error { return nil }); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Walk(%q): %v, want fs.ErrNotExist", path, err)
		}
		if _, err := v.List(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("List(%q): %v, want fs.ErrNotExist", path, err)
		}
	}
	if _, err := v.List(t.Context(), "/small/hello.txt"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("List of a file: %v, want an error that it's no folder", err)
	}
}

func TestOddPathsAreRefused(t *testing.T) {
	v := newest(t, open(t, reference(t, features), referenceSite(t, features).url))
	for _, path := range []string{
		"/", "small", "/small/", "//small", "/small/../small", "/./small", "/a\x00b",
		strings.Repeat("/a", maxPath),
	} {
		if _, err := v.Lookup(t.Context(), path); !errors.Is(err, errPath) {
			t.Errorf("Lookup(%.20q): %v, want it refused", path, err)
		}
		if err := v.Walk(t.Context(), path, func(*Node) error { return nil }); !errors.Is(err, errPath) {
			t.Errorf("Walk(%.20q): %v, want it refused", path, err)
		}
	}
}

func flip(b []byte) []byte     { b[len(b)/2] ^= 1; return b }
func truncate(b []byte) []byte { return b[:len(b)*2/3] }

// same replaces a file by another.
func same(s *site, name string) func([]byte) []byte {
	return func([]byte) []byte { return s.files[name] }
}

const (
	rootCatalog   = "data/ab/66511a6c08cb9c9b39832d5931780e833ccdabC"
	olderCatalog  = "data/08/57a577da667cef9dd39ecd6423939e72d31e5dC"
	nestedCatalog = "data/91/24c6adb37c9fe881585acb0769a403825a5ec1C"
	otherNested   = "data/af/f3669672facb17ed45b1cc5367e13b5473d15aC"
	object        = "data/14/5293fdc17bc8032d0fdd79c0338761bdc9b045" // a small file
	certificate   = "data/ca/166cf136ad3b231d135aa7a96b76c263f3eba3X"
)

// Whatever a server changes is noticed, named, and another server's copy is used where there is one.
func TestTamperedRepositoriesAreRefusedAndPassedOver(t *testing.T) {
	site, other := referenceSite(t, features), referenceSite(t, "images.example.org")
	for what, c := range map[string]struct {
		name   string // of the file that is changed
		change func([]byte) []byte
		is     error
		says   string
	}{
		"manifest changed": {
			".cvmfspublished", func(b []byte) []byte { b[100] ^= 1; return b },
			trust.ErrSignature, "manifest",
		},
		"manifest truncated": {
			".cvmfspublished", func(b []byte) []byte { return b[:200] }, trust.ErrInvalid,
			"manifest",
		},
		"manifest signature changed": {
			".cvmfspublished", func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
			trust.ErrSignature, "manifest",
		},
		"manifest of another": {
			".cvmfspublished", same(other, ".cvmfspublished"), trust.ErrInvalid,
			"images.example.org",
		},
		"manifest endless": {
			".cvmfspublished", func([]byte) []byte { return make([]byte, 1<<20) },
			fetch.ErrBadData, "more than",
		},
		"whitelist changed": {
			".cvmfswhitelist", func(b []byte) []byte { b[20] ^= 1; return b },
			trust.ErrSignature, "whitelist",
		},
		"whitelist truncated": {".cvmfswhitelist", truncate, trust.ErrSignature, "whitelist"},
		"whitelist of another": {
			".cvmfswhitelist", same(other, ".cvmfswhitelist"), trust.ErrSignature,
			"whitelist",
		},
		"whitelist endless": {
			".cvmfswhitelist", func([]byte) []byte { return make([]byte, 1<<20) },
			fetch.ErrBadData, "more than",
		},
		"certificate changed":          {certificate, flip, fetch.ErrBadData, certificate},
		"certificate truncated":        {certificate, truncate, fetch.ErrBadData, certificate},
		"root catalog changed":         {rootCatalog, flip, fetch.ErrBadData, rootCatalog},
		"root catalog truncated":       {rootCatalog, truncate, fetch.ErrBadData, rootCatalog},
		"root catalog an older one":    {rootCatalog, same(site, olderCatalog), fetch.ErrBadData, rootCatalog},
		"nested catalog changed":       {nestedCatalog, flip, fetch.ErrBadData, nestedCatalog},
		"nested catalog truncated":     {nestedCatalog, truncate, fetch.ErrBadData, nestedCatalog},
		"nested catalog a valid other": {nestedCatalog, same(site, otherNested), fetch.ErrBadData, nestedCatalog},
		"nested catalog huge": {
			nestedCatalog, func([]byte) []byte { return make([]byte, 4<<20) },
			fetch.ErrBadData, nestedCatalog,
		},
		"object changed":   {object, flip, fetch.ErrBadData, "content of"},
		"object truncated": {object, truncate, fetch.ErrBadData, "content of"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			tampered := referenceSite(t, features)
			tampered.change(c.name, c.change)
			bad, good := tampered.url, site.url

			v, err := open(t, reference(t, features), bad).Newest(t.Context())
			if err == nil {
				_, err = walkAll(t.Context(), v)
			}
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) ||
				!strings.Contains(err.Error(), features) {
				t.Errorf("got %v\nwant %q, naming %q and the repository", err, c.is, c.says)
			}
			paths, err := walkAll(t.Context(), newest(t, open(t, reference(t, features), bad, good)))
			if err != nil || len(paths) != 1376 {
				t.Errorf("with a good second server: %d paths, %v", len(paths), err)
			}
		})
	}
}

// Who has a server but no key can sign with a key of his own: others than the listed ones are nobody's.
func TestStrangersSignaturesAreRefusedAndPassedOver(t *testing.T) {
	f := newForge(t)
	f.fqrn = features
	f.publish(f.catalog("", []entry{{path: ""}}), 99, time.Now())
	site := referenceSite(t, features)
	for name, content := range f.files {
		if name != ".cvmfswhitelist" {
			site.change(name, func([]byte) []byte { return content })
		}
	}
	if _, err := open(t, reference(t, features), site.url).Newest(t.Context()); !errors.Is(err,
		trust.ErrNotWhitelisted) {
		t.Errorf("got %v, want trust.ErrNotWhitelisted", err)
	}
	if v := newest(t, open(t, reference(t, features), site.url, referenceSite(t, features).url)); v.Number != 4 {
		t.Errorf("revision %d, want the good server's 4", v.Number)
	}
	site.change(".cvmfswhitelist", func([]byte) []byte { return f.files[".cvmfswhitelist"] })
	if _, err := open(t, reference(t, features), site.url).Newest(t.Context()); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("with a whitelist of his own: got %v, want trust.ErrSignature", err)
	}
}

func TestMissingObjectsAreNotMissingPaths(t *testing.T) {
	for _, name := range []string{
		".cvmfspublished", ".cvmfswhitelist", certificate, rootCatalog, nestedCatalog,
		object,
	} {
		site := referenceSite(t, features)
		site.change(name, func([]byte) []byte { return nil })
		v, err := open(t, reference(t, features), site.url).Newest(t.Context())
		if err == nil {
			_, err = walkAll(t.Context(), v)
		}
		if !errors.Is(err, ErrIncomplete) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without %q: got %v, want ErrIncomplete and not fs.ErrNotExist", name, err)
		}
	}
}

func TestAnUnreachableServerIsSaidToBeSo(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close()
	start := time.Now()
	_, err := open(t, reference(t, features), s.URL).Newest(t.Context())
	if err == nil || !strings.Contains(err.Error(), s.URL) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want an error that names the server", err)
	}
	if time.Since(start) > 20*time.Second {
		t.Error("took unreasonably long")
	}
}

// A repository whose servers die after the manifest was got fails within the bounds of fetch, without a hang.
func TestServerThatDiesDuringAWalk(t *testing.T) {
	site := referenceSite(t, features)
	v := newest(t, open(t, reference(t, features), site.url))
	site.die()
	if _, err := walkAll(t.Context(), v); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want an error that isn't fs.ErrNotExist", err)
	}
}

func TestBlacklistsAndExpiryAreApplied(t *testing.T) {
	url := referenceSite(t, features).url
	fingerprint := newest(t, open(t, reference(t, features), url)).Certificate
	blacklist := func(line string) *trust.Blacklist {
		name := filepath.Join(t.TempDir(), "blacklist")
		if err := os.WriteFile(name, []byte(line+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		b, err := trust.LoadBlacklist(name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for what, c := range map[string]struct {
		set func(*sources)
		is  error
	}{
		"certificate":    {func(c *sources) { c.Blacklist = blacklist(fingerprint) }, trust.ErrBlacklisted},
		"revision":       {func(c *sources) { c.Blacklist = blacklist("<" + features + " 5") }, trust.ErrBlacklisted},
		"other revision": {func(c *sources) { c.Blacklist = blacklist("<" + features + " 4") }, nil},
		"expiry": {func(c *sources) {
			c.Now = func() time.Time {
				return time.Date(2047, 1, 1, 0, 0, 0, 0,
					time.UTC)
			}
		}, trust.ErrExpired},
	} {
		cfg := reference(t, features)
		c.set(&cfg)
		if _, err := open(t, cfg, url).Newest(t.Context()); !errors.Is(err, c.is) {
			t.Errorf("%s: got %v, want %v", what, err, c.is)
		}
	}
}

func TestRollbackIsRefusedAndANewerServerPreferred(t *testing.T) {
	f := newForge(t)
	root := f.catalog("", []entry{{path: ""}})
	f.publish(root, 1, time.Unix(1_800_000_000, 0))
	url := f.serve()
	// A copy of the repository that has fallen behind in time, though not in number.
	f.publish(root, 1, time.Unix(1_700_000_000, 0))
	staleURL := f.serve()

	cfg := f.config()
	newest(t, open(t, cfg, url))
	newest(t, open(t, cfg, url)) // the same again is fine
	if _, err := open(t, cfg, staleURL).Newest(t.Context()); !errors.Is(err, ErrRollback) ||
		!strings.Contains(err.Error(), "2027") {
		t.Errorf("older time: got %v, want ErrRollback with what was seen", err)
	}
	if v := newest(t, open(t, cfg, staleURL, url)); v.Published.Unix() != 1_800_000_000 {
		t.Errorf("got the revision of %v, want the newer server's", v.Published)
	}
	// An older number with a newer time.
	r := open(t, cfg, url)
	if err := r.remember(state{root: root.digest, published: 1, revision: 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Newest(t.Context()); !errors.Is(err, ErrRollback) ||
		!strings.Contains(err.Error(), "revision 1, but 2") {
		t.Errorf("older number: got %v, want ErrRollback", err)
	}
	// Without memory, a first contact is believed.
	newest(t, open(t, f.config(), staleURL))
}

func TestDamagedStateIsNotTakenForNone(t *testing.T) {
	url := referenceSite(t, features).url
	for _, text := range []string{"", "x", "abT1R1\n", "ab66511a6c08cb9c9b39832d5931780e833ccdabT1795409774R4"} {
		cfg := reference(t, features)
		r := open(t, cfg, url)
		if err := os.WriteFile(r.stateFile(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Newest(t.Context()); err == nil || !strings.Contains(err.Error(), r.stateFile()) {
			t.Errorf("%q: got %v, want an error that names the file", text, err)
		}
	}
}

func FuzzParseState(f *testing.F) {
	f.Add("ab66511a6c08cb9c9b39832d5931780e833ccdabT1795409774R4\n")
	f.Add("ab66511a6c08cb9c9b39832d5931780e833ccdab-shake128T-1R0\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseState(text)
		if err != nil {
			return
		}
		if again, err := parseState(s.String()); err != nil || again != s {
			t.Errorf("%q became %+v, then %+v (%v)", text, s, again, err)
		}
	})
}

func TestNewestIsAskedForOnceByManyAndAgainLater(t *testing.T) {
	site := referenceSite(t, features)
	r := open(t, reference(t, features), site.url)
	var g sync.WaitGroup
	for range 30 {
		g.Go(func() {
			if _, err := r.Newest(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if n := site.count(".cvmfspublished"); n != 1 {
		t.Errorf("30 callers made %d requests, want 1", n)
	}
	before := r.last.at
	if _, err := r.Refresh(t.Context()); err != nil || site.count(".cvmfspublished") != 2 ||
		r.last.at.Sub(before) < time.Second {
		t.Errorf("Refresh: %d requests, %v after %v; want a second one, not within a second",
			site.count(".cvmfspublished"), err, r.last.at.Sub(before))
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := r.Refresh(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Refresh by somebody who has gone: %v", err)
	}
	cfg := reference(t, features)
	cfg.Fresh = -1
	r = open(t, cfg, site.url)
	newest(t, r)
	newest(t, r)
	if n := site.count(".cvmfspublished"); n != 4 {
		t.Errorf("without memory: %d requests, want 4", n)
	}
	if n := site.count(".cvmfswhitelist"); n != 4 {
		t.Errorf("the whitelist was got %d times, want 4: an unchanged root catalog is no reason to trust", n)
	}
}

func TestWaitingForAnotherCallerEndsWithTheContext(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(release) })
	r := open(t, reference(t, features), s.URL)
	first, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := r.Newest(first); done <- err }()
	for len(r.asking) == 0 {
		time.Sleep(time.Millisecond)
	}
	second, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Newest(second); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting: got %v, want context.Canceled", err)
	}
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("asking: got %v, want context.Canceled", err)
	}
	if r.last.err != nil {
		t.Errorf("a caller's cancellation was remembered for others: %v", r.last.err)
	}
}

func TestCatalogsAreKeptAndReused(t *testing.T) {
	site := referenceSite(t, features)
	cfg := reference(t, features)
	for range 2 {
		if _, err := walkAll(t.Context(), newest(t, open(t, cfg, site.url))); err != nil {
			t.Fatal(err)
		}
	}
	if n := site.count(rootCatalog) + site.count(nestedCatalog); n != 2 {
		t.Errorf("%d requests for two catalogs, want 2", n)
	}
}

func TestDamagedCatalogsOnDiskAreGotAnew(t *testing.T) {
	for what, damage := range map[string]func([]byte) []byte{
		"cut":        func(b []byte) []byte { return b[:4096] },
		"emptied":    func([]byte) []byte { return nil },
		"no catalog": func(b []byte) []byte { return make([]byte, len(b)) },
		"rows gone bad": func(b []byte) []byte {
			clear(b[len(b)/2:])
			return b
		},
	} {
		t.Run(what, func(t *testing.T) {
			site := referenceSite(t, features)
			r := open(t, reference(t, features), site.url)
			if _, err := walkAll(t.Context(), newest(t, r)); err != nil {
				t.Fatal(err)
			}
			files, _, err := r.list()
			if err != nil || len(files) != 4 {
				t.Fatalf("%d catalogs on disk (%v), want 4", len(files), err)
			}
			for _, f := range files {
				name := filepath.Join(r.catalogs(), f.Name())
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, damage(b), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := site.count("C")
			paths, err := walkAll(t.Context(), newest(t, r))
			if err != nil || len(paths) != 1376 {
				t.Errorf("%d paths, %v", len(paths), err)
			}
			if n := site.count("C") - before; n != 4 {
				t.Errorf("%d catalogs got anew, want 4", n)
			}
		})
	}
}

func TestCatalogsOnDiskStayBelowTheLimit(t *testing.T) {
	cfg := reference(t, features)
	cfg.CatalogLimit = 240_000
	r := open(t, cfg, referenceSite(t, features).url)
	v := newest(t, r)
	leftover := filepath.Join(r.temporary(), "catalog-1")
	if err := os.WriteFile(leftover, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(leftover, long, long); err != nil {
		t.Fatal(err)
	}
	for i, path := range []string{"/many", "/nested/inner"} {
		if err := v.Walk(t.Context(), path, func(*Node) error { return nil }); err != nil {
			t.Fatal(err)
		}
		files, total, err := r.list()
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 && (total > cfg.CatalogLimit || len(files) < 2) {
			t.Errorf("%d catalogs of %d bytes are left, limit %d", len(files), total, cfg.CatalogLimit)
		}
		for _, f := range files { // a while later
			old := f.ModTime().Add(-time.Hour)
			if err := os.Chtimes(filepath.Join(r.catalogs(), f.Name()), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := os.Stat(leftover); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a former life left is still there: %v", err)
	}
}

func TestWalkEndsWithItsFunctionAndItsContext(t *testing.T) {
	v := newest(t, open(t, reference(t, features), referenceSite(t, features).url))
	stop := errors.New("stop")
	n := 0
	err := v.Walk(t.Context(), "", func(*Node) error {
		if n++; n == 5 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || n != 5 {
		t.Errorf("after %d nodes: %v, want the function's own error after 5", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	err = v.Walk(ctx, "", func(*Node) error {
		if n++; n == 5 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || n != 5 {
		t.Errorf("after %d nodes: %v, want context.Canceled after 5", n, err)
	}
}

func TestInconsistentRepositoriesAreRefused(t *testing.T) {
	dir := func(path string) entry { return entry{path: path} }
	at := func(path string) entry { return entry{path: path, flags: 1 | catalog.Mountpoint} }
	for what, c := range map[string]struct {
		make func(f *forge) (forged, uint64)
		is   error
	}{
		"another revision in the root catalog": {func(f *forge) (forged,
			uint64,
		) {
			return f.catalog("", []entry{dir("")}), 2
		}, ErrInconsistent},
		"a nested catalog as root": {func(f *forge) (forged,
			uint64,
		) {
			return f.catalog("/a", []entry{dir("/a")}), 1
		}, ErrInconsistent},
		"another size": {func(f *forge) (forged, uint64) {
			c := f.catalog("", []entry{dir("")})
			c.size++
			return c, 1
		}, catalog.ErrInvalid},
		"a smaller size": {func(f *forge) (forged, uint64) {
			c := f.catalog("", []entry{dir("")})
			c.size--
			return c, 1
		}, fetch.ErrBadData},
		"a nested catalog of another place": {func(f *forge) (forged, uint64) {
			n := f.catalog("/b", []entry{dir("/b")})
			n.path = "/a"
			return f.catalog("", []entry{dir(""), at("/a")}, n), 1
		}, ErrInconsistent},
		"the root catalog nested in itself": {func(f *forge) (forged, uint64) {
			n := f.catalog("", []entry{dir(""), dir("/a")})
			n.path = "/a"
			return f.catalog("", []entry{dir(""), at("/a")}, n), 1
		}, ErrInconsistent},
		"a nested root that is a file": {func(f *forge) (forged, uint64) {
			n := f.catalog("/a", []entry{{path: "/a", mode: file}})
			return f.catalog("", []entry{dir(""), at("/a")}, n), 1
		}, ErrInconsistent},
		"a nested catalog without root": {func(f *forge) (forged, uint64) {
			n := f.catalog("/a", []entry{dir("/a/b")})
			return f.catalog("", []entry{dir(""), at("/a")}, n), 1
		}, ErrInconsistent},
		"a mount without catalog": {func(f *forge) (forged, uint64) {
			return f.catalog("", []entry{dir(""), at("/a")}), 1
		}, ErrInconsistent},
		"an unfinished nested catalog": {func(f *forge) (forged, uint64) {
			return f.catalog("", []entry{dir(""), at("/a")}, forged{path: "/a"}), 1
		}, ErrInconsistent},
		"no root": {func(f *forge) (forged, uint64) { return f.catalog("", []entry{dir("/a")}), 1 }, fs.ErrNotExist},
		"a row under another path": {func(f *forge) (forged, uint64) {
			return f.catalog("", []entry{dir(""), {path: "/a", at: "/b"}}), 1
		}, ErrInconsistent},
		"a folder below itself": {func(f *forge) (forged, uint64) {
			// The row "a" at /a/a has the hash of /a/a, but then claims to be called "b".
			return f.catalog("", []entry{dir(""), dir("/a"), {path: "/b", at: "/a/a"}}), 1
		}, ErrInconsistent},
		"an impossible row": {func(f *forge) (forged, uint64) {
			return f.catalog("", []entry{dir(""), {path: "/..", mode: file}}), 1
		}, catalog.ErrInvalid},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			f := newForge(t)
			root, revision := c.make(f)
			f.publish(root, revision, time.Now())
			v, err := open(t, f.config(), f.serve()).Newest(t.Context())
			if err == nil {
				err = v.Walk(t.Context(), "", func(*Node) error { return nil })
			}
			if !errors.Is(err, c.is) {
				t.Errorf("got %v, want %v", err, c.is)
			}
		})
	}
}

func TestWalkJoinsManyNestedCatalogsHidesAndLinks(t *testing.T) {
	f := newForge(t)
	rows := []entry{
		{path: ""},
		{path: "/hidden", flags: 1 | catalog.Hidden},
		{path: "/hidden/x", mode: file},
		{path: "/bind", flags: 1 | catalog.BindMount},
	}
	var nested []forged
	want := []string{"", "/bind"}
	for i := range 50 {
		p := fmt.Sprintf("/n%02d", i)
		nested = append(nested, f.catalog(p, []entry{
			{path: p, flags: 1 | catalog.NestedRoot},
			{path: p + "/one", mode: file, links: 1<<32 | 2},
			{path: p + "/two", mode: file, links: 1<<32 | 2},
		}))
		rows = append(rows, entry{path: p, flags: 1 | catalog.Mountpoint})
		want = append(want, p, p+"/one", p+"/two")
	}
	// Catalogs no folder leads to, which sort before the others and must not be in their way.
	for i := range 20 {
		p := fmt.Sprintf("/a%02d", i)
		nested = append(nested, f.catalog(p, []entry{{path: p}}))
	}
	f.publish(f.catalog("", rows, nested...), 1, time.Now())
	v := newest(t, open(t, f.config(), f.serve()))
	for _, walk := range []func(context.Context, string, func(*Node) error) error{v.Walk, v.WalkSorted} {
		var got []string
		links := map[uint64][]string{}
		err := walk(t.Context(), "", func(n *Node) error {
			got = append(got, n.Path)
			if n.Link != 0 {
				links[n.Link] = append(links[n.Link], n.Path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		for link, paths := range links {
			if len(paths) != 2 || paths[0][:4] != paths[1][:4] {
				t.Errorf("link %d joins %v", link, paths)
			}
		}
		if len(links) != 50 {
			t.Errorf("%d link groups, want 50: groups of different catalogs are different files", len(links))
		}
	}
	list, err := v.List(t.Context(), "")
	if err != nil || len(list) != 51 {
		t.Errorf("List: %d entries (%v), want 51 without the hidden one", len(list), err)
	}
	if _, err := v.Lookup(t.Context(), "/hidden/x"); err != nil {
		t.Errorf("what is hidden can be looked up: %v", err)
	}
}

func TestAWalkThatGoesOnPassesOverWhatItCantRead(t *testing.T) {
	f := newForge(t)
	good := f.catalog("/good", []entry{{path: "/good", flags: 1 | catalog.NestedRoot}, {path: "/good/x", mode: file}})
	lost := f.catalog("/lost", []entry{{path: "/lost", flags: 1 | catalog.NestedRoot}})
	wrong := f.catalog("/wrong", []entry{ // whose folder contradicts itself
		{path: "/wrong", flags: 1 | catalog.NestedRoot}, {path: "/wrong/ok", at: "/wrong/other", mode: file},
	})
	f.publish(f.catalog("", []entry{
		{path: ""},
		{path: "/good", flags: 1 | catalog.Mountpoint},
		{path: "/hidden", flags: 1 | catalog.Hidden},
		{path: "/hidden/y", mode: file},
		{path: "/lost", flags: 1 | catalog.Mountpoint},
		{path: "/unnamed", flags: 1 | catalog.Mountpoint}, // there is no such catalog
		{path: "/wrong", flags: 1 | catalog.Mountpoint},
		{path: "/z", mode: file},
	}, good, lost, wrong), 1, time.Now())
	delete(f.files, lost.digest.Path(hash.Catalog))
	v := newest(t, open(t, f.config(), f.serve()))
	var got, failed []string
	visit := func(n *Node) error {
		got = append(got, n.Path)
		return nil
	}
	if err := v.WalkOn(t.Context(), "", visit, func(path string, err error) error {
		if !errors.Is(err, ErrIncomplete) && !errors.Is(err, ErrInconsistent) {
			t.Errorf("%s: %v", path, err)
		}
		failed = append(failed, path)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"", "/good", "/good/x", "/hidden", "/hidden/y", "/wrong", "/z"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("visited: %s", diff)
	}
	if diff := cmp.Diff([]string{"/lost", "/unnamed", "/wrong"}, failed); diff != "" {
		t.Errorf("failed: %s", diff)
	}
	stop := errors.New("stop")
	if err := v.WalkOn(t.Context(), "", visit, func(string, error) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the function's error: %v", err)
	}
	if err := v.Walk(t.Context(), "", visit); !errors.Is(err, ErrIncomplete) {
		t.Errorf("an ordinary walk: %v", err)
	}
}

func TestHolderIsTheCatalogAFolderContinuesIn(t *testing.T) {
	v := newest(t, open(t, reference(t, features), referenceSite(t, features).url))
	for path, want := range map[string]string{
		"": rootCatalog, "/small": rootCatalog, "/many": nestedCatalog, "/nested": otherNested,
		"/nested/x": otherNested,
	} {
		if got, err := v.Holder(t.Context(), path); err != nil || got.Path(hash.Catalog) != want {
			t.Errorf("Holder(%q) = %v (%v), want %s", path, got, err, want)
		}
	}
}

func TestPlacesAreWhatLookUpsReturnOneByOne(t *testing.T) {
	site := referenceSite(t, features)
	v := newest(t, open(t, reference(t, features), site.url))
	const suffix = "/hello.txt" // found in one of them
	paths := []string{"/small", "/many", "/nested", "/nested/inner", "/nested/none", "/none", "/none/at/all", "/small"}
	places, err := v.Places(t.Context(), paths, suffix)
	if err != nil {
		t.Fatal(err)
	}
	if n := site.count(nestedCatalog); n != 0 {
		t.Errorf("the catalog that begins at a folder was asked for %d times", n)
	}
	entry := func(path string) *catalog.Entry {
		e, err := v.Lookup(t.Context(), path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return e
	}
	var want []Place
	for _, path := range paths {
		holder, err := v.Holder(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, Place{Entry: entry(path), Holder: holder, Beside: entry(path + suffix)})
	}
	if diff := cmp.Diff(want, places); diff != "" {
		t.Error(diff)
	}
	if want[0].Beside == nil || want[2].Entry == nil || want[4].Entry != nil {
		t.Errorf("the repository hasn't what is looked up: %+v", want)
	}
	if _, err := v.Places(t.Context(), []string{"/small", "../x"}, ""); !errors.Is(err, errPath) {
		t.Errorf("%v, want %v", err, errPath)
	}
}

func TestSortedWalkPutsSiblingsBeforeContents(t *testing.T) {
	f := newForge(t)
	want := []string{"", "/a", "/a-b", "/a-b-c", "/a-b-c/x", "/a-b/x", "/a/x", "/a0", "/a0/x", "/b"}
	var rows []entry
	for _, p := range want {
		rows = append(rows, entry{path: p})
	}
	f.publish(f.catalog("", rows), 1, time.Now())
	v := newest(t, open(t, f.config(), f.serve()))
	var got []string
	err := v.WalkSorted(t.Context(), "", func(n *Node) error {
		got = append(got, n.Path)
		return nil
	})
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestContentMustHaveTheSizeOfItsRow(t *testing.T) {
	f := newForge(t)
	text := []byte("ten bytes!")
	d := f.object(text, hash.File)
	big := make([]byte, 3<<20) // more than is verified in memory
	big[len(big)-1] = 1
	b := f.object(big, hash.File)
	f.publish(f.catalog("", []entry{
		{path: ""},
		{path: "/right", mode: file, size: 10, digest: d},
		{path: "/short", mode: file, size: 9, digest: d},
		{path: "/long", mode: file, size: 11, digest: d},
		{path: "/big", mode: file, size: 3 << 20, digest: b},
		{path: "/none", mode: file, size: 10},
		{path: "/external", mode: file, size: 10, digest: d, flags: 4 | catalog.External},
	}), 1, time.Now())
	r := open(t, f.config(), f.serve())
	v := newest(t, r)
	read := func(path string) ([]byte, error) {
		e, err := v.Lookup(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		c, err := v.Open(t.Context(), path, e)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return io.ReadAll(c)
	}
	for path, want := range map[string][]byte{"/right": text, "/big": big} {
		if got, err := read(path); err != nil || string(got) != string(want) {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
	}
	for _, path := range []string{"/short", "/long", "/none", "/external"} {
		if got, err := read(path); err == nil {
			t.Errorf("%s: got %d bytes, want an error", path, len(got))
		}
	}
	if left, err := os.ReadDir(r.temporary()); err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

func TestExpand(t *testing.T) {
	lookup := func(name string) (string, bool) {
		v, ok := map[string]string{"A": "alpha", "EMPTY": "", "N": "$(A)"}[name]
		return v, ok
	}
	for target, want := range map[string]string{
		"":                    "",
		"plain/$A/(A)":        "plain/$A/(A)",
		"$(A)":                "alpha",
		"x/$(A)/$(A)y":        "x/alpha/alphay",
		"$(UNSET)/x":          "/x",
		"$(UNSET:-std)/x":     "std/x",
		"$(UNSET:-a:-b)":      "a:-b",
		"$(EMPTY:-std)x":      "x",
		"$(A:-std)":           "alpha",
		"$(N)":                "$(A)",
		"$(UNSET:-$(A))":      "$(A)",
		"$(A)$(open":          "alpha$(open",
		"$()":                 "",
		"\xff$(A)\xfe":        "\xffalpha\xfe",
		"$(UNSET:-fallback)/": "fallback/",
	} {
		if got := Expand(target, lookup); got != want {
			t.Errorf("Expand(%q) = %q, want %q", target, got, want)
		}
	}
	cfg := reference(t, features)
	cfg.Params = map[string]string{"CVMFS_FQRN": "overridden", "SITE": "here"}
	r := open(t, cfg, "http://127.0.0.1:1/r")
	t.Setenv("HOME", "/nonsense")
	if got, want := r.Expand("$(CVMFS_FQRN) $(SITE) $(HOME:-none)"), features+" here none"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if r.Expand("$(CVMFS_ARCH)") == "" {
		t.Error("the machine has no name")
	}
}

// BenchmarkWalk walks a catalog of 100,000 files in 1,000 folders, from disk.
func BenchmarkWalk(b *testing.B) {
	f := newForge(b)
	rows := []entry{{path: ""}}
	for i := range 1000 {
		dir := fmt.Sprintf("/folder%03d", i)
		rows = append(rows, entry{path: dir})
		for j := range 100 {
			rows = append(rows, entry{path: fmt.Sprintf("%s/file%03d", dir, j), mode: file})
		}
	}
	f.publish(f.catalog("", rows), 1, time.Now())
	cfg := f.config()
	cfg.Dir = b.TempDir()
	v := newest(b, open(b, cfg, f.serve()))
	b.ReportAllocs()
	nodes := 0
	for b.Loop() {
		err := v.Walk(context.Background(), "", func(*Node) error {
			nodes++
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(nodes), "ns/node")
}
