package objects

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
)

// ownerFile holds the token of the process that opened the store last. Its lock is the owner's lock.
const (
	ownerFile = "owner"
	lockFile  = "lock"
)

// errSucceeded means that another process has opened the store since.
var errSucceeded = errors.New("another process has taken over the object store")

// takeOver makes this process the store's owner, after the former one's step.
func (s *Store) takeOver() error {
	s.token = rand.Text()
	unlock, err := s.lockState()
	if err != nil {
		return err
	}
	defer unlock()
	return durable.Replace(filepath.Join(s.cfg.State, ownerFile), 0o600, []byte(s.token))
}

// asOwner runs fn with the owner's lock; errSucceeded if this process isn't the owner any more.
func (s *Store) asOwner(fn func() error) error {
	unlock, err := s.lockState()
	if err != nil {
		return err
	}
	defer unlock()
	token, err := os.ReadFile(filepath.Join(s.cfg.State, ownerFile))
	if err != nil {
		return err
	}
	if string(token) != s.token {
		return errSucceeded
	}
	return fn()
}

func (s *Store) lockState() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.cfg.State, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil //nolint:errcheck // nothing was written
}
