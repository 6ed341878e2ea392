package main

import (
	"archive/tar"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"cvmfs-graphdriver/test/older"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

// thinLayers returns the layers that the descriptor of a thin image in an archive names.
func thinLayers(t *testing.T, archive string) []thin.Layer {
	t.Helper()
	image, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%s: %d layers, %v", archive, len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var d *thin.Descriptor
	testutil.Untar(t, r, func(_ *tar.Header, content []byte) {
		if d, err = thin.Parse(content); err != nil {
			t.Fatal(err)
		}
	})
	return d.Layers
}

// A publisher goes on with the repository that an older version has made.
func TestRepositoriesOfOlderVersionsAreGoneOnWith(t *testing.T) {
	testutil.NeedRoot(t) // the folder's owner is root
	for _, commit := range older.Commits() {
		t.Run(commit, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "publisher")
			if err := older.Unpack(testutil.Data(t, "older", commit, "publisher.tar.gz"), dir); err != nil {
				t.Fatal(err)
			}
			sound := func(revision string) {
				t.Helper()
				if out := must(t, "publish", "check", "--content", dir); !strings.Contains(out,
					"revision "+revision+" is sound") {
					t.Errorf("check: %s", out)
				}
			}
			sound("1")

			// The image that the older version converted becomes one of the same layers; what is new is where it was
			// read from, and what is said of the layers.
			then, now := testutil.Data(t, "older", commit, "thin.tar"), filepath.Join(t.TempDir(), "thin.tar")
			makeThin := func(image, out string, more ...string) string {
				t.Helper()
				return must(t, append([]string{
					"make-thin", "-i", "docker-archive:" + image, "-o",
					"docker-archive:" + out + ":example/thin-older:1", "--target", "native:" + dir,
				}, more...)...)
			}
			original := testutil.Data(t, "older", commit, "image.tar.gz")
			makeThin(original, now)
			same := cmpopts.IgnoreFields(thin.Layer{}, "DiffID", "Size")
			if d := cmp.Diff(thinLayers(t, then), thinLayers(t, now), same); d != "" {
				t.Errorf("the layers a thin image names: -then +now\n%s", d)
			}
			for _, l := range thinLayers(t, now) {
				if l.DiffID == "" || l.Size == 0 {
					t.Errorf("the new descriptor says of a layer: %+v", l)
				}
			}
			sound("2")

			// What it didn't say of its layers, which aren't compressed, is found out without reading them.
			const lacks = "layers have no info"
			if out := must(t, "publish", "check", dir); !strings.Contains(out, lacks) {
				t.Errorf("check: %s", out)
			}
			if out := makeThin(original, now, "--refresh"); !strings.Contains(out, " written, 0 lacking") {
				t.Errorf("refreshed: %s", out)
			}
			if out := must(t, "publish", "check", dir); strings.Contains(out, lacks) {
				t.Errorf("check: %s", out)
			}
			sound("3")

			// Another one comes to what is there.
			makeThin(testutil.Data(t, "images", "tiny.tar"), filepath.Join(t.TempDir(), "other.tar"))
			sound("4")
		})
	}
}
