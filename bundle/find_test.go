package bundle

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	if _, err := findProgram(dir, "1.2", "arm64"); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v", err)
	}
	// From the last place looked at to the first.
	for _, name := range []string{
		"share/cvmfs-graphdriver/cvmfs-graphdriver-plugin-1.2-arm64.tar.gz",
		"lib/cvmfs-graphdriver/arm64/cvmfs-graphdriver-plugin", "bin/cvmfs-graphdriver-plugin",
		"bin/arm64/cvmfs-graphdriver-plugin", "bin/cvmfs-graphdriver-plugin-arm64",
	} {
		want := place(t, root, name)
		if got, err := findProgram(dir, "1.2", "arm64"); err != nil || got != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}

func TestProgramsAreThoseGivenOrElseThoseThere(t *testing.T) {
	dir, mine := t.TempDir(), runtime.GOARCH
	there := filepath.Join(dir, "cvmfs-graphdriver-plugin")
	if err := os.Symlink(small[mine](t), there); err != nil {
		t.Fatal(err)
	}
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[mine]
	given := []string{small[mine](t)}
	for _, c := range []struct {
		given, archs, want []string
		err                string
	}{
		{nil, nil, []string{there}, ""},
		{nil, []string{mine}, []string{there}, ""},
		{nil, []string{other}, nil, "is for " + mine + ", and " + other + " was asked for"},
		{given, nil, given, ""},
		{given, []string{mine}, given, ""},
		{given, []string{mine, other}, nil, "no program given by --plugin is for " + other},
	} {
		got, err := Programs(c.given, c.archs, dir, "1.2")
		if c.err == "" && (err != nil || !slices.Equal(got, c.want)) {
			t.Errorf("%v for %v: %v, %v", c.given, c.archs, got, err)
		}
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%v for %v: error %v, want %s", c.given, c.archs, err, c.err)
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
	ours, all, err := Archives(dir, "1.2", "amd64")
	if d := cmp.Diff([][]string{{want[0], want[2]}, want}, [][]string{ours, all}); d != "" || err != nil {
		t.Errorf("%v, -want +got\n%s", err, d)
	}
}
