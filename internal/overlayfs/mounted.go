package overlayfs

import (
	"errors"
	"io/fs"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mounted reports whether something is mounted at a folder; at a missing one nothing is.
func (k *Kernel) Mounted(dir string) (bool, error) {
	mounted, err := mountinfo.Mounted(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return mounted, err
}

// Unmount detaches everything that is mounted at a folder. Who uses it keeps what is open.
func (k *Kernel) Unmount(dir string) error {
	for {
		switch err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist): // nothing is mounted there (any more)
			return nil
		case err != nil:
			return &fs.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
}
