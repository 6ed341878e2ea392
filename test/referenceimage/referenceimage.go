// Package referenceimage is the image that tests know in both forms: the archives of its layers, and its layers in the
// reference repositories.
package referenceimage

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/driver/conformance"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

// Second is a repository beside the image's one; its folder /links stands for a layer in it.
const Second = "features.example.org"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Descriptor returns the thin image's thin.json.
func Descriptor(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(testutil.Data(t, "images", "thin.json"))
	must(t, err)
	return string(b)
}

// Ordinary returns the archives of the ordinary image that the thin one stands for, bottom to top.
func Ordinary(t testing.TB) (archives [][]byte) {
	t.Helper()
	files := map[string][]byte{}
	f, err := os.Open(testutil.Data(t, "images", "tiny.tar"))
	must(t, err)
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		files[h.Name], err = io.ReadAll(r)
		must(t, err)
	}
	var manifest []struct{ Layers []string }
	must(t, json.Unmarshal(files["manifest.json"], &manifest))
	for _, name := range manifest[0].Layers {
		archives = append(archives, files[name])
	}
	return archives
}

// Layers returns the layers of the image, and one more of another repository, as the conformance suite wants them.
func Layers(t testing.TB) []conformance.ThinLayer {
	t.Helper()
	return append(layersOfImage(t), linksLayer(t))
}

// layersOfImage returns the layers of the reference image.
func layersOfImage(t testing.TB) (list []conformance.ThinLayer) {
	t.Helper()
	d, err := thin.Parse([]byte(Descriptor(t)))
	must(t, err)
	for n, archive := range Ordinary(t) {
		l := d.Layers[n]
		list = append(list, conformance.ThinLayer{
			Digest: l.Digest, URL: "cvmfs://" + l.FQRN + l.Path,
			Archive: unlinked(t, archive),
		})
	}
	return list
}

// unlinked makes files of their own of an archive's hard links, as the publisher of the reference repository has done.
func unlinked(t testing.TB, archive []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			must(t, w.Close())
			return b.Bytes()
		}
		must(t, err)
		body, err := io.ReadAll(r)
		must(t, err)
		if h.Typeflag == tar.TypeLink {
			body = files[h.Linkname]
			h.Typeflag, h.Linkname, h.Size = tar.TypeReg, "", int64(len(body))
		}
		files[h.Name] = body
		must(t, w.WriteHeader(h))
		_, err = w.Write(body)
		must(t, err)
	}
}

// linksLayer returns the folder /links of the second repository as a layer, its archive made of what the reference
// client shows.
func linksLayer(t testing.TB) conformance.ThinLayer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for lines := bufio.NewScanner(strings.NewReader(testutil.Expected(t, Second))); lines.Scan(); {
		var e struct {
			Path, Target string
			Mtime        int64
		}
		must(t, json.Unmarshal(lines.Bytes(), &e))
		if filepath.Dir(e.Path) != "/links" {
			continue
		}
		if filepath.Base(e.Path) == "variant" {
			e.Target = "$(NO_SUCH_VARIABLE:-fallback)/bin"
		}
		must(t, w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeSymlink, Name: filepath.Base(e.Path), Linkname: e.Target, ModTime: time.Unix(e.Mtime, 0),
			Mode: 0o777,
		}))
	}
	must(t, w.Close())
	return conformance.ThinLayer{
		Digest: fmt.Sprintf("%064x", 1), URL: "cvmfs://" + Second + "/links", Archive: b.Bytes(),
	}
}
