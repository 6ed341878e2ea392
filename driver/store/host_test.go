package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeMounter stands for kernels that aren't at hand.
type fakeMounter struct{ err error }

func (m fakeMounter) Mount(Mount) error          { return m.err }
func (fakeMounter) Mounted(string) (bool, error) { return false, nil }
func (fakeMounter) Unmount(string) error         { return nil }

func TestHostThatCannotKeepLayersIsRefusedWithTheRemedy(t *testing.T) {
	yes := func(string) (bool, error) { return true, nil }
	no := func(string) (bool, error) { return false, nil }
	for _, c := range []struct {
		name        string
		typed       func(string) (bool, error)
		mount       error
		fileSystems string
		want        []string
	}{
		{"no types of names", no, nil, "nodev\toverlay\n", []string{"d_type", "data-root"}},
		{"no overlayfs", yes, syscall.ENODEV, "nodev\tproc\n\text4\n", []string{"no overlayfs", "modprobe overlay", "CONFIG_OVERLAY_FS"}},
		{"aufs alone", yes, syscall.ENODEV, "nodev\taufs\n\text4\n", []string{"aufs", "CONFIG_OVERLAY_FS, 4.18 or later"}},
		{"aufs beside a broken overlayfs", yes, syscall.EINVAL, "nodev\taufs\nnodev\toverlay\n", []string{"overlayfs doesn't work on", "data-root", "invalid argument"}},
		{"no list of file systems", yes, syscall.EPERM, "", []string{"overlayfs doesn't work on", "operation not permitted"}},
		{"deleting has no effect", yes, nil, "nodev\toverlay\n", []string{"overlayfs doesn't work on"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := Open(Config{Root: dir + "/m", Run: dir + "/r", Mounter: fakeMounter{c.mount}})
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
			for _, left := range []string{s.path("state"), s.run("views")} {
				names, err := os.ReadDir(left)
				for _, n := range names {
					if n.Name() != "open" {
						t.Errorf("left in %s: %s, %v", left, n.Name(), err)
					}
				}
			}
		})
	}
}

func TestRemedyForNamesWithoutTypesIsTheFileSystems(t *testing.T) {
	for kind, want := range map[string]string{"xfs": "mkfs.xfs -n ftype=1", "extfs": "tune2fs -O filetype", "0x6969": "ext4, or to xfs made with ftype=1"} {
		if err := untyped(kind).Error(); !strings.Contains(err, want) || !strings.Contains(err, kind) {
			t.Errorf("%s: %s", kind, err)
		}
	}
}

func TestTypesOfNamesAreSeen(t *testing.T) {
	entry := func(kind byte, name string) []byte {
		b := make([]byte, 16, 24)
		n := (19 + len(name) + 1 + 7) &^ 7
		b = append(b, byte(n), 0, kind)
		b = append(b, name...)
		return append(b, make([]byte, n-len(b))...)
	}
	known := append(entry(unix.DT_DIR, "."), entry(unix.DT_REG, "file")...)
	for _, c := range []struct {
		name string
		list []byte
		want bool
	}{
		{"all", known, true},
		{"not the last", append(known, entry(unix.DT_UNKNOWN, "x")...), false},
		{"none", entry(unix.DT_UNKNOWN, "."), false},
		{"torn", known[:len(known)-9], true},
		{"length of nothing", make([]byte, 18), true},
	} {
		if got := typesKnown(c.list); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
	if ok, err := typed(t.TempDir()); !ok || err != nil {
		t.Errorf("here: %t, %v", ok, err)
	}
	if _, err := typed("/nowhere"); err == nil {
		t.Error("a missing folder was read")
	}
}
