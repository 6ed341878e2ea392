package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// folders is how many folders a store's objects lie in, named by two hex digits.
const folders = 256

// ledger is how many objects there are in each folder, and how many bytes of disk they take. The zero value is an empty
// store's.
type ledger struct {
	folder [folders]struct {
		objects, bytes, changes atomic.Int64
	}
	objects, bytes atomic.Int64 // of all
	exact          atomic.Bool  // counted, or kept by processes that ended well
}

// tally is a folder's line as the mark has it: objects and bytes.
type tally [2]int64

// add enters what has come to a folder, or gone from it.
func (l *ledger) add(folder int, objects, bytes int64) {
	f := &l.folder[folder]
	f.objects.Add(objects)
	f.bytes.Add(bytes)
	f.changes.Add(1)
	l.objects.Add(objects)
	l.bytes.Add(bytes)
}

// enter notes an object's file, or with sign -1 its end.
func (l *ledger) enter(path string, blocks, sign int64) {
	l.add(folderOf(path), sign, sign*blocks*sector)
}

// sector is the unit of st_blocks, whatever the file system's.
const sector = 512

// folderOf returns the number of the folder of a path below the store's folder.
func folderOf(path string) int {
	n, err := strconv.ParseUint(path[:2], 16, 8)
	if err != nil {
		panic("objects: place of an object: " + path) // place makes it
	}
	return int(n)
}

func folderName(n int) string { return fmt.Sprintf("%02x", n) }

// save returns the lines for the mark.
func (l *ledger) save() []tally {
	lines := make([]tally, folders)
	for i := range lines {
		lines[i] = tally{l.folder[i].objects.Load(), l.folder[i].bytes.Load()}
	}
	return lines
}

// load takes over the lines of a mark. It reports whether there were any.
func (l *ledger) load(lines []tally) bool {
	if len(lines) != folders {
		return false
	}
	for i, t := range lines {
		l.add(i, max(0, t[0]), max(0, t[1]))
	}
	return true
}

// countFolder sets a folder's line to what is there. What comes or goes meanwhile makes it count again, but not for
// ever: where much arrives, the error is what arrived while one folder was read.
func (s *Store) countFolder(n int) error {
	f := &s.ledger.folder[n]
	for range 5 {
		before := f.changes.Load()
		objects, bytes := f.objects.Load(), f.bytes.Load()
		var found tally
		err := s.eachFile(n, func(name string) error {
			var st unix.Stat_t
			err := unix.Fstatat(int(s.dir.Fd()), folderName(n)+"/"+name, &st, unix.AT_SYMLINK_NOFOLLOW)
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			found[0]++
			found[1] += st.Blocks * sector
			return err
		})
		if err != nil {
			return fmt.Errorf("count objects: %w", err)
		}
		if f.changes.Load() != before {
			continue
		}
		if d := (tally{found[0] - objects, found[1] - bytes}); d != (tally{}) {
			s.ledger.add(n, d[0], d[1])
			s.changed.Store(true)
		}
		return nil
	}
	return nil
}

// count counts all objects.
func (s *Store) count(ctx context.Context) error {
	for n := range folders {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := s.countFolder(n); err != nil {
			return err
		}
	}
	if !s.ledger.exact.Swap(true) {
		s.log.Info("object store: counted", slog.Int64("objects", s.ledger.objects.Load()),
			slog.Int64("bytes", s.ledger.bytes.Load()))
	}
	s.changed.Store(true)
	return nil
}

// eachFile calls fn with the names in a folder that are those of objects, without reading all of them first.
func (s *Store) eachFile(n int, fn func(name string) error) error {
	fd, err := unix.Openat(int(s.dir.Fd()), folderName(n), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Join(s.cfg.Dir, folderName(n)), Err: err}
	}
	d := os.NewFile(uintptr(fd), folderName(n))
	defer d.Close()
	for {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if err := fn(name); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("list %s: %w", filepath.Join(s.cfg.Dir, folderName(n)), err)
		}
	}
}
