package layertar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/overlayfs"
)

// Options say how an archive is unpacked. The zero value has whiteouts stay files and owners as they are.
type Options struct {
	// Overlay makes whiteouts what overlayfs takes for them: a character device 0:0 of the hidden name, and the
	// extended attribute trusted.overlay.opaque (in a user namespace user.overlay.opaque) of a folder.
	Overlay bool
	// Bottom says that nothing lies below: whiteouts hide nothing then, and are left out.
	Bottom bool
	// Root has the root's own entry set the attributes of the folder; else it is left to Done.
	Root bool
	// Owner says whom what belongs to on disk that belongs to uid:gid in the archive; nil: to the same.
	Owner func(uid, gid int) (int, int, error)
	// Recorded says that extended attributes are kept elsewhere, too: one that the file system has no room for is left
	// out with a note. Some, as ext4, have room for a few thousand bytes a file.
	Recorded bool
	// Seen is told of each entry before anything is done, Done when it is in place, but for whiteouts of Overlay; nil:
	// nobody. Their errors end the unpacking.
	Seen func(e *Entry) error
	Done func(e *Entry, at Place) error
	// Implied is told of each folder that is made though no entry is for it, open at dir; nil: nobody.
	Implied func(dir int) error
}

// Place is where an entry is.
type Place struct {
	Dir  int    // descriptor of the folder, good until Done returns
	Base string // name in it
	Path string // relative to the root; no component is a link
	Made bool   // the file is new, and not another name or more attributes of one
	Lost bool   // the file system hasn't taken all extended attributes
}

// Unpack unpacks what is left of an archive into a folder that holds nothing else. The times of folders are set when
// all is in them. An error leaves the folder with what was unpacked so far.
func Unpack(ctx context.Context, dir string, r *Reader, o Options) error {
	root, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	u := &unpacker{
		o: o, r: r, buf: make([]byte, copySize), inUserns: userns.RunningInUserNS(),
		walk: walk{root: root, at: -1, top: &folder{}},
	}
	u.walk.imply, u.walk.step = u.imply, r.Step
	if o.Owner == nil {
		u.o.Owner = func(uid, gid int) (int, int, error) { return uid, gid, nil }
	}
	err = u.all(ctx)
	return errors.Join(err, u.walk.close())
}

// unpacker unpacks one archive.
type unpacker struct {
	o        Options
	r        *Reader
	walk     walk
	buf      []byte
	inUserns bool
	entry    *Entry // the one at hand
}

func (u *unpacker) all(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, err := u.r.Next()
		if errors.Is(err, io.EOF) {
			return u.walk.setTimes()
		}
		if err != nil {
			return err
		}
		u.entry = e
		if u.o.Seen != nil {
			err = u.o.Seen(e)
		}
		if err == nil {
			err = u.add(e)
		}
		if err != nil {
			return fmt.Errorf("unpack %.300q: %w", e.Name, u.refused(err))
		}
	}
}

// refused returns an error as ErrArchive if it is one that only an archive makes in a folder that is nobody else's:
// what an entry leads through is missing or no folder.
func (u *unpacker) refused(err error) error {
	var st unix.Stat_t
	if unix.Fstat(int(u.walk.root.Fd()), &st) != nil || st.Nlink == 0 { // somebody has removed it
		return err
	}
	for _, errno := range []unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG} {
		if errors.Is(err, errno) && !errors.Is(err, ErrArchive) {
			return fmt.Errorf("%w: %w", ErrArchive, err)
		}
	}
	return err
}

// add unpacks one entry.
func (u *unpacker) add(e *Entry) error {
	if e.Name == "" {
		return u.rootFolder(e)
	}
	dir, base := path.Split(e.Name)
	if err := u.walk.enter(strings.TrimSuffix(dir, "/")); err != nil {
		return err
	}
	switch {
	case u.o.Bottom && e.Whiteout():
		return nil
	case u.o.Overlay && e.Whiteout():
		return u.whiteout(e)
	}
	at := Place{Dir: u.walk.at, Base: base, Path: u.walk.path(base), Made: e.Type != tar.TypeLink}
	if len(at.Path) > maxPath {
		return errTooLong
	}
	var err error
	switch e.Type {
	case tar.TypeReg:
		err = u.file(e, &at)
	case tar.TypeDir:
		err = u.dir(e, &at)
	case tar.TypeLink:
		err = u.link(e, &at)
	default:
		err = u.special(e, &at)
	}
	if errors.Is(err, errLeftOut) {
		return nil
	}
	if err != nil {
		return err
	}
	return u.done(e, at)
}

func (u *unpacker) done(e *Entry, at Place) error {
	if u.o.Done == nil {
		return nil
	}
	return u.o.Done(e, at)
}

