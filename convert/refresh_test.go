package convert

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

const ociZstd types.MediaType = "application/vnd.oci.image.layer.v1.tar+zstd"

// threeLayers are layers in three compressions, of one to three entries.
func threeLayers(t testing.TB) []v1.Layer {
	t.Helper()
	return []v1.Layer{
		layerOf(t, testutil.Tar(t, file("a", "1")), types.OCILayer),
		layerOf(t, testutil.Tar(t, file("b", "2"), file("c", "3")), types.OCIUncompressedLayer),
		layerOf(t, testutil.Tar(t, file("d", "4"), file("e", "5"), file("f", "6")), ociZstd),
	}
}

// infosOf returns the infos of an image's layers in a repository; nil for one that isn't there.
func infosOf(t testing.TB, repo *publish.Repository, layout Layout, image v1.Image) []*thin.LayerInfo {
	t.Helper()
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var infos []*thin.LayerInfo
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		var info *thin.LayerInfo
		if text, err := content(t, repo, thin.InfoPath(layout.Path(digest.Hex))); err == nil {
			if info, err = thin.ParseInfo([]byte(text), digest.Hex); err != nil {
				t.Error(err)
			}
		}
		infos = append(infos, info)
	}
	return infos
}

// wantInfos are what the layers' infos should say.
func wantInfos(t testing.TB, layers []v1.Layer) []*thin.LayerInfo {
	t.Helper()
	var want []*thin.LayerInfo
	for i, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		size, err := l.Size()
		if err != nil {
			t.Fatal(err)
		}
		p := l.(packed)
		want = append(want, &thin.LayerInfo{
			Digest: digest.Hex, DiffID: p.diffID.Hex, Size: size, DiffSize: int64(len(p.plain)), Entries: int64(i + 1),
			Compression: []thin.Compression{thin.Gzip, thin.Uncompressed, thin.Zstd}[i],
		})
	}
	return want
}

func TestLayersHaveTheirInfoBesideThem(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	layers := threeLayers(t)
	image := imageOf(t, true, layers...)
	in := ref(t, registry.Push(t, "a:1", image, nil))
	for _, layout := range []Layout{{}, {Subdirectory: "a/b"}, {DUCC: true}} {
		repo, _ := newRepository(t)
		c := &Converter{Sink: sink.Native(repo), Layout: layout}
		out := ref(t, registry.Host+"/thin:1")
		if _, err := c.Convert(t.Context(), Job{Input: in, Output: &out}); err != nil {
			t.Fatal(err)
		}
		want := wantInfos(t, layers)
		if diff := cmp.Diff(want, infosOf(t, repo, layout, image)); diff != "" {
			t.Errorf("%+v: -want +got\n%s", layout, diff)
		}
		for i, l := range descriptorOf(t, pulled(t, out)).Layers {
			if l.DiffID != want[i].DiffID || l.Size != want[i].Size {
				t.Errorf("%+v: the descriptor says %+v", layout, l)
			}
		}
	}
}

