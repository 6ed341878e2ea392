package layers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/hostfs"
	"cvmfs-graphdriver/internal/overlayfs"
)

// host is what tells about the machine.
type host struct {
	fileSystems string                         // file that lists what the kernel can mount
	typed       func(dir string) (bool, error) // whether a folder lists what is in it with types
}

// thisHost is the machine we run on.
func thisHost() host { return host{fileSystems: "/proc/filesystems", typed: hostfs.Typed} }

// checkHost tries whether layers can be kept and mounted here. An error says what to do about it.
func (s *Store) checkHost() error {
	dir, err := os.MkdirTemp(s.path("state"), ".probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what stays is removed by the next Open
	for _, name := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	switch ok, err := s.host.typed(dir); {
	case err != nil:
		return err
	case !ok:
		return untyped(fileSystem(s.cfg.Root))
	}
	if err := s.tryOverlay(dir); err != nil {
		return s.explain(err)
	}
	return nil
}

// tryOverlay mounts an overlay and deletes a file of its lower layer, which takes most of what overlayfs wants of a
// file system.
func (s *Store) tryOverlay(dir string) error {
	const name = "file"
	if err := os.WriteFile(filepath.Join(dir, "lower", name), nil, 0o600); err != nil {
		return err
	}
	target, err := os.MkdirTemp(s.run("views"), "probe-")
	if err != nil {
		return err
	}
	err = s.cfg.Mounter.Mount(Mount{Target: target, Overlay: &overlayfs.Spec{
		Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"),
		Work: filepath.Join(dir, "work"),
	}})
	if err == nil {
		err = os.Remove(filepath.Join(target, name))
	}
	if err = errors.Join(err, s.unmount(target)); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "upper", name), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return fmt.Errorf("a deleted file left no whiteout: mode %o, %v", st.Mode, err)
	}
	return nil
}

// untyped says what to do about a file system whose folders don't tell types. Overlayfs then shows whiteouts as files.
func untyped(kind string) error {
	remedy := "move the engine's data-root to ext4, or to xfs made with ftype=1"
	switch kind {
	case "xfs":
		remedy = "it was made with ftype=0 (xfs_info shows it): make it anew with \"mkfs.xfs -n ftype=1\", or move the engine's data-root"
	case "extfs":
		remedy = "unmount it and run \"tune2fs -O filetype\" and \"e2fsck -f\", or move the engine's data-root"
	}
	return fmt.Errorf("the file system of the engine's data-root, %s, lists names without their types (d_type), which overlayfs needs: %s", kind, remedy)
}

// explain says what to do about an overlay that can't be mounted or used.
func (s *Store) explain(err error) error {
	kind := fileSystem(s.cfg.Root)
	has := map[string]bool{}
	if b, err := os.ReadFile(s.host.fileSystems); err == nil { // without the list there is less to say
		for line := range strings.Lines(string(b)) {
			has[strings.TrimSpace(strings.TrimPrefix(line, "nodev"))] = true
		}
	}
	switch {
	case has["aufs"] && !has["overlay"]:
		return fmt.Errorf("this kernel has aufs and no overlayfs, and the driver takes no aufs, which Linux distributions have left: "+
			"run a kernel with CONFIG_OVERLAY_FS, 4.18 or later: %w", err)
	case len(has) > 0 && !has["overlay"]:
		return fmt.Errorf("this kernel has no overlayfs: run \"modprobe overlay\", or a kernel with CONFIG_OVERLAY_FS, 4.18 or later: %w", err)
	}
	if support, probe := s.cfg.Mounter.Probe(s.path("state")); probe == nil && !support.Overlay.Works() {
		return fmt.Errorf("this kernel mounts no overlays, on whatever file system: run one with CONFIG_OVERLAY_FS, 4.18 or later: %w", err)
	}
	if kind == "overlayfs" {
		return fmt.Errorf("the engine's data-root lies on an overlay itself, as in a container, and the kernel takes no upper folder there: "+
			"put the data-root on ext4 or xfs, for an engine in a container on a volume: %w", err)
	}
	return fmt.Errorf("overlayfs doesn't work on %s, the file system of the engine's data-root: move it to ext4, or to xfs made with ftype=1: %w", kind, err)
}
