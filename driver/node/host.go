package node

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

// machine is what tells about the machine.
type machine struct {
	fileSystems string                         // file that lists what the kernel can mount
	typed       func(dir string) (bool, error) // whether a folder lists what is in it with types
}

// thisMachine is the one we run on.
func thisMachine() machine { return machine{fileSystems: "/proc/filesystems", typed: hostfs.Typed} }

// CheckHost tries whether layers can be kept and mounted here. An error says what to do about it. On a full disk
// nothing can be tried: what is there is served.
func (n *Node) CheckHost() error {
	if n.full() {
		n.cfg.Log.Warn("the disk is full: what is there can be used, and nothing comes to it", "folder", n.cfg.Root)
		return nil
	}
	dir, err := os.MkdirTemp(n.Path("state"), ".probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what stays is removed by the next Open
	for _, name := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	switch ok, err := n.machine.typed(dir); {
	case err != nil:
		return err
	case !ok:
		return untyped(hostfs.Name(n.cfg.Root))
	}
	if err := n.tryOverlay(dir); err != nil {
		return n.explain(err)
	}
	return nil
}

// full reports whether there is no room for what a try takes.
func (n *Node) full() bool {
	const takes = 256 << 10
	var st unix.Statfs_t
	return unix.Statfs(n.cfg.Root, &st) == nil && int64(st.Bavail)*st.Bsize < takes
}

// tryOverlay mounts an overlay and deletes a file of its lower layer, which takes most of what overlayfs wants of a
// file system.
func (n *Node) tryOverlay(dir string) error {
	const name = "file"
	if err := os.WriteFile(filepath.Join(dir, "lower", name), nil, 0o600); err != nil {
		return err
	}
	target, err := os.MkdirTemp(n.run("views"), "probe-")
	if err != nil {
		return err
	}
	err = n.cfg.Kernel.Mount(target, &overlayfs.Spec{
		Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"),
		Work: filepath.Join(dir, "work"),
	})
	if err == nil {
		err = os.Remove(filepath.Join(target, name))
	}
	if err = errors.Join(err, n.unmount(target)); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "upper", name), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return fmt.Errorf("a deleted file left no whiteout: mode %o, %w", st.Mode, err)
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
func (n *Node) explain(err error) error {
	kind := hostfs.Name(n.cfg.Root)
	has := map[string]bool{}
	if b, err := os.ReadFile(n.machine.fileSystems); err == nil { // without the list there is less to say
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
	if support, probe := n.cfg.Kernel.Probe(n.Path("state")); probe == nil && !support.Overlay.Works() {
		return fmt.Errorf("this kernel mounts no overlays, on whatever file system: run one with CONFIG_OVERLAY_FS, 4.18 or later: %w", err)
	}
	if kind == "overlayfs" {
		return fmt.Errorf("the engine's data-root lies on an overlay itself, as in a container, and the kernel takes no upper folder there: "+
			"put the data-root on ext4 or xfs, for an engine in a container on a volume: %w", err)
	}
	return fmt.Errorf("overlayfs doesn't work on %s, the file system of the engine's data-root: move it to ext4, or to xfs made with ftype=1: %w", kind, err)
}
