package engine

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProgramsAreBuiltOnceOfWhatIsPinned(t *testing.T) {
	calls := fakeApt(t, "exit 1")
	cache := t.TempDir()
	for range 2 {
		if err := crictlBuild.fetch(t.Context(), cache, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if got := count(t, calls); got != 1 {
		t.Errorf("go was called %d times, want once", got)
	}
	for name, as := range map[string]string{"go.mod": ".mod", "go.sum": ".sum"} {
		got, err := os.ReadFile(filepath.Join(cache, crictlBuild.folder, name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join("modules", crictlBuild.folder+as))
		if err != nil || string(got) != string(want) {
			t.Errorf("%s differs from what is kept here, %v", name, err)
		}
	}
	other := crictlBuild
	other.ldflags = "-X other"
	if err := other.fetch(t.Context(), cache, io.Discard); err != nil || count(t, calls) != 2 {
		t.Errorf("with other flags: %v, and go was called %d times, want once more", err, count(t, calls)-1)
	}
}

func TestABuildThatFailsLeavesNothingThatCounts(t *testing.T) {
	fakeApt(t, "exit 1")
	cache := t.TempDir()
	path, _, _ := strings.Cut(os.Getenv("PATH"), ":")
	if err := os.WriteFile(filepath.Join(path, "go"), []byte("#!/bin/sh\nmkdir bin; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := crictlBuild.fetch(t.Context(), cache, io.Discard); err == nil ||
		!strings.Contains(err.Error(), crictlBuild.folder) {
		t.Errorf("got %v, want an error that names what was to be built", err)
	}
	for _, folder := range []string{crictlBuild.folder, "fetching"} {
		if _, err := os.Stat(filepath.Join(cache, folder)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", folder, err)
		}
	}
}

// TestNamesOfBuildsAreVersions holds the folders' names, and the versions that programs are stamped with, to what is
// pinned.
func TestNamesOfBuildsAreVersions(t *testing.T) {
	for b, pinned := range map[build]string{
		containerdBuild: "github.com/containerd/containerd/v2 v2.4.2",
		dockerdBuild:    "github.com/moby/moby/v2 v2.0.0-beta.24", // of Docker 29, which its name says
		crictlBuild:     "sigs.k8s.io/cri-tools v1.37.0",
		kubernetesBuild: "k8s.io/kubernetes v1.36.3",
		helmBuild:       "helm.sh/helm/v3 v3.22.0",
		storeBuild:      "github.com/versity/versitygw v1.8.0",
	} {
		text, err := modules.ReadFile("modules/" + b.folder + ".mod")
		if err != nil || !strings.Contains(string(text)+" ", pinned+" ") {
			t.Errorf("%s.mod doesn't require %s, %v", b.folder, pinned, err)
		}
		_, version, _ := strings.Cut(b.folder, "-")
		if b.ldflags != "" && !strings.HasSuffix(strings.Replace(b.ldflags, "=v", "=", 1), "="+version) {
			t.Errorf("%s is stamped by %s", b.folder, b.ldflags)
		}
	}
}
