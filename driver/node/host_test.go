package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/internal/overlayfs"
)

// fakeKernel stands for kernels that aren't at hand.
type fakeKernel struct {
	err       error
	noOverlay bool // on any file system
}

func (k fakeKernel) Mount(string, *overlayfs.Spec) error { return k.err }
func (k fakeKernel) MountImage(string, string) error     { return k.err }
func (fakeKernel) Mounted(string) (bool, error)          { return false, nil }
func (fakeKernel) Unmount(string) error                  { return nil }
func (k fakeKernel) ProbeMapped(string, bool) error      { return k.err }
func (k fakeKernel) MountMapped(string, string, user.IdentityMapping) error {
	return k.err
}

func (k fakeKernel) Probe(string) (overlayfs.Support, error) {
	if k.noOverlay {
		return overlayfs.Support{Overlay: overlayfs.Tried(k.err)}, nil
	}
	return overlayfs.Support{Overlay: overlayfs.Tried(nil)}, nil
}

func TestHostThatCannotKeepLayersIsRefusedWithTheRemedy(t *testing.T) {
	yes := func(string) (bool, error) { return true, nil }
	no := func(string) (bool, error) { return false, nil }
	for _, c := range []struct {
		name        string
		typed       func(string) (bool, error)
		mount       error
		fileSystems string
		noOverlay   bool
		want        []string
	}{
		{"no types of names", no, nil, "nodev\toverlay\n", false, []string{"d_type", "data-root"}},
		{
			"no overlayfs", yes, syscall.ENODEV, "nodev\tproc\n\text4\n", false,
			[]string{"no overlayfs", "modprobe overlay", "CONFIG_OVERLAY_FS"},
		},
		{
			"no overlay anywhere", yes, syscall.EINVAL, "nodev\toverlay\n", true,
			[]string{"this kernel mounts no overlays", "invalid argument"},
		},
		{
			"aufs alone", yes, syscall.ENODEV, "nodev\taufs\n\text4\n", false,
			[]string{"aufs", "CONFIG_OVERLAY_FS, 4.18 or later"},
		},
		{
			"aufs beside a broken overlayfs", yes, syscall.EINVAL, "nodev\taufs\nnodev\toverlay\n", false,
			[]string{"overlayfs doesn't work on", "data-root", "invalid argument"},
		},
		{
			"no list of file systems", yes, syscall.EPERM, "", false,
			[]string{"overlayfs doesn't work on", "operation not permitted"},
		},
		{"deleting has no effect", yes, nil, "nodev\toverlay\n", false, []string{"overlayfs doesn't work on"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			n, err := Open(Config{Root: dir + "/m", Run: dir + "/r", Kernel: fakeKernel{c.mount, c.noOverlay}})
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			n.machine = machine{fileSystems: filepath.Join(dir, "filesystems"), typed: c.typed}
			if err := os.WriteFile(n.machine.fileSystems, []byte(c.fileSystems), 0o600); err != nil {
				t.Fatal(err)
			}
			err = n.CheckHost()
			if err == nil {
				t.Fatal("taken")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v: want %q", err, w)
				}
			}
			if c.mount != nil && !errors.Is(err, c.mount) {
				t.Errorf("%v: the kernel's reason is lost", err)
			}
			// what the object store keeps, and the device of the file system, which root alone can make
			kept := 2
			if os.Getuid() != 0 {
				kept = 1
			}
			for left, want := range map[string]int{n.Path("state"): kept, n.run("views"): 0} {
				names, err := os.ReadDir(left)
				if len(names) != want || err != nil {
					t.Errorf("left in %s: %s, %v", left, names, err)
				}
			}
		})
	}
}

func TestRemedyForNamesWithoutTypesIsTheFileSystems(t *testing.T) {
	for kind, want := range map[string]string{
		"xfs": "mkfs.xfs -n ftype=1", "extfs": "tune2fs -O filetype",
		"0x6969": "ext4, or to xfs made with ftype=1",
	} {
		if err := untyped(kind).Error(); !strings.Contains(err, want) || !strings.Contains(err, kind) {
			t.Errorf("%s: %s", kind, err)
		}
	}
}
