package plugin_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/driver/plugin"
	"cvmfs-graphdriver/driver/store"
)

// layerFolders makes folders with a file each, and the overlay of all.
func layerFolders(t *testing.T, dir string, n int) store.Mount {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	m := store.Mount{Target: dir + "/target", Overlay: &store.Overlay{Upper: dir + "/upper", Work: dir + "/work"}}
	for i := range n {
		lower := fmt.Sprintf("%s/%s-%04d", dir, strings.Repeat("l", 60), i)
		must(t, os.MkdirAll(lower, 0o755))
		must(t, os.WriteFile(fmt.Sprintf("%s/%d", lower, i), []byte("x"), 0o644))
		m.Overlay.Lower = append(m.Overlay.Lower, lower)
	}
	for _, d := range []string{m.Target, m.Overlay.Upper, m.Overlay.Work} {
		must(t, os.MkdirAll(d, 0o755))
	}
	return m
}

func TestClassicMountTakesManyLayers(t *testing.T) {
	for name, n := range map[string]int{"a line": 3, "descriptors": 130} {
		t.Run(name, func(t *testing.T) {
			mounter := plugin.Mounter{Classic: true}
			m := layerFolders(t, t.TempDir(), n)
			must(t, mounter.Mount(m))
			defer func() { must(t, mounter.Unmount(m.Target)) }()
			entries, err := os.ReadDir(m.Target)
			if err != nil || len(entries) != n {
				t.Errorf("%d files of %d, %v", len(entries), n, err)
			}
			must(t, os.WriteFile(m.Target+"/new", nil, 0o644))
			if _, err := os.Stat(m.Overlay.Upper + "/new"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestClassicMountTakesAnyPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), `a:b,c\d::e"f`)
	must(t, os.Mkdir(dir, 0o755))
	mounter := plugin.Mounter{Classic: true}
	m := layerFolders(t, dir, 2)
	must(t, mounter.Mount(m))
	defer func() { must(t, mounter.Unmount(m.Target)) }()
	if entries, err := os.ReadDir(m.Target); err != nil || len(entries) != 2 {
		t.Errorf("%d files, %v", len(entries), err)
	}
}

func TestClassicMountRefusesTooManyLayers(t *testing.T) {
	mounter := plugin.Mounter{Classic: true}
	m := layerFolders(t, t.TempDir(), 300)
	err := mounter.Mount(m)
	if err == nil || !strings.Contains(err.Error(), "300 layers are more than this kernel takes") {
		t.Error(err)
	}
	if mounted, err := mounter.Mounted(m.Target); mounted || err != nil {
		t.Errorf("mounted %t, %v", mounted, err)
	}
	m.Overlay.Lower = []string{m.Overlay.Lower[0], "/missing:"}
	if err := mounter.Mount(m); err == nil || !strings.Contains(err.Error(), "/missing:") {
		t.Error(err)
	}
}
