package publish

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/publish/storage"

	"golang.org/x/sys/unix"
)

// ErrLocked refuses what changes a repository while another process does.
var ErrLocked = errors.New("locked")

const (
	lockFile  = "lock"
	maxHolder = 256 // bytes of the lock's file
)

// Lock takes the repository's lock, which whoever changes anything holds. It doesn't wait: if another process has it,
// or this one already, the error is ErrLocked and names the holder. The lock ends with unlock, or with the process.
func (r *Repository) Lock(ctx context.Context) (unlock func() error, err error) {
	unlock, err = r.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", r.dir, err)
	}
	return unlock, nil
}

func (r *Repository) lock(ctx context.Context) (func() error, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	f, err := os.OpenFile(filepath.Join(r.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		if errors.Is(err, unix.EROFS) || errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: run as the user the folder belongs to, on a file system that may be written", err)
		}
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, readErr := storage.ReadBounded(f, maxHolder)
		err = fmt.Errorf("%w by process %s: wait for it, or end it", ErrLocked, strings.TrimSpace(string(holder)))
		if readErr != nil || len(holder) == 0 {
			err = fmt.Errorf("%w by another process: wait for it", ErrLocked)
		}
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintf(f, "%d since %s\n", os.Getpid(), time.Now().UTC().Format(time.RFC3339))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}
