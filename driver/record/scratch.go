package record

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const scratchPrefix = "cvmfs-record-"

// scratch makes a folder for one recording, which remove takes away again. Folders of processes that were killed are
// removed first: nobody holds their lock.
func scratch(base string) (dir string, remove func() error, err error) {
	left, err := filepath.Glob(filepath.Join(base, scratchPrefix+"*"))
	if err != nil {
		return "", nil, err
	}
	for _, old := range left {
		if err := removeLeft(old); err != nil {
			return "", nil, fmt.Errorf("remove what a recording left behind: %w", err)
		}
	}
	if dir, err = os.MkdirTemp(base, scratchPrefix); err != nil {
		return "", nil, err
	}
	lock, err := os.Open(dir)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), lock.Close()) }, nil
}

// removeLeft removes a folder if it is ours and of nobody who runs.
func removeLeft(dir string) error {
	const young = time.Minute // it may not be locked yet
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // it is gone, or not ours
	}
	defer unix.Close(fd)
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil {
		return err
	}
	if int(s.Uid) != os.Geteuid() || time.Since(time.Unix(s.Mtim.Unix())) < young ||
		unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil
	}
	return os.RemoveAll(dir)
}
