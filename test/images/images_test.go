package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"

	"cvmfs-graphdriver/test/engine"
)

// program is a file in the place of a busybox.
func program(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(file, []byte("a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// entries reads a layer.
func entries(t *testing.T, blob Blob) map[string]*tar.Header {
	t.Helper()
	f, err := os.Open(blob.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*tar.Header{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		found[strings.TrimSuffix(h.Name, "/")] = h
	}
}

func TestTheSameImageHasTheSameBytes(t *testing.T) {
	busybox := program(t)
	index := func() []byte {
		image, err := MakeNasty(t.Context(), t.TempDir(), busybox)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Open(image.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(image, again); diff != "" {
			t.Errorf("opened (-made +opened):\n%s", diff)
		}
		b, err := os.ReadFile(filepath.Join(image.Dir, "index.json"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if first, second := index(), index(); !bytes.Equal(first, second) {
		t.Errorf("made twice: %s and %s", first, second)
	}
}

func TestAnArchiveHoldsWhatEnginesLookFor(t *testing.T) {
	image, err := MakeBusybox(t.Context(), t.TempDir(), program(t))
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := image.WriteArchive(archive); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			files[h.Name], err = io.ReadAll(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var list []saved
	if err := json.Unmarshal(files["manifest.json"], &list); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(list[0].Layers, list[0].Config, "oci-layout", "index.json") {
		if files[name] == nil {
			t.Errorf("the archive has no %s", name)
		}
	}
	if diff := cmp.Diff([]string{Busybox}, list[0].RepoTags); diff != "" {
		t.Error(diff)
	}
}

func TestTheNastyImageIsAsNastyAsItSays(t *testing.T) {
	image, err := MakeNasty(t.Context(), t.TempDir(), program(t))
	if err != nil {
		t.Fatal(err)
	}
	holes, err := MakeSparse(t.Context(), t.TempDir(), program(t))
	if err != nil {
		t.Fatal(err)
	}
	base, top := entries(t, image.Layers[0]), entries(t, holes.Layers[1])
	if h := top["sparse"]; h == nil || h.Typeflag != tar.TypeGNUSparse || h.Size != 8<<20 {
		t.Errorf("the sparse file is %+v", h)
	}
	if h := base["times/before"]; h.ModTime.Unix() != -86400 || h.ModTime.Nanosecond() != 999_999_999 {
		t.Errorf("a time before 1970 is %v", h.ModTime)
	}
	if h := base["modes/none"]; h.Mode != 0 {
		t.Errorf("the file nobody may touch has mode %o", h.Mode)
	}
	if h := base["names/not utf-8 \xff\xfe"]; h == nil {
		t.Error("there is no name that isn't UTF-8")
	}
	if h := base["xattrs/long"]; len(h.PAXRecords["SCHILY.xattr.user.long"]) != 1000 {
		t.Errorf("the long attribute is %v", h.PAXRecords)
	}
}

// What debian says of the image can be checked without an engine: what its layers hold.
func TestTheImageOfDebianPackagesHoldsThem(t *testing.T) {
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	image, err := FindDebian(cache)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	var kinds []string
	seen := map[string]int{}
	for n, blob := range image.Layers {
		for name, h := range entries(t, blob) {
			size += h.Size
			if h.Typeflag == tar.TypeReg && seen[name] > 0 {
				kinds = append(kinds, name)
			}
			seen[name] = n + 1
		}
	}
	if size < 400<<20 || len(image.Layers) != 7 {
		t.Errorf("%d layers with %d bytes, want 7 with at least 400 MiB", len(image.Layers), size)
	}
	if len(kinds) > 0 {
		t.Errorf("files in two layers: %.10q", kinds)
	}
	for name, layer := range map[string]int{
		"usr/bin/dash": 1, "lib": 1, "etc/passwd": 1, "usr/bin/python3": 2,
		"usr/lib/python3/dist-packages/numpy/__init__.py": 3,
		"usr/lib/python3/dist-packages/scipy/__init__.py": 4, "opt/analysis/run.py": 7,
	} {
		if seen[name] != layer {
			t.Errorf("%s is in layer %d, want %d", name, seen[name], layer)
		}
	}
}
