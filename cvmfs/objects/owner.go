package objects

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ownerFile holds the token of the process that opened the store last; its lock is the owner's lock. It is written in
// place: a full disk has room for what was there.
const ownerFile = "owner"

// errSucceeded means that another process has opened the store since.
var errSucceeded = errors.New("another process has taken over the object store")

// takeOver makes this process the store's owner, after the former one's step.
func (s *Store) takeOver() error {
	s.token = rand.Text()
	f, err := s.lockOwner()
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(s.token), 0)
	return errors.Join(err, f.Close())
}

// asOwner runs fn with the owner's lock; errSucceeded if this process isn't the owner any more.
func (s *Store) asOwner(fn func() error) error {
	f, err := s.lockOwner()
	if err != nil {
		return err
	}
	defer f.Close()
	token := make([]byte, len(s.token))
	if _, err := f.ReadAt(token, 0); err != nil {
		return err
	}
	if string(token) != s.token {
		return errSucceeded
	}
	return fn()
}

// lockOwner waits for the owner's lock. Closing the file gives it back.
func (s *Store) lockOwner() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.cfg.State, ownerFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close() // nothing was written
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}
