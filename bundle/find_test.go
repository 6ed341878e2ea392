package bundle_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/bundle"
)

// place makes an empty file below a folder.
func place(t *testing.T, root, name string) string {
	t.Helper()
	name = filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestThePluginsProgramIsFoundWhereItIsBuiltAndInstalled(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "bin")
	if _, err := bundle.FindProgram(dir, "1.2", "arm64"); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v", err)
	}
	// From the last place looked at to the first.
	for _, name := range []string{
		"share/cvmfs-graphdriver/cvmfs-graphdriver-plugin-1.2-arm64.tar.gz",
		"lib/cvmfs-graphdriver/arm64/cvmfs-graphdriver-plugin", "bin/cvmfs-graphdriver-plugin",
		"bin/arm64/cvmfs-graphdriver-plugin", "bin/cvmfs-graphdriver-plugin-arm64",
	} {
		want := place(t, root, name)
		if got, err := bundle.FindProgram(dir, "1.2", "arm64"); err != nil || got != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}

func TestArchivesAreFoundByVersionAndArchitecture(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b]*") // no pattern
	var want []string
	for _, name := range []string{"1.2-amd64.tar.gz", "1.20-amd64.tar.gz", "1.2-amd64.tar.zst"} {
		want = append(want, place(t, dir, "cvmfs-graphdriver-plugin-"+name))
	}
	for _, name := range []string{"1.2-arm64.tar.gz", "1.2-amd64.spdx.json"} {
		place(t, dir, "cvmfs-graphdriver-plugin-"+name)
	}
	ours, all, err := bundle.Archives(dir, "1.2", "amd64")
	if d := cmp.Diff([][]string{{want[0], want[2]}, want}, [][]string{ours, all}); d != "" || err != nil {
		t.Errorf("%v, -want +got\n%s", err, d)
	}
}
