package objects

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// isolatedTable writes and opens a table of one object for each repository.
func isolatedTable(t *testing.T, isolate bool, o Object, repos ...string) *Table {
	t.Helper()
	var b bytes.Buffer
	must(t, WriteTable(&b, repos, isolate, func(yield func(*Object, int) bool) {
		for i := range repos {
			if !yield(&o, i) {
				return
			}
		}
	}))
	path := filepath.Join(t.TempDir(), "objects")
	must(t, os.WriteFile(path, b.Bytes(), 0o600))
	table, err := OpenTable(path)
	must(t, err)
	return table
}

// What repository a has put into the store is not used for repository b, be it here or on a's server.
func TestIsolatedRepositoriesShareNothing(t *testing.T) {
	t.Parallel()
	repo, empty := newRepository(t), newRepository(t)
	plain := noise(1, 5000)
	o := repo.whole(plain)
	s := open(t, configIn(t.TempDir(), sources{"a": fetcher(t, repo.URL), "b": fetcher(t, empty.URL)}))
	x := NewIndex([16]byte{})
	x.Add(isolatedTable(t, true, o, "a", "b"))
	x.Add(isolatedTable(t, false, o, "b", "a"))
	a, okA := x.Lookup(filepath.Base(o.IsolatedPath("a")))
	b, okB := x.Lookup(filepath.Base(o.IsolatedPath("b")))
	shared, okS := x.Lookup(o.Name())
	if !okA || !okB || !okS || a.Repo() != "a" || b.Repo() != "b" || a.Path() == b.Path() || a.Node() == b.Node() ||
		shared.Path() == a.Path() {
		t.Fatalf("%v %v %v", a.Path(), b.Path(), shared.Path())
	}
	must(t, s.Fetch(t.Context(), a))
	holds(t, s, a, plain)
	if s.Has(b) || s.Has(shared) {
		t.Error("what a has put here is here for others")
	}
	if err := s.Fetch(t.Context(), b); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("b, whose server lacks it: %v", err)
	}
	buf := make([]byte, 10)
	if _, err := s.ReadAt(t.Context(), b, buf, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("b is read: %v", err)
	}
	must(t, s.Fetch(t.Context(), shared)) // which b's server lacks, and a's has
	holds(t, s, shared, plain)
}

// Images of both kinds have their objects counted, kept and evicted alike.
func TestIsolatedObjectsAreEvictedVerifiedAndListed(t *testing.T) {
	t.Parallel()
	repo := newRepository(t)
	s, images := cached(t, repo, 100*mib)
	o := repo.whole(noise(1, mib))
	_, refs := images.add(t, "shared", o)
	fetchAll(t, s, refs)
	must(t, os.Mkdir(filepath.Join(images.dir, "isolated"), 0o755))
	b, err := os.ReadFile(isolatedTable(t, true, o, "r").path)
	must(t, err)
	must(t, os.WriteFile(images.path("isolated"), b, 0o600))
	table, err := OpenTable(images.path("isolated"))
	must(t, err)
	x := NewIndex([16]byte{})
	x.Add(table)
	done, err := s.Complete(t.Context(), x, table)
	if err != nil || done.Fetched != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	list, err := s.List(t.Context())
	if err != nil || len(list) != 2 || list[0].Local.Objects != 1 || list[1].Local.Objects != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if v, err := s.Verify(t.Context(), "", func(Verified) {}); err != nil || v.Objects != 2 || v.Damaged+v.Unreadable != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	images.mount("shared", true)
	if removed, err := s.Clean(t.Context(), CleanOptions{}); err != nil || removed.Objects != 1 || !s.Has(refs[0]) {
		t.Errorf("%+v, %v", removed, err)
	}
}

func TestTablesOfIsolatedImagesAreOfAnotherKind(t *testing.T) {
	o := Object{Digest: digest("a"), Size: 5}
	const name = "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8.z.5.8479b785e9e9ecaf"
	got := filepath.Base(o.IsolatedPath("a.example.org")) // on disk in composed images: it must not change
	if n, err := ParseName(got); err != nil || n.String() != got || n.Owner != ownerOf("a.example.org") {
		t.Errorf("%s: %+v, %v", got, n, err)
	}
	if got != name {
		t.Errorf("got %s, want %s", got, name)
	}
	for _, bad := range []string{name[:len(name)-16], name[:len(name)-1], name + "0", o.Name() + ".0000000000000000", name[:len(name)-2] + "AB"} {
		if n, err := ParseName(bad); err == nil {
			t.Errorf("%s is taken for %+v", bad, n)
		}
	}
}
