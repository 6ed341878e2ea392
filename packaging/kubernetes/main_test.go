package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"cvmfs-graphdriver/test/testutil"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// release returns options for programs of this machine, which do for any.
func release(t *testing.T, version string) *options {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	must(t, os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600))
	for _, program := range programs {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o",
			filepath.Join(dir, runtime.GOARCH, program), source)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return &options{
		programs: dir, archs: []string{runtime.GOARCH}, version: version, output: filepath.Join(dir, "output"),
		date: time.Unix(1700000000, 0).UTC(),
	}
}

func TestWhatIsPushedIsWhatTheManifestsName(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	o := release(t, "1.2.3")
	o.push = registry.Host + "/some/where"
	made, err := o.make(t.Context())
	must(t, err)
	image := registry.Host + "/some/where:1.2.3"
	base := filepath.Join(o.output, "cvmfs-snapshotter-1.2.3")
	if diff := cmp.Diff([]string{image, base + "-image.tar", base + "-chart.tgz", base + ".yaml"}, made); diff != "" {
		t.Error(diff)
	}
	text, err := os.ReadFile(base + ".yaml")
	must(t, err)
	if !strings.Contains(string(text), "image: \""+image+"\"\n") || strings.Contains(string(text), placeholder) {
		t.Errorf("the manifests: %s", text)
	}
	ref, err := name.ParseReference(image)
	must(t, err)
	index, err := remote.Index(ref)
	must(t, err)
	list, err := index.IndexManifest()
	must(t, err)
	if len(list.Manifests) != 1 || list.Manifests[0].Platform.Architecture != runtime.GOARCH {
		t.Fatalf("%+v", list.Manifests)
	}
	got, err := index.Image(list.Manifests[0].Digest)
	must(t, err)
	config, err := got.ConfigFile()
	must(t, err)
	layers, err := got.Layers()
	must(t, err)
	if config.Config.Entrypoint[0] != "/cvmfs-node" || len(layers) != 1 {
		t.Errorf("%d layers, %+v", len(layers), config)
	}
	content, err := layers[0].Uncompressed()
	must(t, err)
	names := map[string]int64{}
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		names[h.Name] = h.Mode
	}
	if diff := cmp.Diff(map[string]int64{"cvmfs-node": 0o755, "cvmfs-snapshotter": 0o755, "cvmfs-graphdriver": 0o755},
		names); diff != "" {
		t.Error(diff)
	}
}

func TestTheSameProgramsGiveTheSameBytes(t *testing.T) {
	var first map[string][]byte
	for range 2 {
		o := release(t, "1.2.3")
		made, err := o.make(t.Context())
		must(t, err)
		files := map[string][]byte{}
		for _, name := range made {
			files[filepath.Base(name)], err = os.ReadFile(name)
			must(t, err)
		}
		if first == nil {
			first = files
		}
		for name, content := range files {
			if !bytes.Equal(content, first[name]) {
				t.Errorf("%s differs", name)
			}
		}
	}
}

func TestChartsHaveTheReleasesVersion(t *testing.T) {
	for version, want := range map[string]string{
		"1.2.3":            "\nversion: \"1.2.3\"\nappVersion: \"1.2.3\"\n",
		"1.2.3-5-g0123abc": "\nversion: \"1.2.3-5-g0123abc\"\nappVersion: \"1.2.3-5-g0123abc\"\n",
		"0123abc-dirty":    "\nversion: \"0.0.0-g0123abc-dirty\"\nappVersion: \"0123abc-dirty\"\n",
	} {
		to := filepath.Join(t.TempDir(), "chart.tgz")
		must(t, (&options{version: version, date: time.Unix(0, 0)}).writeChart(to))
		f, err := os.Open(to)
		must(t, err)
		z, err := gzip.NewReader(f)
		must(t, err)
		files := map[string]string{}
		for r := tar.NewReader(z); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			must(t, err)
			content, err := io.ReadAll(r)
			must(t, err)
			files[h.Name] = string(content)
		}
		must(t, f.Close())
		if got := files["cvmfs-snapshotter/Chart.yaml"]; !strings.Contains(got, want) {
			t.Errorf("%s: %s", version, got)
		}
		if files["cvmfs-snapshotter/templates/_helpers.tpl"] == "" {
			t.Error("the chart lacks a template")
		}
	}
}

func TestProgramsOfAnotherArchitectureAreRefused(t *testing.T) {
	o := release(t, "1")
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	must(t, os.Rename(filepath.Join(o.programs, runtime.GOARCH), filepath.Join(o.programs, other)))
	o.archs = []string{other}
	if _, err := o.make(t.Context()); err == nil || !strings.Contains(err.Error(), runtime.GOARCH) {
		t.Errorf("%v", err)
	}
}
