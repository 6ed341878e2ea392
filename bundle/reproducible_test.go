package bundle

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/testutil"
)

// Limits of the size of what is shipped, in bytes: who comes near one looks at what a dependency costs
// (docs/bundle.md).
const (
	mostPacked   = 9 << 20
	mostUnpacked = 22 << 20
)

// The real programs for both architectures, built and bundled in two folders: the same bytes, and no more of them than
// may be.
func TestTheSourceGivesTheSameBundlesInAnyFolder(t *testing.T) {
	if testing.Short() {
		t.Skip("builds all programs anew, twice")
	}
	var sums [2]string
	for i, folder := range []string{"first", "a/second"} {
		tree := filepath.Join(t.TempDir(), folder)
		copySource(t, tree)
		sums[i] = makeBundles(t, tree)
	}
	if diff := cmp.Diff(sums[0], sums[1]); diff != "" {
		t.Errorf("the bundles differ: %s", diff)
	}
}

// copySource copies the source tree, without what git and builds have in it.
func copySource(t *testing.T, to string) {
	t.Helper()
	from := testutil.Root(t)
	if err := filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, name)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || relative == "dist" || relative == "testdata"):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, relative), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, relative), text, 0o644)
	}); err != nil {
		t.Fatal(err)
	}
}

// makeBundles builds all there is to ship of a source tree, checks its sizes, and gives SHA256SUMS.
func makeBundles(t *testing.T, tree string) string {
	t.Helper()
	for _, argv := range [][]string{
		{"make", "--silent", "--directory", tree, "build", "VERSION=1.2.3", "COMMIT=c0ffee", "DIST=out"},
		{
			tree + "/out/bin/cvmfs-graphdriver", "bundle", "build", "--arch", "amd64,arm64", "--format",
			"dir,tar.gz,tar.zst", "--output", tree + "/out",
		},
	} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1600000000")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
		}
	}
	archives, err := filepath.Glob(filepath.Join(tree, "out", "*.tar.*"))
	if err != nil || len(archives) != 4 {
		t.Fatalf("got %q, %v", archives, err)
	}
	for _, archive := range archives {
		v, err := Verify(archive, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes, unpacked %d", filepath.Base(archive), v.Archive.Size, v.Unpacked())
		if v.Bundle.Archive.Size > mostPacked || v.Unpacked() > mostUnpacked {
			t.Errorf("%s: %d bytes, unpacked %d; at most %d and %d are wanted", filepath.Base(archive), v.Archive.Size,
				v.Unpacked(), mostPacked, mostUnpacked)
		}
		p, err := parseProgram(v.Program())
		if err != nil || p.Stamp == nil || p.Stamp.Version != "1.2.3" || p.Stamp.Commit != "c0ffee" {
			t.Errorf("%s: stamp %v, %v", filepath.Base(archive), p.Stamp, err)
		}
	}
	text, err := os.ReadFile(filepath.Join(tree, "out", SumsName))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