// rootFolder is for the entry of the folder that is unpacked into.
func (u *unpacker) rootFolder(e *Entry) error {
	at := Place{Dir: int(u.walk.root.Fd()), Base: "."}
	if u.o.Root {
		if err := u.attributes(e, &at); err != nil {
			return err
		}
		u.walk.top.times, u.walk.top.timed = timesOf(e), true
	}
	return u.done(e, at)
}

// make makes what is to have a name. What has it makes room.
func (u *unpacker) make(base string, mk func() error) error {
	err := mk()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := u.walk.clear(base); err != nil {
		return err
	}
	return mk()
}

// file unpacks a regular file. It is not synced.
func (u *unpacker) file(e *Entry, at *Place) error {
	var fd int
	err := u.make(at.Base, func() (err error) {
		fd, err = unix.Openat(at.Dir, at.Base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC,
			0o600)
		return err
	})
	if err != nil {
		return call("create", err)
	}
	defer func() {
		if fd >= 0 {
			_ = unix.Close(fd) // after an error
		}
	}()
	if err := u.content(fd); err != nil {
		return err
	}
	uid, gid, err := u.o.Owner(e.UID, e.GID)
	if err != nil {
		return err
	}
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return chownError(uid, gid, err)
	}
	for _, x := range e.Xattrs {
		if err := u.xattr(at, x, unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return call("chmod", err)
	}
	err = unix.Close(fd) // some file systems tell only now that the disk is full
	if fd = -1; err != nil {
		return call("close", err)
	}
	return setTimes(at.Dir, at.Base, timesOf(e))
}

// content writes the entry's content.
func (u *unpacker) content(fd int) error {
	for {
		n, err := io.ReadFull(u.r, u.buf)
		for b := u.buf[:n]; len(b) > 0; {
			w, err := unix.Write(fd, b)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return call("write", err)
			}
			b = b[w:]
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrArchive) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// dir unpacks a folder, or the attributes of one that is there.
func (u *unpacker) dir(e *Entry, at *Place) error {
	f := u.walk.folder.sub[at.Base]
	if f == nil {
		var err error
		if f, err = u.walk.mkdir(at.Base); err != nil {
			return err
		}
	} else {
		at.Made = false
	}
	f.times, f.timed = timesOf(e), true
	return u.attributes(e, at)
}

// special unpacks a symbolic link, a device or a named pipe.
func (u *unpacker) special(e *Entry, at *Place) error {
	err := u.make(at.Base, func() error {
		switch e.Type {
		case tar.TypeSymlink:
			return unix.Symlinkat(e.Target, at.Dir, at.Base)
		case tar.TypeChar:
			return unix.Mknodat(at.Dir, at.Base, unix.S_IFCHR|0o600, int(e.Device()))
		case tar.TypeBlock:
			return unix.Mknodat(at.Dir, at.Base, unix.S_IFBLK|0o600, int(e.Device()))
		default:
			return unix.Mknodat(at.Dir, at.Base, unix.S_IFIFO|0o600, 0)
		}
	})
	if u.inUserns && errors.Is(err, unix.EPERM) && e.Type != tar.TypeSymlink {
		u.r.note("a device, which can't be made in a user namespace")
		return errLeftOut
	}
	if err != nil {
		return call("create", err)
	}
	if err := u.attributes(e, at); err != nil {
		return err
	}
	return setTimes(at.Dir, at.Base, timesOf(e))
}

// errLeftOut means that an entry was left out, with a note.
var errLeftOut = errors.New("left out")

// attributes sets owner, extended attributes and mode of what isn't a regular file, in the order in which one doesn't
// undo another.
func (u *unpacker) attributes(e *Entry, at *Place) error {
	uid, gid, err := u.o.Owner(e.UID, e.GID)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(at.Dir, at.Base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return chownError(uid, gid, err)
	}
	if err := u.xattrs(e, at); err != nil {
		return err
	}
	if e.Type == tar.TypeSymlink {
		return nil
	}
	return chmod(at, e.Mode)
}

// xattrs sets extended attributes on what the name itself is.
func (u *unpacker) xattrs(e *Entry, at *Place) error {
	if len(e.Xattrs) == 0 {
		return nil
	}
	name := fmt.Sprintf("/proc/self/fd/%d/%s", at.Dir, at.Base)
	for _, x := range e.Xattrs {
		if err := u.xattr(at, x, unix.Lsetxattr(name, x.Name, []byte(x.Value), 0)); err != nil {
			return err
		}
	}
	return nil
}

// xattr says what the error of setting an attribute means: one that can't be had here is left out.
func (u *unpacker) xattr(at *Place, x Xattr, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSPC) && u.o.Recorded:
		at.Lost = true
		u.r.note(fmt.Sprintf("extended attribute %.100q: %v", x.Name, err))
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE): // a value that the attribute can't have
		err = fmt.Errorf("%w: %w", ErrArchive, err)
	}
	return fmt.Errorf("extended attribute %.100q of %d bytes: %w", x.Name, len(x.Value), err)
}

