package publish_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	. "cvmfs-graphdriver/cvmfs/publish"
)

// checkStatistics recomputes the counters of every catalog of the newest revision and compares the rows mounts have on
// both sides.
func checkStatistics(t *testing.T, r *Repository) {
	t.Helper()
	head, err := r.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checkCatalog(t, r, catalog.Nested{Digest: head.Manifest.Root, Size: head.Manifest.RootSize}, nil)
}

// checkCatalog checks a catalog and those below. Of a nested one, above is the row its parent has for its root.
func checkCatalog(t *testing.T, r *Repository, at catalog.Nested, above *catalog.Entry) catalog.Counters {
	t.Helper()
	path := filepath.Join(t.TempDir(), "catalog")
	if err := r.FetchCatalog(t.Context(), at.Digest, path); err != nil {
		t.Fatal(err)
	}
	c, err := catalog.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if above != nil {
		root, err := c.Lookup(at.Path)
		if err != nil {
			t.Fatal(err)
		}
		if above.Flags&catalog.Mountpoint == 0 || root.Flags&catalog.NestedRoot == 0 {
			t.Errorf("mount %q: flags %#x above, %#x below", at.Path, above.Flags, root.Flags)
		}
		above.Flags, root.Flags = 0, 0
		if diff := cmp.Diff(above, root); diff != "" {
			t.Errorf("mount %q (-above +below):\n%s", at.Path, diff)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() != at.Size {
		t.Errorf("catalog of %q has %d bytes, not %d: %v", at.Path, info.Size(), at.Size, err)
	}
	var want catalog.Statistics
	err = c.Rows(t.Context(), func(_, _ hash.PathHash, e *catalog.Entry) error {
		want.Self.Count(e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	nested, err := c.Nested()
	if err != nil {
		t.Fatal(err)
	}
	for _, below := range nested {
		want.Self.Nested++
		mount, err := c.Lookup(below.Path)
		if err != nil {
			t.Fatal(err)
		}
		want.Subtree = want.Subtree.Add(checkCatalog(t, r, below, mount))
	}
	got, err := c.Statistics()
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("statistics of %q: %v, (-counted +stored):\n%s", at.Path, err, diff)
	}
	return want.Total()
}
