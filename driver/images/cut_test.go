package images_test

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

// profiled publishes a layer with two files of some size, and the profile of a start that reads the beginning of them,
// which are cut there.
func profiled(t *testing.T) (*publisher, *thin.Profile) {
	t.Helper()
	p := newPublisher(t)
	p.layer("/layers/a", archive(t, tar.Header{Name: "cut", Mode: 0o755, Size: 200_000},
		tar.Header{Name: "same", Mode: 0o640, Size: 200_000}, tar.Header{Name: "whole", Mode: 0o644, Size: 90_000},
		tar.Header{Name: "small", Mode: 0o644, Size: 5}), nil)
	at := &thin.Profile{FQRN: publishedFQRN, Path: "/.metadata/image/start-profile"}
	tx := p.begin()
	var b []byte
	err := tx.Recut(t.Context(), []string{"/layers/a"}, func(e *catalog.Entry) (string, []int64) {
		if e.Size != 200_000 {
			return "", nil
		}
		o, err := objects.FromEntry(e, "")
		if err != nil {
			t.Error(err)
		}
		return o.Name(), []int64{20_000, 200_000}
	}, func(made map[string]catalog.Entry) (publish.CutFolder, error) {
		profile, cut := objects.Profile{}, map[string]objects.Object{}
		for _, e := range made {
			o, err := objects.FromEntry(&e, "")
			if err != nil {
				return publish.CutFolder{}, err
			}
			name, err := objects.ParseName(o.Name())
			if err != nil {
				return publish.CutFolder{}, err
			}
			cut[o.Name()] = o
			profile = append(profile, objects.Read{Name: name, Unit: objects.Pages, First: 0, Last: 3})
		}
		b = profile.Encode()
		sum := sha256.Sum256(b)
		at.Digest = hex.EncodeToString(sum[:])
		return publish.CutFolder{Path: at.Files(), Packs: profile.Packs(cut)}, nil
	})
	if err != nil || b == nil {
		t.Fatal("nothing is cut: ", err)
	}
	if err := tx.WriteFile(t.Context(), at.Path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	p.commit(tx)
	return p, at
}

// chunksBySize returns how many chunks the objects of an image have, by their size.
func chunksBySize(i *images.Image) map[int64]int {
	chunks := map[int64]int{}
	for n := range i.Table.Len() {
		o, _ := i.Table.At(n)
		chunks[o.Size] = len(o.Chunks)
	}
	return chunks
}

func TestFilesAreCutAsTheStartProfileHasThem(t *testing.T) {
	p, at := profiled(t)
	c, chain := p.composer("", "/layers/a")
	plain, err := c.Compose(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	if got := chunksBySize(plain)[200_000]; got != 0 || plain.Table.Len() != 3 {
		t.Fatalf("without a profile, the file has %d chunks, and there are %d objects", got, plain.Table.Len())
	}
	chain[0].Thin.Profile = at
	cut, err := c.Compose(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	got := chunksBySize(cut)
	if cut.Key == plain.Key || cut.Table.Len() != 3 || got[200_000] != 2 || got[90_000] != 0 || got[5] != 0 {
		t.Errorf("key %s and %s, chunks %v of %d objects", plain.Key, cut.Key, got, cut.Table.Len())
	}
	if again, err := c.Compose(t.Context(), chain); err != nil || again.Key != cut.Key || len(again.Packs) > 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	if len(plain.Packs) > 0 || len(cut.Packs) != 1 || cut.Packs[0].FQRN != publishedFQRN || cut.Packs[0].First != 0 ||
		cut.Packs[0].Size < 50 {
		t.Errorf("packs %+v, and of the image without a profile %+v", cut.Packs, plain.Packs)
	}
	// What the start reads is known by the table.
	profile, err := c.Profile(t.Context(), cut.Key, at)
	if err != nil {
		t.Fatal(err)
	}
	if n := profile.Of(cut.Table); n != (objects.Named{Pieces: 1, Bytes: 20_000}) {
		t.Errorf("of the profile, the image has %+v", n)
	}
}

func TestFilesAreCutInIsolatedImages(t *testing.T) {
	p, at := profiled(t)
	_, chain := p.composer("", "/layers/a")
	chain[0].Thin.Profile = at
	c, index := composer(t, images.Config{Repositories: p.repositories(), Isolate: true})
	cut, err := c.Compose(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	if got := chunksBySize(cut); got[200_000] != 2 {
		t.Errorf("chunks %v", got)
	}
	for n := range cut.Table.Len() {
		o, repo := cut.Table.At(n)
		if _, found := index.Lookup(filepath.Base(o.IsolatedPath(repo))); !found {
			t.Errorf("%s isn't in the index", o.IsolatedPath(repo))
		}
		if _, found := index.Lookup(o.Name()); found {
			t.Errorf("%s is shared", o.Name())
		}
	}
}

// What is here as a whole needn't be fetched in other chunks.
func TestFilesThatAreHereAreNotCut(t *testing.T) {
	p, at := profiled(t)
	var asked []string
	_, chain := p.composer("", "/layers/a")
	chain[0].Thin.Profile = at
	c, _ := composer(t, images.Config{Repositories: p.repositories(), Here: func(place string, size int64) bool {
		asked = append(asked, place)
		return size == 200_000
	}})
	i, err := c.Compose(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	if got := chunksBySize(i); got[200_000] != 0 {
		t.Errorf("chunks %v", got)
	}
	if len(asked) == 0 || strings.Contains(asked[0], "objects") || asked[0][2] != '/' {
		t.Errorf("asked for %v", asked)
	}
}

// A profile that can't be had, or whose files can't be, costs nothing but the files that are cut.
func TestWhatBelongsToTheStartProfileIsNotThere(t *testing.T) {
	p, at := profiled(t)
	c, chain := p.composer("", "/layers/a")
	plain, err := c.Compose(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	for name, profile := range map[string]thin.Profile{
		"none":               {FQRN: publishedFQRN, Path: "/.metadata/other/start-profile", Digest: at.Digest},
		"another":            {FQRN: publishedFQRN, Path: at.Path, Digest: strings.Repeat("0", 64)},
		"another repository": {FQRN: "other.example.org", Path: at.Path, Digest: at.Digest},
		"a folder":           {FQRN: publishedFQRN, Path: "/layers/a", Digest: at.Digest},
	} {
		chain[0].Thin.Profile = &profile
		if i, err := c.Compose(t.Context(), chain); err != nil || i.Key != plain.Key {
			t.Errorf("%s: %+v, %v", name, i, err)
		}
	}
	v := newestOf(t, p)
	holder, err := v.Holder(t.Context(), at.Files())
	if err != nil {
		t.Fatal(err)
	}
	lost := filepath.Join(p.repository.Dir(), "www", "cvmfs", publishedFQRN, holder.Path("C"))
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	chain[0].Thin.Profile = at
	fresh, _ := p.composer("")
	if i, err := fresh.Compose(t.Context(), chain); err != nil || i.Key != plain.Key {
		t.Errorf("without the catalog: %+v, %v", i, err)
	}
}

// A host that looked at the repository just now may not know of a profile that was published since.
func TestAProfileThatWasPublishedSinceIsFound(t *testing.T) {
	p := newPublisher(t)
	p.layer("/layers/a", archive(t, tar.Header{Name: "file", Mode: 0o644, Size: 5}), nil)
	c, chain := p.composer("", "/layers/a")
	if _, err := c.Compose(t.Context(), chain); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"cvmfs start profile 1\n", "cvmfs start profile 2\n"} {
		sum := sha256.Sum256([]byte(text))
		at := &thin.Profile{FQRN: publishedFQRN, Path: "/profile", Digest: hex.EncodeToString(sum[:])}
		tx := p.begin()
		if err := tx.WriteFile(t.Context(), at.Path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		p.commit(tx)
		chain[0].Thin.Profile = at
		i, err := c.Compose(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		p.site.Set(testutil.Fault{Status: 500})
		if _, err := c.Profile(t.Context(), i.Key, at); err != nil {
			t.Errorf("%q isn't beside the image: %v", text, err)
		}
		p.site.Set()
	}
}

func newestOf(t *testing.T, p *publisher) *client.Revision {
	t.Helper()
	r, err := p.repositories().Repository(publishedFQRN)
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Newest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
