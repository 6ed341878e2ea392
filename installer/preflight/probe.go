package preflight

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/hostfs"
	"cvmfs-graphdriver/internal/overlayfs"
)

// try finds out by tiny mounts what the kernel can do, as the driver does, with composed images in the folder dir.
func try(dir string) Kernel {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Kernel{Err: err.Error()}
	}
	known := Kernel{Release: unix.ByteSliceToString(uts.Release[:]), Device: lookAtFUSE("/dev/fuse")}
	k, ok := within(lookWait, func() Kernel { return tryAll(known, cmp.Or(dir, os.TempDir())) })
	if !ok {
		known.Err = "the kernel doesn't answer"
		return known
	}
	return k
}

// lookAtFUSE reports what is wrong with the device, or "".
func lookAtFUSE(path string) string {
	const major, minor = 10, 229
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return (&fs.PathError{Op: "stat", Path: path, Err: err}).Error()
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != major || unix.Minor(st.Rdev) != minor {
		return fmt.Sprintf("%s is not the character device %d:%d", path, major, minor)
	}
	return ""
}

// tryAll makes the mounts.
func tryAll(k Kernel, dir string) Kernel {
	var err error
	if k.Support, err = new(overlayfs.Kernel).Probe(dir); err != nil {
		k.Err = err.Error()
		return k
	}
	k.FUSE = overlayfs.Tried(tryFUSE())
	return k
}

// tryFUSE mounts a FUSE file system that nobody serves; nothing may be looked up in it.
func tryFUSE() error {
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close() // ends the mount's connection
	base := os.TempDir()
	var failed error
	err = hostfs.Apart(base, func() {
		options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device.Fd())
		if failed = unix.Mount("probe", base, "fuse", 0, options); failed != nil {
			failed = fmt.Errorf("mount FUSE: %w", failed)
			return
		}
		failed = unix.Unmount(base, unix.MNT_DETACH)
	})
	return errors.Join(err, failed)
}
