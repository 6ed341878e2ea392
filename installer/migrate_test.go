package installer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dataRoot is an engine's data folder, of an engine that ran on a plugin and before that on overlay2.
func dataRoot(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"image/cvmfs-graphdriver/repositories.json": `{"Repositories":{
			"busybox":{"busybox:latest":"sha256:01","busybox@sha256:aa":"sha256:01"},
			"r.example.org/x":{"r.example.org/x:2":"sha256:02"}}}`,
		"image/overlay2/repositories.json": `{"Repositories":{"debian":{"debian:12":"sha256:03"}}}`,
		"containers/a/config.v2.json": `{"ID":"a","Name":"/web","Driver":"cvmfs-graphdriver","Image":"sha256:02",` +
			`"Config":{"Image":"r.example.org/x:2"},"State":{"Running":true}}`,
		"containers/b/config.v2.json": `{"ID":"b","Name":"/job","Driver":"cvmfs-graphdriver:latest","Image":"sha256:01",` +
			`"Config":{"Image":"sha256:01"}}`,
		"containers/c/config.v2.json": `{"ID":"c","Name":"/old","Driver":"overlay2","Image":"sha256:03",` +
			`"Config":{"Image":"debian:12"}}`,
		"containers/d/config.v2.json": `{"ID":"d","Name":"/lost","Driver":"cvmfs-graphdriver","Image":"sha256:09",` +
			`"Config":{"Image":"sha256:09"}}`,
		"containers/e/hostname": "half removed",
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestWhatAPluginLeavesIsRead(t *testing.T) {
	got, err := ReadLeft(dataRoot(t), "cvmfs-graphdriver")
	if err != nil {
		t.Fatal(err)
	}
	want := Left{
		Images: []string{"busybox:latest", "r.example.org/x:2"},
		Containers: []LeftContainer{
			{"web", "r.example.org/x:2", true}, {"job", "busybox:latest", false}, {"lost", "sha256:09", false},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if got, err := ReadLeft(t.TempDir(), "cvmfs-graphdriver"); err != nil || len(got.Containers) != 0 {
		t.Errorf("of an empty folder: %+v, %v", got, err)
	}
	dir := dataRoot(t)
	if err := os.WriteFile(filepath.Join(dir, "containers/a/config.v2.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = ReadLeft(dir, "cvmfs-graphdriver")
	if err == nil || !strings.Contains(err.Error(), "containers/a/config.v2.json") {
		t.Errorf("of a damaged file: %v", err)
	}
}

// All images are tried, and those that can't be had are named.
func TestImagesOfContainersArePulledAnew(t *testing.T) {
	f, p := newHost(t)
	i := p.newInstaller(t)
	var told []string
	i.Tell = func(e Event) { told = append(told, e.Text) }
	left := Left{
		Images:     []string{"gone.example.org/a:1", "there:1"},
		Containers: []LeftContainer{{"web", "there:1", true}},
	}
	i.TellLeft(left)
	f.change(func() { f.fails = "POST /images/create" })
	err := i.Repull(t.Context(), left)
	if err == nil || !strings.Contains(err.Error(), "gone.example.org/a:1, there:1") {
		t.Errorf("%v", err)
	}
	for _, want := range []string{
		"pull what containers were made of: gone.example.org/a:1, there:1",
		"make the container web (running, of there:1) anew",
	} {
		if !strings.Contains(strings.Join(told, "\n"), want) {
			t.Errorf("%q wasn't told: %q", want, told)
		}
	}
}
