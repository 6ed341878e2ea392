package plugin_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/plugin"
	"cvmfs-graphdriver/driver/store"
)

func TestMountErrorsSayWhatTheKernelSays(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	var m plugin.Mounter
	lower := filepath.Join(dir, "lower")
	must(t, os.Mkdir(lower, 0o755))
	zeros := filepath.Join(dir, "zeros")
	must(t, os.WriteFile(zeros, make([]byte, 1<<16), 0o600))
	for _, c := range []struct {
		name string
		spec store.Mount
		want []string
	}{
		{"missing layer", store.Mount{Target: dir, Overlay: &store.Overlay{Lower: []string{lower, dir + "/missing"}}}, []string{dir + "/missing", "no such file"}},
		{"one layer", store.Mount{Target: dir, Overlay: &store.Overlay{Lower: []string{lower}}}, []string{"invalid argument"}},
		{"long path", store.Mount{Target: dir, Overlay: &store.Overlay{Lower: []string{"/" + strings.Repeat("x", 255)}}}, []string{"256 bytes, the kernel takes 255"}},
		{"no image", store.Mount{Target: dir, Image: &store.ImageMount{Source: zeros, Target: dir + "/image"}}, []string{"mount erofs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := m.Mount(c.spec)
			if err == nil {
				t.Fatal("mounted")
			}
			t.Log(err)
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v: want %q", err, w)
				}
			}
			if mounted, err := m.Mounted(dir); mounted || err != nil {
				t.Errorf("mounted %v, %v", mounted, err)
			}
		})
	}
}

func TestUnmountTakesOffEverything(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	var m plugin.Mounter
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

// A folder renamed or a file's mode changed in a container must leave whole content in the upper folder: layers are exported from it.
func TestUpperFolderIsComplete(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	for _, d := range []string{"l/d", "u", "w", "t"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "l/f"), []byte("content"), 0o644))
	var m plugin.Mounter
	target := filepath.Join(dir, "t")
	must(t, m.Mount(store.Mount{Target: target, Overlay: &store.Overlay{Lower: []string{dir + "/l"}, Upper: dir + "/u", Work: dir + "/w"}}))
	defer func() { must(t, m.Unmount(target)) }()
	must(t, os.Chmod(filepath.Join(target, "f"), 0o600))
	if b, err := os.ReadFile(filepath.Join(dir, "u/f")); err != nil || string(b) != "content" {
		t.Errorf("upper file: %q, %v", b, err)
	}
	if err := os.Rename(filepath.Join(target, "d"), filepath.Join(target, "e")); err == nil {
		t.Error("a lower folder was renamed without copying")
	}
}
