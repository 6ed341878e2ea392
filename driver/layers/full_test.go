package layers_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/layers"
)

func TestALayerCanBeRemovedFromAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "nr_inodes=64"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	r := newRigIn(t, dir)
	must(t, r.Create(layers.CreateArgs{ID: "1", Writable: true}))
	for i, full := 0, false; !full; i++ {
		err := os.WriteFile(filepath.Join(r.diff("1"), strconv.Itoa(i)), nil, 0o600)
		if full = errors.Is(err, unix.ENOSPC); !full {
			must(t, err)
		}
	}
	must(t, r.remove("1"))
	if r.Exists("1") {
		t.Error("it is there")
	}
}
