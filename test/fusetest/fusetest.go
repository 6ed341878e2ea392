// Package fusetest builds what tests of FUSE trees put on top of them: overlay mounts whose files' content comes from
// data-only layers, as container root file systems have them.
package fusetest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/test/testutil"
)

// Require skips the test where FUSE can't be mounted.
func Require(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil || os.Getuid() != 0 {
		t.Skipf("needs root and /dev/fuse: to mount a FUSE file system (%v)", err)
	}
	f.Close()
}

// Hole makes the file name without content but of the given size, whose content an overlay takes from redirect, a path
// from the root of its data-only layers.
func Hole(t testing.TB, name string, size int64, redirect string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	for attr, value := range map[string]string{overlayfs.XattrMetacopy: "", overlayfs.XattrRedirect: redirect} {
		if err := unix.Lsetxattr(name, attr, []byte(value), 0); err != nil {
			t.Skipf("needs trusted extended attributes in %s: an overlay's metadata (%v)", filepath.Dir(name), err)
		}
	}
}

// Overlay mounts the layer lower, made of Holes, over data-only layers, read-only, until the test ends. It skips the
// test on kernels that have none.
func Overlay(t testing.TB, lower string, data ...string) (dir string) {
	t.Helper()
	dir, ok := TryOverlay(t, lower, data...)
	if !ok {
		testutil.KernelLacks(t, "data-only layers") // Linux 6.5
	}
	return dir
}

// TryOverlay is [Overlay] for tests that go on without one.
func TryOverlay(t testing.TB, lower string, data ...string) (dir string, ok bool) {
	t.Helper()
	dir = t.TempDir()
	err := (&overlayfs.Kernel{}).Mount(dir, &overlayfs.Spec{Lower: []string{lower}, Data: data, Metacopy: true})
	if errors.Is(err, overlayfs.ErrData) {
		return "", false
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir, true
}

// NeedMappedOwners skips the test where single mounts can't have mapped owners.
func NeedMappedOwners(t testing.TB) {
	t.Helper()
	testutil.NeedRoot(t)
	if err := (&overlayfs.Kernel{}).ProbeMapped(t.TempDir(), false); err != nil {
		t.Log(err)
		testutil.KernelLacks(t, "mapped owners")
	}
}
