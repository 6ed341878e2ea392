// Package daemonjson judges and edits the engine's configuration file, /etc/docker/daemon.json, as a careful
// administrator would: an edit changes the keys it is asked to and not a byte more, and can be taken back.
//
//	f, err := daemonjson.Read(path)
//	problems := f.Problems(engineVersion)      // what the engine would reject; Fixed may mend it
//	next, err := f.Edit(f.Wanted(wishes)...)   // nothing is on disk yet
//	fmt.Print(daemonjson.Diff(f, next))
//	backup, err := next.Backup(time.Now())     // to be kept in a journal
//	err = next.Write()
//	…
//	restored, err := backup.Restore()
//
// A key is one of the file's top-level object. What the engine reads of a file is told by its own rules, which differ
// from version to version; see [File.Problems].
package daemonjson

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DefaultPath is where the engine looks for its configuration if no flag says otherwise.
const DefaultPath = "/etc/docker/daemon.json"

const (
	maxSize  = 1 << 20 // bytes of a file; real ones have some hundred
	maxLinks = 40      // symbolic links in a row, as the kernel has it
)

// File is a configuration file: what was found on disk and, after an edit, what is to be there. It is immutable.
type File struct {
	Path   string // as it was asked for
	Target string // where Path's symbolic links lead; Path itself if it is none

	disk    []byte // what Read found; nil if there was no file
	content []byte // what Write writes; nil for no file
	lines   bool   // it is text, of which no more is known than its lines
}

// Read reads a file. One that is not there, or a symbolic link to nowhere, is as good as an empty one; anything else
// that can't be read is an error.
func Read(path string) (*File, error) {
	target, err := follow(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	content, err := readRegular(target)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &File{Path: path, Target: target, disk: content, content: content}, nil
}

// follow returns where the symbolic links that path's last element may be lead.
func follow(path string) (string, error) {
	for range maxLinks {
		link, err := os.Readlink(path)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) { // it is no link, or isn't there
			return path, nil
		}
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(path), link)
		}
		path = link
	}
	return "", unix.ELOOP
}

// readRegular reads a regular file of a reasonable size; the content of an empty one is not nil.
func readRegular(path string) ([]byte, error) {
	// O_NONBLOCK, as opening a FIFO would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file but %s (move it away)", path, kind(info.Mode()))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxSize {
		return nil, fmt.Errorf("%s has more than %d bytes: that is no engine's configuration", path, maxSize)
	}
	return b, nil
}

func kind(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a folder"
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a device"
}

// Exists reports whether there is a file, or is to be one.
func (f *File) Exists() bool { return f.content != nil }

// Changed reports whether Write would change anything on disk.
func (f *File) Changed() bool { return !same(f.disk, f.content) }

// With returns the file with a content that need not be JSON. A change of it is undone by lines.
func (f *File) With(content []byte) *File {
	next := f.with(content)
	next.lines = true
	return next
}

// with returns the file with another content.
func (f *File) with(content []byte) *File {
	next := *f
	next.content = content
	return &next
}

// same compares contents; none and an empty one are different.
func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }
