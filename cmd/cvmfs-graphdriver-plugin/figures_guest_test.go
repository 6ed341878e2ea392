//go:build guest

package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

// TestFiguresOfTheView measures a container of a thin image against one of the ordinary image of the same files, on
// overlays of this kernel, in the view that is chosen here. Nothing is asserted of times; the ratios are in the log.
func TestFiguresOfTheView(t *testing.T) {
	url := testutil.ServeReference(t, referenceimage.Second)
	p := startWith(t, t.TempDir(), map[string]string{referenceimage.Second: url})
	p.init(rung{view: "auto"}, object{})
	thin := fmt.Sprintf(`{"version":"1.0","min_version":"1.0","layers":[{"digest":"%064x","url":"cvmfs://%s/many"}]}`,
		1, referenceimage.Second)
	if text := p.apply("thin", "", archive(t, map[string]string{"thin.json": thin})); text != "" {
		t.Fatal(text)
	}
	first := p.container("a", "thin")
	files := 0
	if text := p.apply("ordinary", "", copied(t, first, &files)); text != "" {
		t.Fatal(text)
	}
	other := p.container("b", "ordinary")
	for _, work := range []struct {
		name string
		cold bool
		do   func(dir string) error
	}{
		{"find and stat, cold", true, list},
		{"find and stat, warm", false, list},
		{"open and read, cold", true, readAll},
		{"open and read, warm", false, readAll},
	} {
		var ratios []float64
		for range 7 {
			var took [2]time.Duration
			for n, dir := range []string{first, other} {
				if work.cold {
					must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
				} else {
					must(t, work.do(dir))
				}
				began := time.Now()
				must(t, work.do(dir))
				took[n] = time.Since(began)
			}
			ratios = append(ratios, took[0].Seconds()/took[1].Seconds())
		}
		slices.Sort(ratios)
		t.Logf("%s, %s: × %.2f (%.2f–%.2f) of an ordinary image's time, %d files", p.view(), work.name, ratios[3],
			ratios[0], ratios[6], files)
	}
}

// copied makes the archive of a container's regular files and folders, which brings all of them to disk.
func copied(t *testing.T, dir string, files *int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		if h.Name, err = filepath.Rel(dir, name); err != nil {
			return err
		}
		if err := w.WriteHeader(h); err != nil || d.IsDir() {
			return err
		}
		*files++
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}))
	must(t, w.Close())
	return b.Bytes()
}

// list walks a folder and asks for every file's attributes.
func list(dir string) error {
	return filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		return err
	})
}

// readAll reads every regular file of a folder.
func readAll(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			_, err = os.ReadFile(name)
		}
		return err
	})
}
