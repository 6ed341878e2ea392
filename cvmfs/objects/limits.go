package objects

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// Limits bound what a store takes of its file system.
type Limits struct {
	// Limit is how many bytes objects and partial files may take on disk; 0 is half of the file system. More than all
	// of it is all of it.
	Limit int64
	// Floor is how many bytes of the file system stay free; 0 is a twentieth of it, and 50 GiB at most.
	Floor int64
	// Yield is how many percent of the file system the store leaves to others while it has objects that may go: below
	// that it removes them, and refuses nothing. 0 is none.
	Yield int64

	yield int64 // bytes of Yield
}

// What counts where nothing else is said: parts of the file system, and a floor that gives everybody else hours to make
// room, however large it is.
const (
	defaultLimit = 2  // half
	defaultFloor = 20 // a twentieth
	mostFloor    = 50 << 30
)

// ErrLimit means that an object is not stored, as the store is at its limit and holds nothing that may be evicted.
// Store.ReadAt serves it all the same.
var ErrLimit = errors.New("the object cache is at its limit, and images in use hold all of it: " +
	"stop containers, or use a larger file system")

// SpaceError means that fetching would leave less of the file system free than the floor. It is syscall.ENOSPC.
type SpaceError struct {
	Want  int64 // bytes that were to be fetched
	Free  int64 // bytes that are free
	Floor int64 // bytes that have to stay free
}

func (e *SpaceError) Error() string {
	size := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	return fmt.Sprintf("%s are free on the object cache's file system, of which %s have to stay free, and %s are "+
		"needed: remove other files, or images that are not needed: %v",
		size(e.Free), size(e.Floor), size(e.Want), syscall.ENOSPC)
}

// Unwrap makes it syscall.ENOSPC.
func (e *SpaceError) Unwrap() error { return syscall.ENOSPC }

// fileSystem returns the size of the store's file system and what of it anybody may still write, in bytes.
func (s *Store) fileSystem() (size, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.dir.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("free space of the object store: %w", err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// SetLimits makes limits those that hold. Where the store takes more, what may go goes in the background.
func (s *Store) SetLimits(l Limits) error {
	s.admission.mu.Lock()
	s.admission.wished = l
	s.admission.mu.Unlock()
	err := s.applyLimits()
	s.admission.unstick()
	s.keepAhead()
	return err
}

// applyLimits takes the limits that are wished to the file system, which may have grown.
func (s *Store) applyLimits() error {
	size, _, err := s.fileSystem()
	if err != nil {
		return err
	}
	s.admission.mu.Lock()
	defer s.admission.mu.Unlock()
	s.admission.limits = s.admission.wished.on(size)
	return nil
}

// on returns the limits on a file system of so many bytes.
func (l Limits) on(size int64) Limits {
	if l.Limit <= 0 {
		l.Limit = size / defaultLimit
	}
	if l.Floor <= 0 {
		l.Floor = min(size/defaultFloor, mostFloor)
	}
	l.Limit, l.yield = min(l.Limit, size), size/100*l.Yield
	return l
}
