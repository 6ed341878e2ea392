package daemonjson

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
)

// maxBackups bounds the backups of one second.
const maxBackups = 100

// Backup is all that Restore needs, in a form to be kept in a journal. It has the file's content, which may hold
// passwords.
type Backup struct {
	Path    string   // as the file was asked for
	Target  string   // where its symbolic links lead
	File    string   // the backup, beside Target; "" when there was no file
	Folders []string // those that Write makes, outermost first
	Before  []byte   // nil: there was no file
	After   []byte   // nil: there is to be none
	Lines   bool     // the file is text, of which no more is known than its lines
}

// Backup keeps the file as it is on disk under another name beside it, with the time in the name, and tells how to go
// back. It comes before Write.
func (f *File) Backup(now time.Time) (*Backup, error) {
	b := &Backup{Path: f.Path, Target: f.Target, Before: f.disk, After: f.content, Lines: f.lines}
	if f.disk == nil {
		for dir := filepath.Dir(f.Target); !exists(dir); dir = filepath.Dir(dir) {
			b.Folders = append([]string{dir}, b.Folders...)
		}
		return b, nil
	}
	var err error
	if b.File, err = f.keep(now); err != nil {
		return nil, fmt.Errorf("back up %s: %w%s", f.Path, err, remedy(err))
	}
	if err := durable.SyncDir(filepath.Dir(f.Target)); err != nil {
		return nil, fmt.Errorf("back up %s: %w", f.Path, err)
	}
	return b, nil
}

// keep returns the target another name and tells it: mode, owner and all attributes are kept, and a full disk doesn't
// matter.
func (f *File) keep(now time.Time) (string, error) {
	// A run that was cut off before it wrote has left a name that will do.
	if name, err := f.keptAlready(); err != nil || name != "" {
		return name, err
	}
	stamp := f.Target + now.UTC().Format(".20060102T150405Z")
	name := stamp + ".bak"
	err := os.Link(f.Target, name)
	for n := 1; errors.Is(err, fs.ErrExist) && n < maxBackups; n++ {
		name = fmt.Sprintf("%s.%d.bak", stamp, n)
		err = os.Link(f.Target, name)
	}
	return name, err
}

// keptAlready finds a backup that is still the same file as the target, "" for none.
func (f *File) keptAlready() (string, error) {
	target, err := os.Lstat(f.Target)
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(f.Target)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), filepath.Base(f.Target)+".") || !strings.HasSuffix(e.Name(), ".bak") {
			continue
		}
		if info, err := e.Info(); err == nil && os.SameFile(info, target) {
			return filepath.Join(dir, e.Name()), nil
		}
	}
	return "", nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Write puts the file in place, or removes it if it is to be none. It is complete or as it was: mode and owner stay,
// symbolic links stay, and a missing folder is made. A file that isn't as Read found it any more is left alone.
func (f *File) Write() error {
	if !f.Changed() {
		return nil
	}
	if err := f.write(); err != nil {
		return fmt.Errorf("write %s: %w%s", f.Path, err, remedy(err))
	}
	return nil
}

func (f *File) write() error {
	dir := filepath.Dir(f.Target)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := f.unchanged(); err != nil {
		return err
	}
	if f.content == nil {
		return durable.Remove(f.Target)
	}
	return f.replace()
}

// unchanged makes sure that the file on disk is the one that was read.
func (f *File) unchanged() error {
	now, err := Read(f.Path)
	if err != nil {
		return err
	}
	if now.Target != f.Target || !same(now.disk, f.disk) {
		return errors.New("somebody changed it in the meantime (start again)")
	}
	return nil
}

// replace puts the content in the place of the target.
func (f *File) replace() (err error) {
	file, err := durable.Create(f.Target)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := likeness(file.File, f.Target); err != nil {
		return err
	}
	if _, err := file.Write(f.content); err != nil {
		return err
	}
	return file.Replace()
}

