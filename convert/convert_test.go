package convert

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

const fqrn = "layers.example.org"

var day = time.Date(2024, 2, 3, 4, 5, 6, 789, time.UTC)

// file is a regular file of a layer.
func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content, Mode: 0o644, ModTime: day}
}

// packed is a layer of an archive in one of the compressions.
type packed struct {
	v1.Layer
	diffID v1.Hash
	plain  []byte
}

func (p packed) DiffID() (v1.Hash, error) { return p.diffID, nil }
func (p packed) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(p.plain)), nil
}

func layerOf(t testing.TB, plain []byte, media types.MediaType) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	switch {
	case strings.HasSuffix(string(media), "zstd"):
		w, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(plain)
		w.Close()
	case strings.HasSuffix(string(media), "gzip"):
		w := gzip.NewWriter(&b)
		w.Write(plain)
		w.Close()
	default:
		b.Write(plain)
	}
	diffID, _, err := v1.SHA256(bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	return packed{static.NewLayer(b.Bytes(), media), diffID, plain}
}

// imageOf makes an image of Docker's kind, or of OCI's.
func imageOf(t testing.TB, oci bool, layers ...v1.Layer) v1.Image {
	t.Helper()
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: "amd64", OS: "linux", Author: "somebody", Created: v1.Time{Time: day},
		RootFS:  mustConfig(t, image).RootFS,
		History: []v1.History{{CreatedBy: "ADD rootfs"}, {CreatedBy: "ENV A=1", EmptyLayer: true}},
		Config: v1.Config{
			Env: []string{"A=1", "B=two words"}, Entrypoint: []string{"/init", "-x"}, Cmd: []string{"a b", "c"},
			User: "1:2", WorkingDir: "/w",
			Labels: map[string]string{"k": "<v> & w"}, ExposedPorts: map[string]struct{}{"80/tcp": {}},
			Volumes:    map[string]struct{}{"/v": {}},
			StopSignal: "SIGQUIT", Shell: []string{"/bin/x", "-c"}, OnBuild: []string{"RUN y"},
			Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "z"}, Interval: time.Minute},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if oci {
		image = mutate.ConfigMediaType(mutate.MediaType(image, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	return image
}

func mustConfig(t testing.TB, image v1.Image) *v1.ConfigFile {
	t.Helper()
	c, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newRepository makes an empty repository of our publisher.
func newRepository(t testing.TB) (*publish.Repository, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "publisher")
	if err := publish.Create(t.Context(), dir, publish.Settings{FQRN: fqrn}, publish.Options{}); err != nil {
		t.Fatal(err)
	}
	repo, err := publish.Open(dir, publish.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return repo, dir
}

func ref(t testing.TB, text string) source.Reference {
	t.Helper()
	r, err := source.Parse(text, "")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func refp(t testing.TB, text string) *source.Reference {
	r := ref(t, text)
	return &r
}

// pulled returns an image of a registry.
func pulled(t testing.TB, at source.Reference) v1.Image {
	t.Helper()
	name, err := at.Parsed()
	if err != nil {
		t.Fatal(err)
	}
	image, err := remote.Image(name)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// descriptorOf reads the descriptor in a thin image.
func descriptorOf(t testing.TB, image v1.Image) *thin.Descriptor {
	t.Helper()
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d, err := descriptorIn(r)
	if err != nil || d == nil {
		t.Fatalf("no descriptor: %v", err)
	}
	return d
}

// content reads a file of the newest revision.
func content(t testing.TB, repo *publish.Repository, path string) (string, error) {
	t.Helper()
	tx, err := repo.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Abort()
	b, err := tx.ReadFile(t.Context(), path)
	return string(b), err
}

func TestImagesBecomeThinImages(t *testing.T) {
	for _, oci := range []bool{false, true} {
		t.Run(fmt.Sprintf("oci=%t", oci), func(t *testing.T) {
			repo, _ := newRepository(t)
			registry := testutil.NewRegistry(t, "", "")
			media := []types.MediaType{types.DockerLayer, types.DockerUncompressedLayer}
			if oci {
				media = []types.MediaType{types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer}
			}
			var layers []v1.Layer
			for i, m := range media {
				layers = append(layers,
					layerOf(t, testutil.Tar(t, file("etc/name", fmt.Sprint("layer ", i)),
						file("only/"+fmt.Sprint(i), "x")), m))
			}
			original := imageOf(t, oci, layers...)
			in, out := ref(t, registry.Push(t, "a/b:1", original, nil)), ref(t, registry.Host+"/a/b_thin:1")
			c := &Converter{Sink: sink.Native(repo)}
			s, err := c.Convert(t.Context(), Job{Input: in, Output: &out})
			if err != nil {
				t.Fatal(err)
			}
			if s.Added != len(layers) || s.Present != 0 || s.Unchanged {
				t.Errorf("summary %+v", s)
			}
			got := pulled(t, out)
			d := descriptorOf(t, got)
			for i, l := range d.Layers {
				if text, err := content(t, repo, l.Path+"/etc/name"); err != nil || text != fmt.Sprint("layer ", i) {
					t.Errorf("layer %d at %s: %q, %v", i, l.Path, text, err)
				}
				digest, _ := layers[i].Digest()
				if l.Digest != digest.Hex || l.FQRN != fqrn || l.Path != "/layers/"+digest.Hex {
					t.Errorf("layer %d: %+v", i, l)
				}
			}
			want, have := mustConfig(t, original), mustConfig(t, got)
			for _, step := range have.History[:len(have.History)-1] {
				if !step.EmptyLayer {
					t.Errorf("history: %+v says it made a layer", step)
				}
			}
			if len(have.History) != len(want.History)+1 || have.History[len(want.History)].EmptyLayer ||
				len(have.RootFS.DiffIDs) != 1 {
				t.Errorf("history %+v, layers %v", have.History, have.RootFS.DiffIDs)
			}
			want.History, want.RootFS, have.History, have.RootFS = nil, v1.RootFS{}, nil, v1.RootFS{}
			have.Config.Labels = want.Config.Labels // which have a test of their own
			if diff := cmp.Diff(want, have); diff != "" {
				t.Error(diff)
			}
			m, err := got.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			digest, _ := original.Digest()
			if base := m.Annotations["org.opencontainers.image.base.digest"]; oci != (base == digest.String()) {
				t.Errorf("annotations %v", m.Annotations)
			}
		})
	}
}

func TestUnchangedImagesAreNotConvertedAgain(t *testing.T) {
	repo, _ := newRepository(t)
	registry := testutil.NewRegistry(t, "", "")
	layer := layerOf(t, testutil.Tar(t, file("a", "b")), types.DockerLayer)
	in := ref(t, registry.Push(t, "a:1", imageOf(t, false, layer), nil))
	job := Job{Input: in, Output: refp(t, registry.Host+"/a_thin:1")}
	c := &Converter{Sink: sink.Native(repo)}
	first, err := c.Convert(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	head, err := repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Convert(t.Context(), job)
	if err != nil || !second.Unchanged || second.ThinDigest != first.ThinDigest {
		t.Errorf("second: %+v, %v", second, err)
	}
	again, err := repo.Head(t.Context())
	if err != nil || again.Manifest.Revision != head.Manifest.Revision {
		t.Errorf("revision %d became %d, %v", head.Manifest.Revision, again.Manifest.Revision, err)
	}
	blobs := registry.Requests("/blobs/")
	job.Output = refp(t, registry.Host+"/other_thin:1")
	third, err := c.Convert(t.Context(), job)
	if err != nil || third.Unchanged || third.Present != 1 || third.Added != 0 {
		t.Errorf("third: %+v, %v", third, err)
	}
	if descriptorOf(t, pulled(t, *job.Output)).Layers[0].Path != "/layers/"+third.Paths[0][len(third.Paths[0])-64:] ||
		blobs == 0 {
		t.Error("the other output names other layers")
	}
}

func TestThinLayersAreFlattened(t *testing.T) {
	repo, _ := newRepository(t)
	registry := testutil.NewRegistry(t, "", "")
	base := imageOf(t, false, layerOf(t, testutil.Tar(t, file("base", "1")), types.DockerLayer),
		layerOf(t, testutil.Tar(t, file("two", "2")), types.DockerLayer))
	c := &Converter{Sink: sink.Native(repo)}
	thinRef := ref(t, registry.Host+"/base_thin:1")
	if _, err := c.Convert(t.Context(), Job{
		Input:  ref(t, registry.Push(t, "base:1", base, nil)),
		Output: &thinRef,
	}); err != nil {
		t.Fatal(err)
	}
	thinBase := pulled(t, thinRef)
	derived, err := mutate.AppendLayers(thinBase, layerOf(t, testutil.Tar(t, file("top", "3"), file("thin.json", "{}")),
		types.DockerLayer))
	if err != nil {
		t.Fatal(err)
	}
	out := ref(t, registry.Host+"/derived_thin:1")
	s, err := c.Convert(t.Context(), Job{Input: ref(t, registry.Push(t, "derived:1", derived, nil)), Output: &out})
	if err != nil {
		t.Fatal(err)
	}
	d, below := descriptorOf(t, pulled(t, out)), descriptorOf(t, thinBase)
	if len(d.Layers) != 3 || s.Flattened != 1 || s.Added != 1 {
		t.Fatalf("%+v, %+v", d, s)
	}
	if diff := cmp.Diff(below.Layers, d.Layers[:2]); diff != "" {
		t.Error(diff)
	}
	if text, err := content(t, repo, d.Layers[2].Path+"/top"); text != "3" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

func TestSameImageGivesSameDigest(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	in := ref(t, registry.Push(t, "a:1", imageOf(t, true, layerOf(t, testutil.Tar(t, file("a", "b")), types.OCILayer)),
		nil))
	dir := t.TempDir()
	var digests []string
	var archives [][]byte
	for i := range 2 {
		repo, _ := newRepository(t)
		out := filepath.Join(dir, fmt.Sprint(i, ".tar"))
		c := &Converter{Sink: sink.Native(repo)}
		s, err := c.Convert(t.Context(), Job{Input: in, Output: refp(t, "docker-archive:"+out+":a/thin:1")})
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		digests, archives = append(digests, s.ThinDigest), append(archives, b)
	}
	if digests[0] != digests[1] || !bytes.Equal(archives[0], archives[1]) {
		t.Errorf("digests %v; archives equal: %t", digests, bytes.Equal(archives[0], archives[1]))
	}
	image, err := tarball.ImageFromPath(filepath.Join(dir, "0.tar"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := descriptorOf(t, image); len(d.Layers) != 1 {
		t.Errorf("descriptor %+v", d)
	}
}

func TestUnknownConfigurationIsCarriedOver(t *testing.T) {
	repo, _ := newRepository(t)
	dir := t.TempDir()
	plain := testutil.Tar(t, file("a", "b"))
	diffID, _, _ := v1.SHA256(bytes.NewReader(plain))
	config := fmt.Sprintf(`{"architecture":"arm64","os":"linux","variant":"v8","future":{"x":[1.50]},"config":{"Cmd":["a"],"Later":{"y":"<z>"}},
		"rootfs":{"type":"layers","diff_ids":[%q]},"history":[{"created_by":"x","odd":7}]}`, diffID)
	archive := testutil.Tar(t, file("c.json", config), file("l/layer.tar", string(plain)),
		file("manifest.json", `[{"Config":"c.json","RepoTags":["x:1"],"Layers":["l/layer.tar"]}]`))
	saved, out := filepath.Join(dir, "in.tar"), filepath.Join(dir, "out.tar")
	if err := os.WriteFile(saved, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Converter{Sink: sink.Native(repo)}
	if _, err := c.Convert(t.Context(), Job{
		Input:  ref(t, "docker-archive:"+saved+":x:1"),
		Output: refp(t, "docker-archive:"+out),
	}); err != nil {
		t.Fatal(err)
	}
	image, err := tarball.ImageFromPath(out, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"future":{"x":[1.50]}`, `"Later":{"y":`, `"variant":"v8"`, `"odd":7`,
		`"empty_layer":true`,
	} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("configuration lacks %s: %s", want, raw)
		}
	}
}

func TestSourcesGiveTheSameLayers(t *testing.T) {
	repo, _ := newRepository(t)
	saved := testutil.Data(t, "images", "tiny.tar")
	dir := t.TempDir()
	c := &Converter{Sink: sink.Native(repo)}
	if _, err := c.Convert(t.Context(), Job{
		Input:  ref(t, "docker-archive:"+saved),
		Output: refp(t, "oci:"+dir+"/out:x"),
	}); err != nil {
		t.Fatal(err)
	}
	image, err := source.Open(t.Context(), ref(t, "oci:"+dir+"/out:x"), source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	d, err := Describe(t.Context(), image, "other.example.org", Layout{})
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Layers) != 3 || d.Layers[0].FQRN != fqrn {
		t.Errorf("descriptor read back: %+v", d)
	}
	for _, l := range d.Layers {
		tx, err := repo.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if names, err := tx.List(t.Context(), l.Path); err != nil || len(names) == 0 {
			t.Errorf("%s: %v, %v", l.Path, names, err)
		}
		tx.Abort()
	}
}

func TestLayoutOfDUCCHasItsMetadata(t *testing.T) {
	repo, _ := newRepository(t)
	registry := testutil.NewRegistry(t, "", "")
	in := ref(t, registry.Push(t, "a/b:1",
		imageOf(t, false, layerOf(t, testutil.Tar(t, file("a", "b")), types.DockerLayer)), nil))
	c := &Converter{Sink: sink.Native(repo), Layout: Layout{DUCC: true}}
	s, err := c.Convert(t.Context(), Job{Input: in})
	if err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(s.Paths[0], "cvmfs://"+fqrn)
	parts := strings.Split(path, "/")
	if len(parts) != 5 || parts[1] != ".layers" || parts[2] != parts[3][:2] || parts[4] != "layerfs" {
		t.Fatalf("path %s", path)
	}
	if text, err := content(t, repo, path+"/a"); text != "b" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	text, err := content(t, repo, "/.metadata/"+registry.Host+"/a/b:1/manifest.json")
	var m publishedManifest
	if err != nil || json.Unmarshal([]byte(text), &m) != nil || !strings.Contains(text, `"Digest":"sha256:`+parts[3]) ||
		len(m.Layers) != 1 {
		t.Errorf("manifest %s, %v", text, err)
	}
	text, err = content(t, repo, strings.TrimSuffix(path, "/layerfs")+"/.metadata/origin.json")
	if err != nil || text != fmt.Sprintf(`{"origin":[%q]}`, m.Config.Digest) {
		t.Errorf("origin %s, %v", text, err)
	}
}

func TestFailuresPublishNothing(t *testing.T) {
	good := layerOf(t, testutil.Tar(t, file("good", "1")), types.DockerLayer)
	for name, c := range map[string]struct {
		fault testutil.Fault
		image func(t *testing.T) v1.Image
		want  error
		text  string
	}{
		"a layer's bytes are wrong": {
			fault: testutil.Fault{Path: "/blobs/", Flip: true}, want: source.ErrDamaged,
			text: "digest",
		},
		"a layer isn't there": {
			fault: testutil.Fault{Path: "/blobs/", Status: 404}, want: source.ErrNoImage,
			text: "missing",
		},
		"its diffID is wrong": {image: func(t *testing.T) v1.Image {
			lying := packed{good, v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}, nil}
			return imageOf(t, false, lying)
		}, want: source.ErrDamaged, text: "configuration says"},
		"its archive is cut": {image: func(t *testing.T) v1.Image {
			whole := testutil.Tar(t, file("a", strings.Repeat("x", 4000)))
			return imageOf(t, false, good, layerOf(t, whole[:2000], types.DockerLayer))
		}, text: "EOF"},
		"no engine unpacks it": {image: func(t *testing.T) v1.Image {
			return imageOf(t, false, good, layerOf(t, testutil.Tar(t, file("up", "x"), file("up/x", "x")),
				types.DockerLayer))
		}, text: "up/x"},
	} {
		t.Run(name, func(t *testing.T) {
			repo, _ := newRepository(t)
			registry := testutil.NewRegistry(t, "", "")
			image := imageOf(t, false, good)
			if c.image != nil {
				image = c.image(t)
			}
			in := ref(t, registry.Push(t, "a:1", image, nil))
			registry.Set(c.fault)
			conv := &Converter{Sink: sink.Native(repo)}
			out := ref(t, registry.Host+"/a_thin:1")
			_, err := conv.Convert(t.Context(), Job{Input: in, Output: &out})
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %v with %q", err, c.want, c.text)
			}
			registry.Set()
			if name, _ := out.Parsed(); name != nil {
				if _, err := remote.Head(name); err == nil {
					t.Error("a thin image was pushed")
				}
			}
			if head, err := repo.Head(t.Context()); err != nil || head.Manifest.Revision != 0 {
				t.Errorf("revision %+v, %v", head, err)
			}
			if c.image == nil {
				if _, err := conv.Convert(t.Context(), Job{Input: in, Output: &out}); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			}
		})
	}
}

func TestBrokenDownloadsAreResumed(t *testing.T) {
	repo, _ := newRepository(t)
	registry := testutil.NewRegistry(t, "", "")
	big := strings.Repeat("0123456789", 300_000)
	in := ref(t, registry.Push(t, "a:1",
		imageOf(t, false, layerOf(t, testutil.Tar(t, file("big", big)), types.DockerUncompressedLayer)), nil))
	image, err := source.Open(t.Context(), in, source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	registry.Set(testutil.Fault{Path: image.Layers[0].Digest.Hex, Cut: 1_000_000, Times: 2})
	conv := &Converter{Sink: sink.Native(repo)}
	s, err := conv.Convert(t.Context(), Job{Input: in})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := content(t, repo, strings.TrimPrefix(s.Paths[0], "cvmfs://"+fqrn)+"/big"); text != big ||
		err != nil {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	var ranges []string
	for _, r := range registry.Log() {
		if r.Header.Get("Range") != "" {
			ranges = append(ranges, r.Header.Get("Range"))
		}
	}
	if len(ranges) == 0 || !strings.HasPrefix(ranges[0], "bytes=1000000-") {
		t.Errorf("ranges asked for: %v", ranges)
	}
}

func TestInterruptedConversionLeavesTheRepositoryAsItWas(t *testing.T) {
	repo, _ := newRepository(t)
	registry := testutil.NewRegistry(t, "", "")
	layer := layerOf(t, testutil.Tar(t, file("big", strings.Repeat("x", 3_000_000))), types.DockerUncompressedLayer)
	in := ref(t, registry.Push(t, "a:1", imageOf(t, false, layer), nil))
	digest, _ := layer.Digest()
	registry.Set(testutil.Fault{Path: digest.Hex, Stall: 2_000_000})
	ctx, cancel := context.WithCancel(t.Context())
	conv := &Converter{Sink: sink.Native(repo), Progress: func(e Event) {
		if e.Action == LayerProgress {
			cancel()
		}
	}}
	if _, err := conv.Convert(ctx, Job{Input: in}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	registry.Set()
	conv.Progress = nil
	if _, err := content(t, repo, "/layers"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("layers are there: %v", err)
	}
	if _, err := conv.Convert(t.Context(), Job{Input: in}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestPulledLayersAreCalledByTheirCompression(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	var layers []v1.Layer
	heads := []string{
		"\x1f\x8b", "\x28\xb5\x2f\xfd", "\x51\x2a\x4d\x18", "\xfd7zXZ\x00", "BZh9",
		string(make([]byte, 512)), "\x04\x22\x4d\x18",
	}
	for _, head := range heads {
		b := []byte(head + "rest")
		layers = append(layers, packed{
			static.NewLayer(b, types.DockerLayer),
			v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("1", 64)},
			b,
		})
	}
	image, err := source.Open(t.Context(), ref(t, "http://"+r.Push(t, "a:1", imageOf(t, false, layers...), nil)),
		source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	dir := t.TempDir()
	for range 2 { // the second finds them
		names, err := Pull(t.Context(), image, dir, 2, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, suffix := range []string{".tar.gz", ".tar.zst", ".tar.zst", ".tar.xz", ".tar.bz2", ".tar", ""} {
			if names[i] != image.Layers[i].Digest.Hex+suffix {
				t.Errorf("%q: %s", heads[i], names[i])
			}
		}
	}
}
