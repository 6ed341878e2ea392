package snapshotter_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/internal/overlayfs"
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
		"record": func(folder string) error {
			return unix.Setxattr(folder, "trusted.cvmfs-graphdriver.layer", []byte("{"), 0)
		},
		"record and note": func(folder string) error {
			return errors.Join(unix.Setxattr(folder, "trusted.cvmfs-graphdriver.layer", []byte("{"), 0),
				os.WriteFile(filepath.Join(folder, "note"), []byte("{"), 0o600))
		},
		"note unreadable": func(folder string) error {
			return errors.Join(os.Remove(filepath.Join(folder, "note")), os.Mkdir(filepath.Join(folder, "note"), 0o700))
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

// What couldn't be removed of a snapshot that couldn't be made has its name until it is.
func TestASnapshotThatCouldNotBeMadeIsNoSecondOne(t *testing.T) {
	r, ctx := newRig(t, node.Settings{}), t.Context()
	r.commit("base", "", "f")
	r.cfg.Kernel = &overlayfs.Kernel{Lack: overlayfs.NoMapped}
	r.reopen()
	next, err := os.ReadFile(r.node.Path("state", "next-layer"))
	must(t, err)
	id := strings.TrimSpace(string(next))
	stuck := filepath.Join(r.node.Path("layers"), ".dead-"+id, "mounted")
	must(t, os.MkdirAll(stuck, 0o700))
	must(t, unix.Mount("tmpfs", stuck, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { unix.Unmount(stuck, unix.MNT_DETACH) }) // it isn't mounted where all went well
	ids := mapped("0:200000:65536", "0:200000:65536")
	if _, err := r.Prepare(ctx, "key", "base", ids); !errdefs.IsNotImplemented(err) {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.node.Layers().Folder(id)); err != nil {
		t.Fatal("the layer could be removed: ", err)
	}
	if _, err := r.Prepare(ctx, "key", "base"); err == nil {
		t.Error("there are two layers of one name")
	}
	if err := r.Remove(ctx, "base"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove of what it stands on: %v", err)
	}
	must(t, unix.Unmount(stuck, 0))
	_, err = r.Prepare(ctx, "key", "base")
	must(t, err)
	r.reopen()
	if got := r.walk(); got != "base key" {
		t.Errorf("there are %s", got)
	}
	if _, err := os.Stat(r.node.Layers().Folder(id)); err == nil {
		t.Error("the first attempt is still there")
	}
}
