package graphdriver_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/internal/overlayfs"
)

func TestAMountThatFailsLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	var m graphdriver.Mounter
	zeros := filepath.Join(dir, "zeros")
	must(t, os.WriteFile(zeros, make([]byte, 1<<16), 0o600))
	for name, spec := range map[string]layers.Mount{
		"missing layer": {Target: dir, Overlay: &overlayfs.Spec{Lower: []string{dir, dir + "/missing"}}},
		"no image":      {Target: dir, Image: &layers.ImageMount{Source: zeros, Target: dir + "/image"}},
	} {
		if err := m.Mount(spec); err == nil {
			t.Errorf("%s: mounted", name)
		}
		if mounted, err := m.Mounted(dir); mounted || err != nil {
			t.Errorf("%s: mounted %v, %v", name, mounted, err)
		}
	}
}

func TestUnmountTakesOffEverything(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	var m graphdriver.Mounter
	for range 3 {
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	}
	busy, err := os.Create(filepath.Join(dir, "busy"))
	must(t, err)
	defer busy.Close()
	must(t, m.Unmount(dir))
	if mounted, err := m.Mounted(dir); mounted || err != nil {
		t.Errorf("mounted %v, %v", mounted, err)
	}
	must(t, m.Unmount(dir))
	must(t, m.Unmount(filepath.Join(dir, "missing")))
}
