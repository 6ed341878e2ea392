package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
)

// Local is a storage in a folder of this host, for a web server to serve.
type Local struct {
	dir   string // the repository's root
	seq   atomic.Uint64
	named atomic.Bool // the file system has no files without names
}

// txnFolder holds objects that are being written: it must be on the same file system.
const txnFolder = DataFolder + "/txn"

// OpenLocal returns the storage in a repository's root folder, which must have been made by MakeLocal.
func OpenLocal(dir string) (*Local, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open storage: %w", err)
	}
	for _, folder := range []string{DataFolder, txnFolder} {
		if info, err := os.Stat(filepath.Join(dir, folder)); err != nil {
			return nil, fmt.Errorf("open storage: %w", err)
		} else if !info.IsDir() {
			return nil, fmt.Errorf("open storage: %s is not a folder", filepath.Join(dir, folder))
		}
	}
	return &Local{dir: dir}, nil
}

// MakeLocal makes the folders of an empty repository: all 256 for objects, so that none is made and synced later.
func MakeLocal(dir string) (*Local, error) {
	folders := []string{"", DataFolder, txnFolder}
	for i := range 256 {
		folders = append(folders, fmt.Sprintf("%s/%02x", DataFolder, i))
	}
	for _, folder := range folders {
		path := filepath.Join(dir, folder)
		err := os.MkdirAll(path, 0o755)
		if err == nil {
			err = os.Chmod(path, 0o755) // whatever the umask: a web server must read it
		}
		if err != nil {
			return nil, fmt.Errorf("make storage: %w", err)
		}
	}
	return OpenLocal(dir)
}

// Dir is the repository's root folder.
func (l *Local) Dir() string { return l.dir }

// String is the folder.
func (l *Local) String() string { return l.dir }

// path is where a file lies.
func (l *Local) path(name string) (string, error) {
	if !filepath.IsLocal(name) || filepath.Clean(name) != name {
		return "", fmt.Errorf("%.200q is no name of a repository's file", name)
	}
	return filepath.Join(l.dir, name), nil
}

// Put stores a file. Objects are synced by Sync, all together; the few others at once.
func (l *Local) Put(ctx context.Context, name string, content io.Reader, size int64) error {
	if err := l.put(ctx, name, content, size); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	return nil
}

func (l *Local) put(ctx context.Context, name string, content io.Reader, size int64) error {
	path, err := l.path(name)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !strings.HasPrefix(name, DataFolder+"/") {
		return durable.ReplaceBy(path, fileMode, func(to io.Writer) error { return copyExactly(to, content, size) })
	}
	if !l.named.Load() {
		err := l.putUnnamed(path, content, size)
		if !errors.Is(err, errNamed) {
			return err
		}
		l.named.Store(true)
	}
	return l.putNamed(path, content, size)
}

// temp returns a new name below txnFolder.
func (l *Local) temp() string {
	return filepath.Join(l.dir, txnFolder, strconv.Itoa(os.Getpid())+"."+strconv.FormatUint(l.seq.Add(1), 10))
}

// errNamed says that the file system can't have files without names.
var errNamed = errors.New("no files without names here")

// putUnnamed writes an object to a file that has no name until it is whole (O_TMPFILE, since Linux 3.11). On ext4 this
// takes half as long as a temporary name and a rename: all workers would create their files in one folder.
func (l *Local) putUnnamed(path string, content io.Reader, size int64) (err error) {
	fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, fileMode)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return errNamed
	}
	if err != nil {
		return &fs.PathError{Op: "create in", Path: filepath.Dir(path), Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := fill(f, content, size); err != nil {
		return err
	}
	err = linkOpen(f, path)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	temp := l.temp()
	if err := linkOpen(f, temp); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// linkOpen returns an open file a name.
func linkOpen(f *os.File, path string) error {
	from := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	if err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "link", Old: from, New: path, Err: err}
	}
	return nil
}

// putNamed writes an object to a file with a temporary name. It isn't synced.
func (l *Local) putNamed(path string, content io.Reader, size int64) error {
	temp := l.temp()
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fileMode)
	if err != nil {
		return err
	}
	err = errors.Join(fill(f, content, size), f.Close())
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp) // best effort: the next transaction empties the folder
	}
	return err
}

// fileMode is that of all files, whatever the umask: a web server must read them.
const fileMode = 0o644

// fill writes an object's file, which has exactly size bytes.
func fill(f *os.File, content io.Reader, size int64) error {
	if err := f.Chmod(fileMode); err != nil {
		return err
	}
	return copyExactly(f, content, size)
}

func copyExactly(to io.Writer, content io.Reader, size int64) error {
	n, err := io.Copy(to, content)
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes instead of %d", n, size)
	}
	return err
}

// Get opens a file.
func (l *Local) Get(_ context.Context, name string) (io.ReadCloser, error) {
	path, err := l.path(name)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// Stat returns a file's size.
func (l *Local) Stat(_ context.Context, name string) (int64, error) {
	path, err := l.path(name)
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fmt.Errorf("%s is not a regular file", path)
	}
	return st.Size, nil
}

// Remove removes files.
func (l *Local) Remove(ctx context.Context, files ...string) error {
	for _, name := range files {
		path, err := l.path(name)
		if err == nil {
			err = context.Cause(ctx)
		}
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

// List calls fn for each file whose name begins with prefix. What is being written is none of them.
func (l *Local) List(ctx context.Context, prefix string, fn func(File) error) error {
	top, _, _ := strings.Cut(prefix, "/")
	if !strings.Contains(prefix, "/") {
		top = ""
	}
	err := filepath.WalkDir(filepath.Join(l.dir, top), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name, err := filepath.Rel(l.dir, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && name == txnFolder:
			return fs.SkipDir
		case d.IsDir() || !strings.HasPrefix(name, prefix) || durable.IsTemporary(name):
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return fn(File{Name: name, Size: info.Size(), Modified: info.ModTime()})
	})
	if err != nil {
		return fmt.Errorf("list %s in %s: %w", prefix, l.dir, err)
	}
	return nil
}

// Sync brings everything of the file system to the disk.
func (l *Local) Sync(context.Context) error {
	if err := durable.SyncFS(l.dir); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", l.dir, err)
	}
	return nil
}

// Clear removes what an earlier process was writing. Nobody may be writing anything.
func (l *Local) Clear() error {
	return errors.Join(EmptyFolder(filepath.Join(l.dir, txnFolder)), durable.Sweep(l.dir))
}

// EmptyFolder removes everything in a folder for temporary files; it makes the folder if there is none.
func EmptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
