package record

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestFoldersOfKilledProcessesAreRemoved(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	old := time.Now().Add(-time.Hour)
	lay := func(name string, at time.Time) {
		dir := filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(dir, at, at); err != nil {
			t.Fatal(err)
		}
	}
	held, removeHeld, err := scratch(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(held, old, old); err != nil {
		t.Fatal(err)
	}
	lay("cvmfs-record-left", old)
	lay("cvmfs-record-young", time.Now())
	lay("other", old)
	if err := os.Symlink(filepath.Join(base, "other"), filepath.Join(base, "cvmfs-record-link")); err != nil {
		t.Fatal(err)
	}
	dir, remove, err := scratch(base)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Base(held), filepath.Base(dir), "cvmfs-record-young", "other", "cvmfs-record-link"}
	slices.Sort(want)
	if got := names(t, base); !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
	for _, remove := range []func() error{remove, removeHeld} {
		if err := remove(); err != nil {
			t.Error(err)
		}
	}
	if got := names(t, base); len(got) != 3 || len(names(t, filepath.Join(base, "other"))) != 1 {
		t.Errorf("there are %q", got)
	}
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
