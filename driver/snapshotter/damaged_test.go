package snapshotter_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"cvmfs-graphdriver/driver/node"
)

// A snapshot that can't be made out is kept from the others, not they from containerd.
func TestADamagedSnapshotStopsNoOther(t *testing.T) {
	for name, damage := range map[string]func(folder string) error{
		"note": func(folder string) error {
			return os.WriteFile(filepath.Join(folder, "note"), []byte("{"), 0o600)
		},
		"nameless": func(folder string) error {
			return os.WriteFile(filepath.Join(folder, "note"), []byte("{}"), 0o600)
		},
		"parent gone": func(folder string) error {
			return os.RemoveAll(filepath.Join(filepath.Dir(folder), "1"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, ctx := newRig(t, node.Settings{}), t.Context()
			_, err := r.Prepare(ctx, "below", "")
			must(t, err)
			must(t, r.Commit(ctx, "base", "below"))
			_, err = r.Prepare(ctx, "damaged", "base")
			must(t, err)
			_, err = r.Prepare(ctx, "other", "")
			must(t, err)
			folder := r.node.Layers().Folder("2")
			must(t, damage(folder))
			r.reopen()
			if _, err := r.Stat(ctx, "damaged"); !errdefs.IsNotFound(err) {
				t.Errorf("stat of the damaged one: %v", err)
			}
			if _, err := r.Mounts(ctx, "other"); err != nil {
				t.Error(err)
			}
			if name != "parent gone" {
				if err := r.Remove(ctx, "base"); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("remove of what the damaged one stands on: %v", err)
				}
			}
			if _, err := os.Stat(folder); err != nil {
				t.Errorf("the damaged one's files: %v", err)
			}
		})
	}
}
