package thinimage

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/thin"
)

// built is the thin image of an image with a configuration.
func built(t testing.TB, media types.MediaType, config string) *Image {
	t.Helper()
	ref, err := source.Parse("r.example.org/a/b:1", "")
	if err != nil {
		t.Fatal(err)
	}
	image := &source.Image{
		Reference: ref, Digest: sum([]byte("origin")), MediaType: media, RawConfig: []byte(config),
		Manifest: &v1.Manifest{Annotations: map[string]string{"kept": "yes", baseName: "older"}},
	}
	d := &thin.Descriptor{Layers: []thin.Layer{{
		Digest: strings.Repeat("a", 64), FQRN: "r.example.org",
		Path: "/layers/a",
	}}}
	made, err := Build(image, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

const plainConfig = `{"os":"linux","architecture":"arm64","created":"2024-01-01T00:00:00Z","config":{"Env":["A=1"]},"history":[{"created_by":"x"}]}`

func TestNoSecondSpellingOfAFieldIsLeft(t *testing.T) {
	made := built(t, types.DockerManifestSchema2, `{"os":"linux","RootFS":{"type":"layers","diff_ids":["sha256:`+strings.Repeat("0", 64)+`"]},
		"rootfs":{"type":"layers","diff_ids":[]},"History":[{"created_by":"hidden"}],"history":[{"created_by":"x","Empty_Layer":false}],"Config":{"User":"me"}}`)
	var as struct {
		RootFS  v1.RootFS    `json:"rootfs"`
		History []v1.History `json:"history"`
		Config  v1.Config    `json:"config"`
	}
	if err := json.Unmarshal(made.config, &as); err != nil {
		t.Fatal(err)
	}
	if len(as.RootFS.DiffIDs) != 1 || as.RootFS.DiffIDs[0] != made.diffID || as.Config.User != "me" {
		t.Errorf("as engines read it: %+v", as)
	}
	if len(as.History) != 2 || !as.History[0].EmptyLayer || as.History[1].EmptyLayer {
		t.Errorf("history: %+v", as.History)
	}
}

// TestLabelsAreAddedWhereEnginesReadThem, and what is there stays.
func TestLabelsAreAddedWhereEnginesReadThem(t *testing.T) {
	for config, want := range map[string]map[string]string{
		`"config":{"Labels":{"a":"1","org.opencontainers.image.base.name":"older"},"User":"me"}`: {"a": "1"},
		`"config":{"Labels":null,"User":"me"}`:                                                   {},
		`"config":{"User":"me"}`:                                                                 {},
		`"config":{"labels":{"a":"1"},"User":"me"}`:                                              {"a": "1"},
		`"Config":{"User":"me","LABELS":{"b":"2"}}`:                                              {"b": "2"},
		`"Config":{"Labels":{"a":"1"}},"config":{"User":"me","labels":{"b":"2"}}`:                {"a": "1", "b": "2"},
	} {
		var as struct {
			Config v1.Config `json:"config"`
		}
		made := built(t, types.DockerManifestSchema2, `{"os":"linux",`+config+`}`)
		if err := json.Unmarshal(made.config, &as); err != nil {
			t.Fatal(err)
		}
		maps.Copy(want, map[string]string{
			thinLabel: "1.1", noteLabel: note, baseName: "r.example.org/a/b:1", baseDigest: sum([]byte("origin")).String(),
		})
		if diff := cmp.Diff(want, as.Config.Labels); diff != "" || as.Config.User != "me" {
			t.Errorf("%s: user %q:\n%s", config, as.Config.User, diff)
		}
	}
	var as struct {
		Config v1.Config `json:"config"`
	}
	for _, none := range []string{`{"os":"linux"}`, `{"os":"linux","config":null}`} {
		err := json.Unmarshal(built(t, types.DockerManifestSchema2, none).config, &as)
		if err != nil || as.Config.Labels[thinLabel] != thin.Version {
			t.Errorf("%s: %v, %v", none, as.Config.Labels, err)
		}
	}
}

// TestStepsOfAHistoryMayBeNull: engines read such a step as one that says nothing.
func TestStepsOfAHistoryMayBeNull(t *testing.T) {
	for history, want := range map[string]int{`[null,{"created_by":"x"},{"created_by":null}]`: 4, `null`: 1, `[]`: 1} {
		made := built(t, types.DockerManifestSchema2, `{"os":"linux","created":null,"history":`+history+`}`)
		var as struct {
			History []v1.History `json:"history"`
		}
		if err := json.Unmarshal(made.config, &as); err != nil || len(as.History) != want {
			t.Errorf("%s: %+v, %v", history, as.History, err)
		}
		for i, h := range as.History {
			if h.EmptyLayer != (i < want-1) {
				t.Errorf("%s: step %d makes a layer: %t", history, i, !h.EmptyLayer)
			}
		}
	}
}

func TestAnnotationsNameTheOriginWhereTheyMay(t *testing.T) {
	var m v1.Manifest
	if err := json.Unmarshal(built(t, types.OCIManifestSchema1, plainConfig).manifest, &m); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"kept": "yes", baseName: "r.example.org/a/b:1",
		baseDigest: sum([]byte("origin")).String(),
	}
	if diff := cmp.Diff(want, m.Annotations); diff != "" {
		t.Error(diff)
	}
	if docker := built(t, types.DockerManifestSchema2, plainConfig); bytes.Contains(docker.manifest,
		[]byte("annotations")) {
		t.Errorf("Docker's manifests have none: %s", docker.manifest)
	}
}

func TestLayoutsKeepTheirOtherImages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	one, two := built(t, types.OCIManifestSchema1, plainConfig),
		built(t, types.OCIManifestSchema1, strings.Replace(plainConfig, "A=1", "A=2", 1))
	write := func(made *Image, tag string) {
		t.Helper()
		ref, err := source.Parse("oci:"+dir+tag, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := made.Write(t.Context(), ref, source.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		write(one, ":one")
		write(one, ":two")
		write(two, ":two")
		write(two, "")
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]v1.Hash{}
	for _, d := range m.Manifests {
		got[d.Annotations[refName]] = d.Digest
	}
	want := map[string]v1.Hash{"one": one.Digest, "two": two.Digest, "": two.Digest}
	if diff := cmp.Diff(want, got); diff != "" || len(m.Manifests) != 3 {
		t.Errorf("%d images:\n%s", len(m.Manifests), diff)
	}
	if entries, err := filepath.Glob(filepath.Join(dir, ".new-*")); err != nil || len(entries) > 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}

func TestArchivesGiveTheirImageANameThatEnginesLoad(t *testing.T) {
	made := built(t, types.DockerManifestSchema2, plainConfig)
	for called, want := range map[string]string{
		"": "[]", "x": `["x:latest"]`,
		"r.example.org:5000/x": `["r.example.org:5000/x:latest"]`, "x:1": `["x:1"]`,
	} {
		var b bytes.Buffer
		if err := made.archiveTo(&b, called); err != nil {
			t.Fatal(err)
		}
		if list := fileOf(t, &b, "manifest.json"); !strings.Contains(list, `"RepoTags":`+want) {
			t.Errorf("%q: %s", called, list)
		}
	}
	if err := made.archiveTo(io.Discard, "A:B:C"); err == nil {
		t.Error("a name that is none")
	}
}

func fileOf(t testing.TB, archive io.Reader, name string) string {
	t.Helper()
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if h.Name == name {
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
	}
}

func TestWhatTheDaemonSaysOfALoadIsHeard(t *testing.T) {
	var got bytes.Buffer
	reply := `{"stream":"Loaded image: x:latest\n"}`
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Api-Version", "1.41") })
	mux.HandleFunc("POST /v1.41/images/load", func(w http.ResponseWriter, r *http.Request) {
		got.Reset()
		io.Copy(&got, r.Body)
		io.WriteString(w, reply)
	})
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	defer s.Close()
	t.Setenv("DOCKER_HOST", "unix://"+socket)
	ref, err := source.Parse("docker-daemon:x", "")
	if err != nil {
		t.Fatal(err)
	}
	made := built(t, types.DockerManifestSchema2, plainConfig)
	if _, err := made.Write(t.Context(), ref, source.Options{}); err != nil {
		t.Fatal(err)
	}
	if list := fileOf(t, &got, "manifest.json"); !strings.Contains(list, `"x:latest"`) {
		t.Errorf("%s", list)
	}
	reply = `{"stream":"x"}{"errorDetail":{"message":"no space left"},"error":"no space left"}`
	if _, err := made.Write(t.Context(), ref, source.Options{}); err == nil ||
		!strings.Contains(err.Error(), "no space left") {
		t.Errorf("%v", err)
	}
}

func TestAnArchiveThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	ref, err := source.Parse("docker-archive:"+filepath.Join(dir, "x.tar")+":A:B:C", "")
	if err != nil {
		t.Fatal(err)
	}
	made := built(t, types.DockerManifestSchema2, plainConfig)
	if _, err := made.Write(t.Context(), ref, source.Options{}); err == nil {
		t.Error("a name that is none")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}
