package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/driver/layers/layerstest"
	"cvmfs-graphdriver/test/referenceimage"
)

type file = layerstest.File

func layer(t testing.TB, files ...file) *bytes.Reader {
	t.Helper()
	return bytes.NewReader(layerstest.Tar(t, files...))
}

// unpackThin makes a snapshot of the thin image.
func (d *daemon) unpackThin(name, parent string) {
	d.t.Helper()
	d.unpack(name, parent, layer(d.t, file{Name: "thin.json", Body: referenceimage.Descriptor(d.t)}))
}

// unpackOrdinary makes snapshots of the image that the thin one was made of, and returns the topmost.
func (d *daemon) unpackOrdinary() (name string) {
	d.t.Helper()
	for n, archive := range referenceimage.Ordinary(d.t) {
		layer := fmt.Sprint("ordinary", n)
		d.unpack(layer, name, bytes.NewReader(archive))
		name = layer
	}
	return name
}

func TestThinImagesShowWhatOrdinaryImagesShow(t *testing.T) { forRungs(t, testThinImages) }

func testThinImages(t *testing.T, r rung) {
	d := start(t, r)
	d.unpackThin("thin", "")
	ordinary := d.mount(d.Prepare(t.Context(), "c0", d.unpackOrdinary()))
	thin := d.mount(d.Prepare(t.Context(), "c1", "thin"))
	view := d.mount(d.View(t.Context(), "v1", "thin"))
	want := tree(t, ordinary)
	if len(want) < 20 {
		t.Fatalf("the image has %d files", len(want))
	}
	for name, dir := range map[string]string{"a container": thin, "a view": view} {
		if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
			t.Errorf("%s of the thin image:\n%s", name, diff)
		}
	}
	must(t, os.WriteFile(filepath.Join(thin, "new"), nil, 0o600))
	if err := os.WriteFile(filepath.Join(view, "new"), nil, 0o600); err == nil {
		t.Error("a view can be written to")
	}
	usage, err := d.Usage(t.Context(), "thin")
	must(t, err)
	if usage.Size > 64<<10 {
		t.Errorf("a thin snapshot takes %d bytes", usage.Size)
	}
}

// What stands on a thin image may be anything that stands on an ordinary one.
func TestChainsWithThinLayers(t *testing.T) { forRungs(t, testChains) }

func testChains(t *testing.T, r rung) {
	d := start(t, r)
	d.unpack("below", "", layer(t, file{Name: "etc", Kind: tar.TypeDir}, file{Name: "etc/below", Body: "below"}))
	d.unpackThin("thin", "below")
	d.unpack("above", "thin", layer(t, file{Name: "above", Body: "above"}, file{Name: "etc/.wh.below"}))
	d.unpackThin("thin again", "above")
	d.unpack("top", "thin again", layer(t, file{Name: "etc", Kind: tar.TypeDir}, file{Name: "etc/top", Body: "top"}))
	got := strings.Join(tree(t, d.mount(d.Prepare(t.Context(), "c", "top"))), "\n")
	for _, want := range []string{"/above -", "/etc/top -"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s isn't there:\n%s", want, got)
		}
	}
	for _, not := range []string{"/etc/below", "/thin.json"} {
		if strings.Contains(got, not) {
			t.Errorf("%s is there:\n%s", not, got)
		}
	}
}

// Mount options have a page, and containerd can't shorten those with data-only layers.
func TestLongChainsAreMounted(t *testing.T) {
	d := start(t, rung{view: "erofs"})
	d.unpackThin("thin", "")
	parent := "thin"
	const layers = 100
	for n := range layers {
		name := fmt.Sprint("layer", n)
		d.unpack(name, parent, layer(t, file{Name: name, Body: name}))
		parent = name
	}
	mounts, err := d.Prepare(t.Context(), "c", parent)
	must(t, err)
	if options := strings.Join(mounts[0].Options, ","); strings.Contains(options, "::") {
		t.Errorf("%d bytes of options with data-only layers", len(options))
	}
	dir := d.mount(mounts, nil)
	got := strings.Join(tree(t, dir), "\n")
	for _, want := range []string{"/layer0 ", fmt.Sprintf("/layer%d ", layers-1), "/bin/hello "} {
		if !strings.Contains(got, want) {
			t.Errorf("%s isn't there", want)
		}
	}
}