// older removes infos from a repository, as if an older version had published the layers.
func older(t testing.TB, repo *publish.Repository, infos []*thin.LayerInfo) {
	t.Helper()
	tx, err := repo.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		if err := tx.Remove(t.Context(), thin.InfoPath(Layout{}.Path(i.Digest))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tx.Commit(t.Context(), publish.CommitOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestOlderLayersAreRefreshed(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	layers := threeLayers(t)
	image := imageOf(t, true, layers...)
	job := Job{Input: ref(t, registry.Push(t, "a:1", image, nil)), Output: refp(t, registry.Host+"/thin:1")}
	repo, _ := newRepository(t)
	convert := func(refresh Refresh) *Summary {
		t.Helper()
		s, err := (&Converter{Sink: sink.Native(repo), Refresh: refresh}).Convert(t.Context(), job)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	convert(NoRefresh)
	want := wantInfos(t, layers)
	older(t, repo, want)

	if s := convert(NoRefresh); !s.Unchanged || s.Refreshed != 0 {
		t.Errorf("without being asked: %+v", s)
	}
	known := &thin.LayerInfo{Digest: want[1].Digest, DiffID: want[1].Digest, Compression: thin.Uncompressed}
	s := convert(RefreshKnown)
	lacking := []string{Layout{}.Path(want[0].Digest), Layout{}.Path(want[2].Digest)}
	if diff := cmp.Diff(lacking, s.Lacking); diff != "" || s.Refreshed != 1 || s.Read != 0 || s.Unchanged {
		t.Errorf("what is known: %+v\n%s", s, diff)
	}
	if diff := cmp.Diff([]*thin.LayerInfo{nil, known, nil}, infosOf(t, repo, Layout{}, image)); diff != "" {
		t.Errorf("what is known: -want +got\n%s", diff)
	}
	if s := convert(RefreshKnown); !s.Unchanged || s.Refreshed != 0 || len(s.Lacking) != 2 {
		t.Errorf("what is known, again: %+v", s)
	}

	if s = convert(RefreshAll); s.Refreshed != 2 || s.Read != want[0].Size+want[2].Size || len(s.Lacking) != 0 {
		t.Errorf("all: %+v", s)
	}
	want[1] = known
	if diff := cmp.Diff(want, infosOf(t, repo, Layout{}, image)); diff != "" {
		t.Errorf("all: -want +got\n%s", diff)
	}
	if s := convert(RefreshAll); !s.Unchanged || s.Read != 0 {
		t.Errorf("all, again: %+v", s)
	}
}

// An info that can't be read is as good as none.
func TestDamagedInfosAreRefreshed(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	layers := threeLayers(t)[:1]
	image := imageOf(t, true, layers...)
	job := Job{Input: ref(t, registry.Push(t, "a:1", image, nil))}
	repo, _ := newRepository(t)
	c := &Converter{Sink: sink.Native(repo), Refresh: RefreshAll}
	if _, err := c.Convert(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	want := wantInfos(t, layers)
	tx, err := c.Sink.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.WriteFile(t.Context(), thin.InfoPath(Layout{}.Path(want[0].Digest)), []byte("[{]")); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if s, err := c.Convert(t.Context(), job); err != nil || s.Refreshed != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if diff := cmp.Diff(want, infosOf(t, repo, Layout{}, image)); diff != "" {
		t.Error(diff)
	}
}

// Whoever makes an image chooses what its configuration claims. It must not decide what the repository says of a layer
// that another image brought there: clients take the layer for what its info says.
func TestConfigurationsDoNotSayWhatLayersAre(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	honest := layerOf(t, testutil.Tar(t, file("a", "1")), types.OCILayer).(packed)
	liar := honest
	liar.diffID = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("e", 64)}
	repo, _ := newRepository(t)
	c := &Converter{Sink: sink.Native(repo)}
	good := Job{Input: ref(t, registry.Push(t, "good:1", imageOf(t, true, honest), nil))}
	bad := Job{Input: ref(t, registry.Push(t, "bad:1", imageOf(t, true, liar), nil))}
	if _, err := c.Convert(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	want := infosOf(t, repo, Layout{}, imageOf(t, true, honest))

	if _, err := c.Convert(t.Context(), bad); err != nil {
		t.Fatal(err) // its layer is there already, and not read
	}
	if diff := cmp.Diff(want, infosOf(t, repo, Layout{}, imageOf(t, true, honest))); diff != "" {
		t.Errorf("an image changed what is said of another's layer:\n%s", diff)
	}
	older(t, repo, want)
	c.Refresh = RefreshKnown
	if s, err := c.Convert(t.Context(), bad); err != nil || s.Refreshed != 0 || len(s.Lacking) != 1 {
		t.Errorf("without reading: %+v, %v", s, err)
	}
	c.Refresh = RefreshAll
	if s, err := c.Convert(t.Context(), bad); !errors.Is(err, source.ErrDamaged) {
		t.Errorf("reading: %+v, %v", s, err)
	}
	if infos := infosOf(t, repo, Layout{}, imageOf(t, true, honest)); infos[0] != nil {
		t.Errorf("it is said to be %+v", infos[0])
	}
}

// What a thin image below an image names isn't among the image's blobs.
func TestLayersOfThinImagesBelowAreLacking(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	base := threeLayers(t)[:1]
	repo, _ := newRepository(t)
	thinBase := ref(t, registry.Host+"/base_thin:1")
	c := &Converter{Sink: sink.Native(repo), Refresh: RefreshAll}
	job := Job{Input: ref(t, registry.Push(t, "base:1", imageOf(t, true, base...), nil)), Output: &thinBase}
	if _, err := c.Convert(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	want := wantInfos(t, base)
	older(t, repo, want)
	s, err := c.Convert(t.Context(), Job{Input: thinBase})
	if err != nil || s.Refreshed != 0 || len(s.Lacking) != 1 || s.Lacking[0] != (Layout{}).Path(want[0].Digest) {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestInfosGoWithTheirLayers(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	layers := threeLayers(t)[:1]
	image := imageOf(t, true, layers...)
	in := ref(t, registry.Push(t, "a:1", image, nil))
	for _, layout := range []Layout{{}, {DUCC: true}} {
		repo, _ := newRepository(t)
		c := &Converter{Sink: sink.Native(repo), Layout: layout}
		if _, err := c.Convert(t.Context(), Job{Input: in, Wish: true}); err != nil {
			t.Fatal(err)
		}
		if s, err := c.Collect(t.Context(), CollectOptions{}); err != nil || len(s.Removed) != 1 {
			t.Fatalf("%+v, %v", s, err)
		}
		if infos := infosOf(t, repo, layout, image); infos[0] != nil {
			t.Errorf("%+v: an info stays without its layer", layout)
		}
	}
}

func TestInfosLieBesideLayersInFolders(t *testing.T) {
	testutil.NeedRoot(t) // owners
	registry := testutil.NewRegistry(t, "", "")
	layers := threeLayers(t)
	in := ref(t, registry.Push(t, "a:1", imageOf(t, true, layers...), nil))
	dir := t.TempDir()
	to, err := sink.Open("dir:"+dir, sink.Options{FQRN: fqrn})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&Converter{Sink: to}).Convert(t.Context(), Job{Input: in}); err != nil {
		t.Fatal(err)
	}
	for _, want := range wantInfos(t, layers) {
		b, err := os.ReadFile(filepath.Join(dir, want.Digest+thin.InfoSuffix))
		if err != nil {
			t.Fatal(err)
		}
		if e, err := want.Encode(); err != nil || !bytes.Equal(b, e) {
			t.Errorf("%s instead of %s, %v", b, e, err)
		}
	}
}
