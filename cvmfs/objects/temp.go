package objects

import (
	"crypto/sha256"
	"errors"
	gohash "hash"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// sum is a SHA-256 under way; sums keeps them for the next use.
type sum = gohash.Hash

var sums = sync.Pool{New: func() any { return sha256.New() }}

// temp is a file that has no name in the store yet.
type temp struct {
	*os.File
	path string // of the temporary name, where there must be one
}

// The modes of an object's file, and of one that is to become it where it can't have that from the start: without root,
// attributes are set only on what may be written to.
const (
	objectMode = 0o444
	tempMode   = 0o600
)

// newTemp makes an empty file for an object. All are made in one folder: file systems put what was made in one near to
// each other, so that what was fetched together is read together, too.
func (s *Store) newTemp() (*temp, error) {
	if !s.unnamed {
		f, err := os.CreateTemp(filepath.Join(s.cfg.Dir, tmpFolder), "")
		if err != nil {
			return nil, err
		}
		return &temp{f, f.Name()}, nil
	}
	// O_TMPFILE: open(2), since Linux 3.11.
	fd, err := unix.Openat(int(s.dir.Fd()), tmpFolder, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, s.mode)
	if err != nil {
		return nil, &fs.PathError{Op: "create in", Path: filepath.Join(s.cfg.Dir, tmpFolder), Err: err}
	}
	return &temp{os.NewFile(uintptr(fd), s.cfg.Dir+"/"+tmpFolder+"/(unnamed)"), ""}, nil
}

// link gives the file its name below the store's folder, in one step.
func (s *Store) link(t *temp, path string) error {
	err := unix.ENOENT
	if s.unnamed {
		// Whoever opened the file may do so since Linux 6.10; before, it takes CAP_DAC_READ_SEARCH, or else ENOENT is
		// the answer.
		err = linkat(int(t.Fd()), "", int(s.dir.Fd()), path, unix.AT_EMPTY_PATH)
	}
	if err == unix.ENOENT {
		from := t.path
		if s.unnamed {
			from = "/proc/self/fd/" + strconv.Itoa(int(t.Fd()))
		}
		err = linkat(unix.AT_FDCWD, from, int(s.dir.Fd()), path, unix.AT_SYMLINK_FOLLOW)
	}
	if err != 0 {
		return &os.LinkError{Op: "link", Old: t.Name(), New: filepath.Join(s.cfg.Dir, path), Err: err}
	}
	return nil
}

// linkat is link(2) with its errno; 0 is success.
func linkat(fromDir int, from string, toDir int, to string, flags int) unix.Errno {
	err := unix.Linkat(fromDir, from, toDir, to, flags)
	if err == nil {
		return 0
	}
	errno, _ := err.(unix.Errno) //nolint:errorlint // a bare errno
	return errno
}

// discard closes the file. Without a name it is gone.
func (t *temp) discard() {
	t.Close() // whoever needed what is in it has linked it
	if t.path != "" {
		os.Remove(t.path) // what stays is removed when the store is opened again
	}
}

// publish makes a complete, verified file the object of that place and size.
func (s *Store) publish(t *temp, path string, size int64, sha []byte) error {
	err := unix.Fsetxattr(int(t.Fd()), attribute, sha, 0)
	if err != nil && !errors.Is(err, unix.ENOTSUP) { // without it the object is dropped after a power cut: no harm
		return &fs.PathError{Op: "record digest of", Path: t.Name(), Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(t.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&^unix.S_IFMT != objectMode { // s.mode is another, or umask has taken something off
		if err := t.Chmod(objectMode); err != nil {
			return err
		}
	}
	err = s.link(t, path)
	if errors.Is(err, fs.ErrExist) && !s.Holds(path, size) {
		// A file of another size: one that was cut short. Its readers, if any, keep it.
		s.log.Warn("object store: replacing a damaged object", slog.String("object", filepath.Base(path)))
		if _, err := s.remove(path); err != nil {
			return err
		}
		s.damaged.Add(1)
		err = s.link(t, path)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err == nil { // else another process was faster
		s.ledger.enter(path, settledBlocks(&st), 1)
	}
	s.changed.Store(true)
	return nil
}

// settledBlocks returns the blocks that a complete file takes once it is closed. XFS gives a file that grows up to
// twice its size in advance, and takes back at its closing what is beyond its end.
func settledBlocks(st *unix.Stat_t) int64 {
	block := max(int64(st.Blksize), sector)
	content := (st.Size + block - 1) / block * block
	if st.Blocks*sector > content+block { // which attributes may take
		return content / sector
	}
	return st.Blocks
}

// probe finds out whether files can be made without a name and get one later, and whether with the mode of an object.
func (s *Store) probe() {
	s.unnamed, s.mode = true, tempMode
	t, err := s.newTemp()
	if err == nil {
		defer t.discard()
		if t.Chmod(objectMode) == nil && unix.Fsetxattr(int(t.Fd()), attribute, []byte{0}, 0) == nil {
			s.mode = objectMode
		}
		err = s.link(t, tmpFolder+"/probe")
	}
	if err == nil {
		err = unix.Unlinkat(int(s.dir.Fd()), tmpFolder+"/probe", 0)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return // it says nothing: where such files can't be made, fetching fails as long as there is no room
	}
	if err != nil {
		s.unnamed = false
		s.log.Info("object store: no unnamed files here, using temporary names", slog.Any("err", err))
	}
}
