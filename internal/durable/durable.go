// Package durable brings files and folders to disk complete or not at all.
//
// What is made stands under a temporary name beside its place, one that [IsTemporary] knows, until it is whole and
// synced; then a rename gives it its own name, and the folder that holds the name is synced, too. After a crash, kill
// -9 or loss of power the place holds what it held before, or all of what was made. A temporary name that a crash left
// is removed by [Sweep], which is for folders that one process uses.
//
// An error after the rename, which can only be that of syncing the folder, means that the new content is in its place
// and that a loss of power may bring the former back.
package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// prefix is what temporary names begin with.
const prefix = ".new-"

// IsTemporary reports whether a file name is one of something unfinished.
func IsTemporary(name string) bool { return strings.HasPrefix(name, prefix) }

// Sweep removes what is unfinished in a folder. Nobody may be making anything there.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if IsTemporary(e.Name()) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// File is a file that is being made. It must be closed, also after it was committed.
type File struct {
	*os.File
	path string
	open bool // neither committed nor closed
}

// Create starts a file that is to stand at path. Its mode is 0600 until it is changed; what umask says doesn't matter.
func Create(path string) (*File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), prefix+"*")
	if err != nil {
		return nil, err
	}
	return &File{File: f, path: path, open: true}, nil
}

// Replace puts the file in its place, whatever is there.
func (f *File) Replace() error { return f.commit(os.Rename) }

// New puts the file in its place, where nothing may be: else the error is [fs.ErrExist].
func (f *File) New() error {
	return f.commit(func(temporary, path string) error {
		return errors.Join(os.Link(temporary, path), os.Remove(temporary)) // rename(2) would replace
	})
}

func (f *File) commit(place func(temporary, path string) error) error {
	f.open = false
	err := errors.Join(f.Sync(), f.File.Close())
	if err == nil {
		err = place(f.Name(), f.path)
	}
	if err != nil {
		return errors.Join(err, remove(f.Name()))
	}
	return SyncDir(filepath.Dir(f.path))
}

// Close gives the file up unless it was committed.
func (f *File) Close() error {
	if !f.open {
		return nil
	}
	f.open = false
	return errors.Join(f.File.Close(), remove(f.Name()))
}

// Replace puts a file of this mode and content in the place of whatever is at path.
func Replace(path string, mode fs.FileMode, content []byte) error {
	return write(path, mode, (*File).Replace, content)
}

// New makes a file of this mode and content where nothing may be: else the error is [fs.ErrExist].
func New(path string, mode fs.FileMode, content []byte) error {
	return write(path, mode, (*File).New, content)
}

func write(path string, mode fs.FileMode, commit func(*File) error, content []byte) error {
	return fill(path, mode, commit, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// ReplaceBy is [Replace] for content that a function writes. If it fails nothing has changed.
func ReplaceBy(path string, mode fs.FileMode, content func(w io.Writer) error) error {
	return fill(path, mode, (*File).Replace, content)
}

func fill(path string, mode fs.FileMode, commit func(*File) error, content func(w io.Writer) error) (err error) {
	f, err := Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := content(f.File); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return commit(f)
}

// Folder is a folder that is being made. It must be closed, also after it was committed.
type Folder struct {
	path string // "" once it was committed or closed
}

// CreateFolder starts a folder of mode 0700 in parent, where it is to stand.
func CreateFolder(parent string) (*Folder, error) {
	path, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, err
	}
	return &Folder{path}, nil
}

// Path is where the folder is filled.
func (f *Folder) Path() string { return f.path }

// New gives the folder, and all that was put into it, a name in its parent. An empty folder there is replaced; one that
// isn't empty is [fs.ErrExist]. The whole file system is synced, by one call.
func (f *Folder) New(name string) error {
	if err := SyncFS(f.path); err != nil {
		return err
	}
	parent := filepath.Dir(f.path)
	if err := os.Rename(f.path, filepath.Join(parent, name)); err != nil {
		return err
	}
	f.path = ""
	return SyncDir(parent)
}

// Close removes the folder with what is in it unless it was committed.
func (f *Folder) Close() error {
	if f.path == "" {
		return nil
	}
	path := f.path
	f.path = ""
	return os.RemoveAll(path)
}

// RemoveFolder removes a folder with what is in it, under a temporary name: one that a crash cuts short leaves no half
// folder in its place. A missing one is [fs.ErrNotExist]. It takes no space of a full disk.
func RemoveFolder(path string) error {
	temporary := filepath.Join(filepath.Dir(path), prefix+filepath.Base(path))
	if err := os.RemoveAll(temporary); err != nil { // that of a former removal
		return err
	}
	if err := os.Rename(path, temporary); err != nil {
		return err
	}
	return os.RemoveAll(temporary)
}

// Remove removes a file, so that it stays away after a loss of power. A missing one is [fs.ErrNotExist].
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir brings the names in a folder to disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// SyncFS brings everything that was written on a folder's file system to disk: one call instead of one for each file.
// It also reports an earlier error of writing there.
func SyncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err = unix.Syncfs(int(d.Fd())); err != nil {
		err = &fs.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return errors.Join(err, d.Close())
}

// remove removes a temporary file that may have got its name already.
func remove(temporary string) error {
	if err := os.Remove(temporary); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