// likeness gives a new file owner, mode and extended attributes of the one whose place it takes; 0644 if there is
// none.
func likeness(file *os.File, of string) error {
	var stat unix.Stat_t
	err := unix.Lstat(of, &stat)
	if errors.Is(err, unix.ENOENT) {
		return file.Chmod(0o644)
	}
	if err != nil {
		return err
	}
	if err := file.Chown(int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	// Access control lists and labels. What the file system doesn't take it didn't have.
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(of, names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	for name := range bytes.SplitSeq(names[:max(n, 0)], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(of, string(name), value)
		if err == nil {
			err = unix.Fsetxattr(int(file.Fd()), string(name), value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("keep the attribute %s: %w", name, err)
		}
	}
	return file.Chmod(fs.FileMode(stat.Mode & 0o777))
}

// lock keeps other installers from the folder's file till unlock.
func lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close() // the error that is told is the first one
		return nil, fmt.Errorf("lock %s: %w (is another installer running?)", dir, err)
	}
	return func() {
		unix.Flock(int(d.Fd()), unix.LOCK_UN) // also for programs just being started, which may still have the folder
		d.Close()                             // only locked
	}, nil
}

// remedy says what to do about an error of the file system's.
func remedy(err error) string {
	switch {
	case errors.Is(err, unix.EROFS):
		return " (mount it writable, or name another file with --daemon-json and the engine's --config-file)"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return " (make room; nothing was changed)"
	case errors.Is(err, unix.EPERM):
		return " (is the file or its folder immutable? see lsattr)"
	case errors.Is(err, unix.EACCES):
		return " (run it as root)"
	case errors.Is(err, unix.EBUSY):
		return " (is the file itself a mount point?)"
	}
	return ""
}

// Restored reports what Restore did.
type Restored struct {
	Edited bool     // somebody had edited the file since: their changes were kept
	Kept   []string // keys of ours that they had changed too; these stay as they are
}

// Restore puts the file back: exactly as it was, if it is as Write left it or as it was before that, and the backup is
// gone then; otherwise ours of the changes are undone and the backup stays. It may be called again after it was cut
// off.
func (b *Backup) Restore() (Restored, error) {
	r, err := b.restore()
	if err != nil {
		return r, fmt.Errorf("restore %s: %w%s", b.Path, err, remedy(err))
	}
	return r, nil
}

func (b *Backup) restore() (Restored, error) {
	now, err := Read(b.Path)
	if err != nil {
		return Restored{}, err
	}
	if now.Target != b.Target || !same(now.disk, b.After) && !same(now.disk, b.Before) {
		undo := now.Undo
		if b.Lines {
			undo = now.undoLines
		}
		undone, kept, err := undo(b.Before, b.After)
		if err == nil {
			err = undone.Write()
		}
		return Restored{Edited: true, Kept: kept}, err
	}
	switch {
	case b.Before == nil:
		if err := now.with(nil).Write(); err != nil {
			return Restored{}, err
		}
		return Restored{}, removeFolders(b.Folders)
	case exists(b.File):
		return Restored{}, b.putBack()
	}
	// The backup was put back already, or somebody removed it.
	return Restored{}, now.with(b.Before).Write()
}

// putBack returns the backup its former name.
func (b *Backup) putBack() error {
	dir := filepath.Dir(b.Target)
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	// Of two names of one file rename leaves both.
	backup, err := os.Lstat(b.File)
	if err != nil {
		return err
	}
	if target, err := os.Lstat(b.Target); err == nil && os.SameFile(backup, target) {
		return durable.Remove(b.File)
	}
	if content, err := readRegular(b.File); err != nil {
		return err
	} else if !bytes.Equal(content, b.Before) {
		return fmt.Errorf("the backup %s was changed (put the file back by hand)", b.File)
	}
	if err := os.Rename(b.File, b.Target); err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

// removeFolders removes those that Write made and nobody uses.
func removeFolders(folders []string) error {
	for _, folder := range slices.Backward(folders) {
		err := unix.Rmdir(folder)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) &&
			!errors.Is(err, unix.EEXIST) {
			return &fs.PathError{Op: "rmdir", Path: folder, Err: err}
		}
	}
	return nil
}

// Discard removes the backup.
func (b *Backup) Discard() error {
	if b.File == "" || !strings.HasSuffix(b.File, ".bak") {
		return nil
	}
	if err := os.Remove(b.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the backup of %s: %w", b.Path, err)
	}
	return nil
}
