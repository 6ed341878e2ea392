package overlayfs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

func TestMountThatFailsLeavesNothing(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	var k Kernel
	zeros := filepath.Join(dir, "zeros")
	must(t, os.WriteFile(zeros, make([]byte, 1<<16), 0o600))
	for name, err := range map[string]error{
		"missing layer": k.Mount(dir, &Spec{Lower: []string{dir, dir + "/missing"}}),
		"no image":      k.MountImage(zeros, dir),
	} {
		if err == nil {
			t.Errorf("%s: mounted", name)
		}
		if mounted, err := k.Mounted(dir); mounted || err != nil {
			t.Errorf("%s: mounted %v, %v", name, mounted, err)
		}
	}
}

func TestUnmountTakesOffEverything(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	var k Kernel
	for range 3 {
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	}
	busy, err := os.Create(filepath.Join(dir, "busy"))
	must(t, err)
	defer busy.Close()
	must(t, k.Unmount(dir))
	if mounted, err := k.Mounted(dir); mounted || err != nil {
		t.Errorf("mounted %v, %v", mounted, err)
	}
	must(t, k.Unmount(dir))
	must(t, k.Unmount(filepath.Join(dir, "missing")))
}
