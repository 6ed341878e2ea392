//go:build guest

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"

	"cvmfs-graphdriver/test/testutil"
)

// containerd's client adds a container's label to the mounts that the snapshotter gives. All files of the container
// have it then, whatever shows them, and no other container's.
func TestFilesOfSnapshotsHaveTheLabelOfTheirContainer(t *testing.T) {
	testutil.LoadPolicy(t)
	for _, view := range []string{"auto", "fuse"} {
		t.Run(view, func(t *testing.T) { testLabels(t, rung{view: view}) })
	}
}

func testLabels(t *testing.T, r rung) {
	d := start(t, r)
	d.unpackThin("thin", "")
	d.unpack("ordinary", "", layer(t, file{Name: "f", Body: "f"}))
	for key, c := range map[string]struct{ image, file, label string }{
		"ordinary-1": {"ordinary", "f", "system_u:object_r:container_file_t:s0:c1,c2"},
		"ordinary-2": {"ordinary", "f", "system_u:object_r:container_file_t:s0:c17,c942"},
		"thin-1":     {"thin", "data/a.txt", "system_u:object_r:container_file_t:s0:c3,c4"},
		"thin-2":     {"thin", "data/a.txt", "system_u:object_r:container_file_t:s0:c5,c1023"},
	} {
		dir := d.mount(labelled(t, d, key, c.image, c.label))
		must(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644))
		for _, name := range []string{c.file, "new"} {
			if got := testutil.SELinuxLabel(t, filepath.Join(dir, name)); got != c.label {
				t.Errorf("%s: %s has the label %q, want %q", key, name, got, c.label)
			}
		}
		if _, err := os.ReadFile(filepath.Join(dir, c.file)); err != nil {
			t.Error(err)
		}
	}
}

// labelled prepares a snapshot and labels its mounts as containerd's client does (client/container.go, NewTask).
func labelled(t *testing.T, d *daemon, key, parent, label string) ([]mount.Mount, error) {
	t.Helper()
	mounts, err := d.Prepare(t.Context(), key, parent)
	for i := range mounts {
		mounts[i].Options = append(mounts[i].Options, `context="`+label+`"`)
	}
	return mounts, err
}