// chmod sets the mode of what is no link.
func chmod(at *Place, mode uint32) error {
	if err := unix.Fchmodat(at.Dir, at.Base, mode, 0); err != nil {
		return call("chmod", err)
	}
	return nil
}

// link makes another name of a file. What has the name makes room first, also if it is the file: engines do so.
func (u *unpacker) link(e *Entry, at *Place) error {
	if err := u.walk.clear(at.Base); err != nil {
		return err
	}
	dir, base := path.Split(e.Target)
	err := u.walk.aside(strings.TrimSuffix(dir, "/"), func(from int) error {
		err := unix.Linkat(from, base, at.Dir, at.Base, 0)
		if errors.Is(err, unix.EPERM) && isFolder(from, base) {
			err = unix.EISDIR
		}
		return call("link", err)
	})
	if err != nil {
		return fmt.Errorf("hard link to %.300q: %w", e.Target, err)
	}
	return u.linkAttributes(e, at)
}

func isFolder(dir int, base string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// linkAttributes returns a file the attributes of its new name's entry. The owner is left alone where it is right
// already: setting it takes a program's capabilities away.
func (u *unpacker) linkAttributes(e *Entry, at *Place) error {
	uid, gid, err := u.o.Owner(e.UID, e.GID)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at.Dir, at.Base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return call("stat", err)
	}
	if owner(uid, st.Uid) != st.Uid || owner(gid, st.Gid) != st.Gid {
		if err := unix.Fchownat(at.Dir, at.Base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return chownError(uid, gid, err)
		}
	}
	if err := u.xattrs(e, at); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := chmod(at, e.Mode); err != nil {
			return err
		}
	}
	return setTimes(at.Dir, at.Base, timesOf(e))
}

// whiteout makes overlayfs' form of a whiteout in the folder at hand.
func (u *unpacker) whiteout(e *Entry) error {
	if e.Opaque {
		return u.opaque(u.walk.at)
	}
	err := unix.Mknodat(u.walk.at, e.Hides, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) {
		if u.walk.folder.sub[e.Hides] == nil {
			return nil // the layer's own file hides what is below by itself
		}
		return u.walk.aside(u.walk.path(e.Hides), u.opaque)
	}
	if err != nil {
		return call("make the whiteout", err)
	}
	uid, gid, err := u.o.Owner(e.UID, e.GID)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(u.walk.at, e.Hides, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return chownError(uid, gid, err)
	}
	return nil
}

// opaque marks an open folder as opaque.
func (u *unpacker) opaque(dir int) error {
	name := overlayfs.XattrOpaque
	if u.inUserns {
		name = overlayfs.XattrUserPrefix + strings.TrimPrefix(name, overlayfs.XattrPrefix)
	}
	if err := unix.Setxattr("/proc/self/fd/"+strconv.Itoa(dir), name, []byte("y"), 0); err != nil {
		return fmt.Errorf("make the folder opaque by %s: %w", name, err)
	}
	return nil
}

// imply returns a folder that the archive doesn't mention, or that replaces a whiteout, what it must have: the folder
// is open at dir.
func (u *unpacker) imply(dir int, f *folder, hides bool) error {
	if hides && u.o.Overlay {
		if err := u.opaque(dir); err != nil {
			return err
		}
	}
	if f == nil {
		return nil
	}
	if err := u.r.Imply(); err != nil {
		return err
	}
	f.times, f.timed = timesOf(u.entry), true
	uid, gid, err := u.o.Owner(0, 0)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(dir, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return chownError(uid, gid, err)
	}
	if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(dir), 0o755); err != nil || u.o.Implied == nil {
		return call("chmod", err)
	}
	return u.o.Implied(dir)
}

type times [2]unix.Timespec

func timesOf(e *Entry) times {
	at := func(sec int64, nsec int) unix.Timespec { return unix.Timespec{Sec: sec, Nsec: int64(nsec)} }
	return times{at(e.Atime.Unix(), e.Atime.Nanosecond()), at(e.Mtime.Unix(), e.Mtime.Nanosecond())}
}

func setTimes(dir int, base string, t times) error {
	return call("set times", unix.UtimesNanoAt(dir, base, t[:], unix.AT_SYMLINK_NOFOLLOW))
}

// call says what was tried.
func call(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func chownError(uid, gid int, err error) error {
	return fmt.Errorf("set the owner %d:%d: %w", uid, gid, err)
}

var errTooLong = fmt.Errorf("leads to a path of more than %d bytes: %w", maxPath, unix.ENAMETOOLONG)
