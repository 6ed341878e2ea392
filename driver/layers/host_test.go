package layers

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cvmfs-graphdriver/internal/overlayfs"
)

// fakeMounter stands for kernels that aren't at hand.
type fakeMounter struct {
	err       error
	noOverlay bool // on any file system
}

func (m fakeMounter) Mount(Mount) error          { return m.err }
func (fakeMounter) Mounted(string) (bool, error) { return false, nil }
func (fakeMounter) Unmount(string) error         { return nil }
func (m fakeMounter) Probe(string) (overlayfs.Support, error) {
	if m.noOverlay {
		return overlayfs.Support{Overlay: overlayfs.Tried(m.err)}, nil
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
			s, err := Open(Config{Root: dir + "/m", Run: dir + "/r", Mounter: fakeMounter{c.mount, c.noOverlay}})
			if err != nil {
				t.Fatal(err)
			}
			s.host = host{fileSystems: filepath.Join(dir, "filesystems"), typed: c.typed}
			if err := os.WriteFile(s.host.fileSystems, []byte(c.fileSystems), 0o600); err != nil {
				t.Fatal(err)
			}
			err = s.Init(InitArgs{})
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
			// the device of the file system
			for left, want := range map[string]int{s.path("state"): 1, s.run("views"): 0} {
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
