package objects

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
)

// mark is what the store knows of its durability, a JSON file.
type mark struct {
	Boot   string    `json:"boot"`   // the machine's life in which it was set
	Clean  bool      `json:"clean"`  // the store was closed after it
	Synced time.Time `json:"synced"` // what is older has reached the disk
	Used   []tally   `json:"used"`   // the ledger
	Exact  bool      `json:"exact"`  // it was counted
}

const (
	markFile = "objects.json"
	// File systems take their times from a clock that ticks coarsely.
	clockSlack = time.Minute
)

// recover puts in order what a former life left, and sets the mark of this one.
func (s *Store) recover() error {
	m, err := s.readMark()
	if err != nil {
		return err
	}
	restarted := m.Boot != s.boot
	s.ledger.exact.Store(s.isEmpty() || s.ledger.load(m.Used) && m.Exact && m.Clean)
	if err := s.fresh.inherit(s.cfg.Fresh, restarted, time.Now()); err != nil {
		return err
	}
	switch {
	case !restarted:
		s.changed.Store(!m.Clean)
	case !m.Clean:
		// What was read back now is on the disk; what was dropped must not come back after the next power cut.
		dropped, err := s.recheck(m.Synced.Add(-clockSlack))
		if err == nil && dropped > 0 {
			err = unix.Syncfs(int(s.dir.Fd()))
		}
		if err != nil {
			return err
		}
		m.Synced = time.Now()
	}
	err = s.asOwner(func() error { return s.writeMark(mark{Boot: s.boot, Synced: m.Synced}) })
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return s.unmark(err)
	}
	return err
}

// unmark takes the mark away where there is no room for a new one: what it says is not true any more once an object
// arrives, and without one all objects are checked after a power cut. It is set when there is room.
func (s *Store) unmark(cause error) error {
	s.log.Warn("object store: the disk is full, only what is here can be read", slog.Any("err", cause))
	s.changed.Store(true)
	err := s.asOwner(func() error { return os.Remove(filepath.Join(s.cfg.State, markFile)) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(cause, err)
	}
	return nil
}

// readMark returns the mark. A missing or unreadable one is like one that was set before all time.
func (s *Store) readMark() (mark, error) {
	b, err := os.ReadFile(filepath.Join(s.cfg.State, markFile))
	if errors.Is(err, fs.ErrNotExist) {
		return mark{}, nil
	}
	if err != nil {
		return mark{}, err
	}
	var m mark
	if err := json.Unmarshal(b, &m); err != nil {
		s.log.Warn("object store: the mark is unreadable, checking all objects", slog.Any("err", err))
		return mark{}, nil
	}
	return m, nil
}

// sync makes all objects that are here durable, if any is new, and sets the mark.
func (s *Store) sync(clean bool) error {
	s.marking.Lock()
	defer s.marking.Unlock()
	if !s.changed.Swap(false) && !clean {
		return nil
	}
	m := mark{Boot: s.boot, Clean: clean, Synced: time.Now()}
	err := unix.Syncfs(int(s.dir.Fd()))
	if err == nil {
		err = s.asOwner(func() error { return s.writeMark(m) })
	}
	if errors.Is(err, errSucceeded) {
		return nil // the mark is the successor's
	}
	if err != nil {
		s.changed.Store(true)
		return fmt.Errorf("sync object store %s: %w", s.cfg.Dir, err)
	}
	return nil
}

func (s *Store) writeMark(m mark) error {
	m.Used, m.Exact = s.ledger.save(), s.ledger.exact.Load()
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return durable.Replace(filepath.Join(s.cfg.State, markFile), 0o600, b)
}

// isEmpty reports whether there are no objects, looking at one folder after the other until there is one.
func (s *Store) isEmpty() bool {
	for n := range folders {
		found := false
		err := s.eachFile(n, func(string) error {
			found = true
			return io.EOF
		})
		if err != nil || found {
			return false
		}
	}
	return true
}

// recheck drops the objects younger than since that are not what was recorded of them, and tells how many.
func (s *Store) recheck(since time.Time) (dropped int, err error) {
	checked := 0
	for i := range folders {
		folder := filepath.Join(s.cfg.Dir, folderName(i))
		entries, err := os.ReadDir(folder)
		if err != nil {
			return dropped, err
		}
		for _, e := range entries {
			path := filepath.Join(folder, e.Name())
			name, err := ParseName(e.Name())
			if err != nil || !younger(path, since) {
				continue
			}
			checked++
			if err := verify(context.Background(), path, name); err != nil {
				dropped++
				s.log.Warn("object store: dropping an object that didn't survive", slog.String("object", e.Name()),
					slog.Any("err", err))
				if _, err := s.remove(place(e.Name())); err != nil {
					return dropped, err
				}
			}
		}
	}
	s.log.Info("object store: checked after an unclean shutdown", slog.Int("objects", checked),
		slog.Int("dropped", dropped))
	return dropped, nil
}

// younger reports whether a file may have changed since then. Its change time can't be set by anybody.
func younger(path string, since time.Time) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) != nil || time.Unix(st.Ctim.Unix()).After(since)
}

// verify holds a file against what was recorded of it.
func verify(ctx context.Context, path string, name Name) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	want, err := recorded(f)
	if err != nil {
		return err
	}
	sha := sums.Get().(sum)
	defer sums.Put(sha)
	sha.Reset()
	size, err := io.Copy(sha, contextReader{ctx, f})
	if err != nil {
		return err
	}
	if size != name.Size {
		return fmt.Errorf("%d bytes instead of %d", size, name.Size)
	}
	if got := sha.Sum(nil); !bytes.Equal(got, want) {
		return fmt.Errorf("its SHA-256 is %x, recorded was %x", got, want)
	}
	return nil
}

// errUnrecorded means that no digest was recorded of a file, as its file system has no extended attributes, or no
// usable one.
var errUnrecorded = errors.New("no usable digest recorded")

// recorded returns the SHA-256 recorded of a file: 32 bytes, or in files that older versions wrote 64 hex digits, which
// ext4 has no room for in an inode of the usual 256 bytes, so that each took a block of its own.
func recorded(f *os.File) ([]byte, error) {
	var b [2 * sha256.Size]byte
	n, err := unix.Fgetxattr(int(f.Fd()), attribute, b[:])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnrecorded, err)
	}
	switch n {
	case sha256.Size:
		return b[:n], nil
	case len(b):
		var sum [sha256.Size]byte
		if _, err := hex.Decode(sum[:], b[:]); err == nil {
			return sum[:], nil
		}
	}
	return nil, fmt.Errorf("%w: %.64q", errUnrecorded, b[:n])
}
