// Package fusetest builds what tests of FUSE trees put on top of them: overlay mounts whose files' content comes from data-only
// layers, as container root file systems have them.
package fusetest

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
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

// Hole makes the file name without content but of the given size, whose content an overlay takes from redirect, a path from the
// root of its data-only layers.
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
	for attr, value := range map[string]string{"trusted.overlay.metacopy": "", "trusted.overlay.redirect": redirect} {
		if err := unix.Lsetxattr(name, attr, []byte(value), 0); err != nil {
			t.Skipf("needs trusted extended attributes in %s: an overlay's metadata (%v)", filepath.Dir(name), err)
		}
	}
}

// Overlay mounts the layer lower, made of Holes, over data-only layers, read-only, until the test ends.
func Overlay(t testing.TB, lower string, data ...string) (dir string) {
	t.Helper()
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("needs overlayfs and the new mount API: Linux 5.2 (%v)", err)
	}
	defer unix.Close(fs)
	set := func(key, value string) {
		t.Helper()
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			t.Skipf("needs data-only layers in overlayfs: Linux 6.8 for %s=%s (%v)", key, value, err)
		}
	}
	set("lowerdir+", lower)
	for _, d := range data {
		set("datadir+", d)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatalf("make an overlay: %v", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("mount an overlay: %v", err)
	}
	defer unix.Close(mnt)
	dir = t.TempDir()
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatalf("mount an overlay: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}
