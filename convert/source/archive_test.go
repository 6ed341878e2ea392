package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ociLayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/test/testutil"
)

// member is a file of an archive, or a link in it.
type member struct{ name, content, link string }

func archiveOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var headers []tar.Header
	for _, m := range members {
		h := tar.Header{Typeflag: tar.TypeReg, Name: m.name, Linkname: m.content, Mode: 0o644}
		if m.link != "" {
			h = tar.Header{Typeflag: tar.TypeSymlink, Name: m.name, Linkname: m.link, Mode: 0o777}
		}
		headers = append(headers, h)
	}
	return testutil.Tar(t, headers...)
}

func sha(t testing.TB, content string) string {
	t.Helper()
	h, _, err := v1.SHA256(strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return h.Hex
}

// configFor is the configuration of an image with these archives.
func configFor(t testing.TB, archives ...string) string {
	t.Helper()
	ids := []string{}
	for _, a := range archives {
		ids = append(ids, "sha256:"+sha(t, a))
	}
	b, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": "amd64",
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func written(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func gzipped(t testing.TB, plain string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.WriteString(z, plain); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// savedForms are archives of one image with two layers, of which the upper comes twice, in the forms that tools write.
func savedForms(t testing.TB) (forms map[string][]byte, want []string) {
	a, b := string(archiveOf(t, member{name: "a", content: "1"})), string(archiveOf(t, member{name: "b", content: "2"}))
	config := configFor(t, a, b, b)
	blobs := "blobs/sha256/"
	forms = map[string][]byte{
		"docker save before 25": archiveOf(t, member{name: "1/layer.tar", content: a},
			member{name: "2/layer.tar", content: b},
			member{name: "3/layer.tar", link: "../2/layer.tar"},
			member{name: sha(t, config) + ".json", content: config},
			member{name: "manifest.json", content: `[{"Config":"` + sha(t, config) +
				`.json","RepoTags":["x:1"],"Layers":["1/layer.tar","2/layer.tar","3/layer.tar"]}]`}),
		"docker save since 25": archiveOf(t, member{name: blobs + sha(t, a), content: a},
			member{name: blobs + sha(t, b), content: b},
			member{name: blobs + sha(t, config), content: config},
			member{name: "oci-layout", content: `{"imageLayoutVersion":"1.0.0"}`},
			member{name: "index.json", content: `{"schemaVersion":2,"manifests":[]}`},
			member{name: "manifest.json", content: `[{"Config":"` + blobs + sha(t, config) +
				`","RepoTags":["x:1"],"Layers":["` +
				blobs + sha(t, a) + `","` + blobs + sha(t, b) + `","` + blobs + sha(t, b) + `"]}]`}),
		"compressed layers": archiveOf(t, member{name: "./c.json", content: config},
			member{name: "a.tar.gz", content: gzipped(t, a)},
			member{name: "b.tar.gz", content: gzipped(t, b)},
			member{
				name:    "./manifest.json",
				content: `[{"Config":"c.json","RepoTags":["x:1"],"Layers":["a.tar.gz","b.tar.gz","b.tar.gz"]}]`,
			}),
	}
	forms["compressed as a whole"] = []byte(gzipped(t, string(forms["docker save before 25"])))
	return forms, []string{a, b, b}
}

func TestAllFormsOfArchivesAreRead(t *testing.T) {
	forms, want := savedForms(t)
	for name, content := range forms {
		for _, called := range []string{"", ":x:1", ":docker.io/library/x:1"} {
			image, err := opened(t, "docker-archive:"+written(t, content)+called, Options{})
			if err != nil {
				t.Errorf("%s%s: %v", name, called, err)
				continue
			}
			got, err := archives(t, image)
			if err != nil || len(got) != len(want) {
				t.Errorf("%s: %d layers, %v", name, len(got), err)
				continue
			}
			for i := range got {
				if string(got[i]) != want[i] {
					t.Errorf("%s: layer %d is another", name, i)
				}
			}
		}
	}
}

func TestBadArchivesAreRefused(t *testing.T) {
	a := string(archiveOf(t, member{name: "a", content: "1"}))
	config := configFor(t, a)
	list := `[{"Config":"c","RepoTags":["x:1"],"Layers":["l"]}]`
	two := `[{"Config":"c","RepoTags":["x:1"],"Layers":["l"]},{"Config":"c","RepoTags":["y:2"],"Layers":["l"]}]`
	good := archiveOf(t, member{name: "c", content: config}, member{name: "l", content: a},
		member{name: "manifest.json", content: list})
	for what, c := range map[string]struct {
		content []byte
		called  string
		says    string
	}{
		"empty":           {nil, "", "damaged"},
		"no tar":          {bytes.Repeat([]byte("x"), 2000), "", "damaged"},
		"cut":             {good[:len(good)/2], "", "damaged"},
		"gzip, cut":       {[]byte(gzipped(t, string(good)))[:200], "", "damaged"},
		"no list":         {archiveOf(t, member{name: "c", content: config}), "", "index.json"},
		"list of nothing": {archiveOf(t, member{name: "manifest.json", content: `[]`}), "", "0 images"},
		"list no JSON":    {archiveOf(t, member{name: "manifest.json", content: `{`}), "", "manifest.json"},
		"no config": {archiveOf(t, member{name: "l", content: a},
			member{name: "manifest.json", content: list}), "", "open c"},
		"no layer": {archiveOf(t, member{name: "c", content: config},
			member{name: "manifest.json", content: list}), "", "open l"},
		"config of no layers": {archiveOf(t, member{name: "c", content: configFor(t)}, member{name: "l", content: a},
			member{name: "manifest.json", content: list}), "", "1 layers"},
		"links in a circle": {archiveOf(t, member{name: "c", content: config}, member{name: "l", link: "m"},
			member{name: "m", link: "l"}, member{name: "manifest.json", content: list}), "", "links"},
		"link out of it": {
			archiveOf(t, member{name: "c", content: config},
				member{name: "l", link: "../../etc/passwd"}, member{name: "manifest.json", content: list}), "",
			"not exist",
		},
		"several, none chosen": {archiveOf(t, member{name: "c", content: config}, member{name: "l", content: a},
			member{name: "manifest.json", content: two}), "", "y:2"},
		"another name": {good, ":z", "x:1"},
		"a layer of other bytes": {archiveOf(t, member{name: "c", content: config}, member{name: "l", content: "other"},
			member{name: "manifest.json", content: list}), "", "digest"},
	} {
		image, err := opened(t, "docker-archive:"+written(t, c.content)+c.called, Options{})
		if err == nil {
			_, err = archives(t, image)
		}
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", what, err, c.says)
		}
	}
	_, err := opened(t, "docker-archive:/missing.tar", Options{})
	if !errors.Is(err, ErrNoImage) || !strings.Contains(err.Error(), "/missing.tar") {
		t.Errorf("%v", err)
	}
}

func TestLayoutsAreReadByTheirTags(t *testing.T) {
	dir := t.TempDir()
	path, err := ociLayout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	var want []v1.Hash
	for _, tag := range []string{"one", "two"} {
		image := imageOf(t, "amd64", layerOf(t, noise(t, 1000), compression.ZStd, types.OCILayerZStd))
		digest, err := image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, digest)
		if err := path.AppendImage(image, ociLayout.WithAnnotations(map[string]string{refName: tag})); err != nil {
			t.Fatal(err)
		}
	}
	var got []v1.Hash
	for _, tag := range []string{"one", "two"} {
		image, err := opened(t, "oci:"+dir+":"+tag, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := archives(t, image); err != nil {
			t.Error(err)
		}
		got = append(got, image.Digest)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for text, says := range map[string]string{
		"oci:" + dir: "two", "oci:" + dir + ":three": "one",
		"oci:/missing": "/missing", "oci:" + t.TempDir(): "index.json",
	} {
		if _, err := opened(t, text, Options{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
	// A blob that leads out of the layout is not read.
	blob := filepath.Join(dir, "blobs", "sha256", want[0].Hex)
	outside := written(t, []byte(`{}`))
	if err := errors.Join(os.Remove(blob), os.Symlink(outside, blob)); err != nil {
		t.Fatal(err)
	}
	if _, err := opened(t, "oci:"+dir+":one", Options{}); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("%v", err)
	}
}

// daemon answers on a socket as Docker does: it has one image, which has two names, and saves by name or id.
func daemon(t *testing.T, id string, archive []byte) (asked *[]string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked = new([]string)
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Api-Version", "1.41") })
	mux.HandleFunc("GET /v1.41/images/{name...}", func(w http.ResponseWriter, r *http.Request) {
		name, inspect := strings.CutSuffix(r.PathValue("name"), "/json")
		switch {
		case inspect && (name == "x" || name == "x:1" || name == id):
			json.NewEncoder(w).Encode(map[string]any{"Id": id, "RepoTags": []string{"x:1", "x:2"}})
		case !inspect && name == "get":
			*asked = append(*asked, r.URL.Query()["names"]...)
			w.Write(archive)
		default:
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"message":"No such image: `+name+`"}`)
		}
	})
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	t.Setenv("DOCKER_HOST", "unix://"+socket)
	return asked
}

func TestDaemonsImagesAreSavedByTheirID(t *testing.T) {
	forms, want := savedForms(t)
	id := "sha256:" + strings.Repeat("1", 64)
	asked := daemon(t, id, forms["docker save since 25"])
	for _, name := range []string{"x", "x:1", id} {
		image, err := opened(t, "docker-daemon:"+name, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := archives(t, image); err != nil || len(got) != len(want) {
			t.Errorf("%d layers, %v", len(got), err)
		}
	}
	if diff := cmp.Diff([]string{id, id, id}, *asked); diff != "" {
		t.Errorf("by a repository's name all its tags come:\n%s", diff)
	}
	if _, err := opened(t, "docker-daemon:y", Options{}); !errors.Is(err, ErrNoImage) ||
		!strings.Contains(err.Error(), "docker images") {
		t.Errorf("%v", err)
	}
	t.Setenv("DOCKER_HOST", "unix:///missing.sock")
	if _, err := opened(t, "docker-daemon:x", Options{}); err == nil || !strings.Contains(err.Error(), "DOCKER_HOST") {
		t.Errorf("%v", err)
	}
}

func FuzzArchive(f *testing.F) {
	forms, _ := savedForms(f)
	for _, form := range forms {
		f.Add(form)
	}
	f.Add([]byte("BZh9"))
	want, err := Options{}.selector()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		file, err := spool(t.Context(), bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		if file, err = plainFile(t.Context(), file); err != nil {
			return
		}
		image, err := loadArchive(t.Context(), file, "", want)
		if err != nil {
			return
		}
		defer image.Close()
		for _, l := range image.Layers {
			c, err := l.Content(t.Context(), nil)
			if err != nil {
				continue
			}
			got, _ := io.ReadAll(io.LimitReader(c, 1<<20)) // fuzzed bytes are rarely those of the digest
			if len(got) < 1<<20 && c.Finish() == nil && sha(t, string(got)) != l.DiffID.Hex {
				t.Error("a layer passes that is not what the configuration says")
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
