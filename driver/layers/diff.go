package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/overlayfs"
)

const (
	capabilityXattr = "security.capability"
	copySize        = 256 << 10 // bytes moved at once
)

// Diff returns what a layer adds to its parent as an image layer: an uncompressed tar archive in sorted order, owners
// mapped back, whiteouts as ".wh." files. Of extended attributes it holds file capabilities, as overlay2's does. The
// reader must be closed; an error while the archive is made comes out of Read, never an archive that just ends.
func (s *Store) Diff(ctx context.Context, id, parent string) (io.ReadCloser, error) {
	return s.DiffAs(ctx, id, parent, DiffArgs{IDs: s.owners()})
}

// DiffArgs say what an archive tells of files.
type DiffArgs struct {
	IDs    user.IdentityMapping // by which owners are mapped back
	Newest time.Time            // what was changed later is told to have been changed then; zero for no limit
}

// DiffAs is Diff for who has owners or times of its own.
func (s *Store) DiffAs(ctx context.Context, id, parent string, args DiffArgs) (io.ReadCloser, error) {
	if err := s.CheckParent(id, parent); err != nil {
		return nil, fmt.Errorf("diff layer %s: %w", id, err)
	}
	root, err := os.OpenRoot(s.diff(id))
	if err != nil {
		return nil, fmt.Errorf("diff layer %s: %w", id, err)
	}
	pr, pw := io.Pipe()
	go func() {
		defer root.Close()
		p := &packer{
			root: root, DiffArgs: args, w: tar.NewWriter(pw), seen: map[uint64]string{},
			buf: make([]byte, copySize),
		}
		err := p.pack(ctx)
		if err == nil && !s.Exists(id) {
			err = fmt.Errorf("it was removed while it was read: %w", ErrNoLayer)
		}
		if err == nil {
			err = p.w.Close()
		}
		if err != nil {
			err = fmt.Errorf("diff layer %s: %w", id, err)
		}
		pw.CloseWithError(err)
	}()
	return pr, nil
}

// CheckParent settles a layer and refuses a parent that isn't its own.
func (s *Store) CheckParent(id, parent string) error {
	l, err := s.settled(id)
	if err != nil {
		return err
	}
	if l.Parent != parent {
		return fmt.Errorf("its parent is %q, not %q", l.Parent, parent)
	}
	return nil
}

// packer writes a diff folder as an archive. A container may be changing the folder meanwhile, so nothing is reached
// but through root, which no link leads out of, and a file that has gone since its name was read is left out.
type packer struct {
	DiffArgs
	root *os.Root
	w    *tar.Writer
	seen map[uint64]string // first name of each inode with several
	buf  []byte
}

// pack writes the entries, and not the archive's end.
func (p *packer) pack(ctx context.Context) error {
	return fs.WalkDir(p.root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = p.add(name)
		}
		if errors.Is(err, fs.ErrNotExist) && name != "." {
			return nil
		}
		return err
	})
}

// add writes the entry of one name. The root has none, but may be opaque.
func (p *packer) add(name string) error {
	info, err := p.root.Lstat(name)
	if err != nil {
		return err
	}
	switch {
	case info.Mode()&fs.ModeSocket != 0:
		return nil // tar knows no sockets; the process that made it is gone when the layer is used
	case isWhiteout(info):
		// Without a time: a whiteout's is that of its unpacking, and equal layers are to give equal archives.
		return p.write(&tar.Header{
			Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), archive.WhiteoutPrefix+path.Base(name)), Mode: 0o600,
		}, nil)
	case info.IsDir():
		return p.addDir(name, info)
	case info.Mode().IsRegular():
		return p.addFile(name, info)
	}
	h, err := p.header(name, info)
	if err != nil {
		return err
	}
	return p.writeLinked(h, info, nil)
}

func (p *packer) addDir(name string, info fs.FileInfo) error {
	f, err := p.open(name, info)
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := p.header(name, info)
	if err != nil {
		return err
	}
	if name != "." {
		if err := p.write(h, nil); err != nil {
			return err
		}
	}
	if v, err := fgetxattr(f, overlayfs.XattrOpaque); err != nil || !bytes.Equal(v, []byte("y")) {
		return err
	}
	return p.write(&tar.Header{
		Typeflag: tar.TypeReg, Name: path.Join(name, archive.WhiteoutOpaqueDir), Mode: h.Mode & 0o777, Uid: h.Uid,
		Gid: h.Gid,
	}, nil)
}

func (p *packer) addFile(name string, info fs.FileInfo) error {
	h, err := p.header(name, info)
	if err != nil {
		return err
	}
	f, err := p.open(name, info)
	if err != nil {
		return err
	}
	defer f.Close()
	capability, err := fgetxattr(f, capabilityXattr)
	if err != nil {
		return err
	}
	if capability != nil {
		// A hard link's entry says it, too: who unpacks that sets the owner, by which the file loses the capability.
		h.PAXRecords = map[string]string{"SCHILY.xattr." + capabilityXattr: portable(capability)}
	}
	return p.writeLinked(h, info, f)
}

// writeLinked writes an entry and remembers its name for further hard links to it.
func (p *packer) writeLinked(h *tar.Header, info fs.FileInfo, content io.Reader) error {
	if err := p.write(h, content); err != nil {
		return err
	}
	if st := info.Sys().(*syscall.Stat_t); st.Nlink > 1 && h.Typeflag != tar.TypeLink {
		p.seen[st.Ino] = h.Name
	}
	return nil
}

// header describes a name as archives of the engine do: whole seconds, no names of users.
func (p *packer) header(name string, info fs.FileInfo) (*tar.Header, error) {
	var target string
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = p.root.Readlink(name); err != nil {
			return nil, err
		}
	}
	h, err := archive.FileInfoHeader(name, info, target)
	if err != nil {
		return nil, err
	}
	if !p.Newest.IsZero() && h.ModTime.After(p.Newest) {
		h.ModTime = p.Newest
	}
	st := info.Sys().(*syscall.Stat_t)
	if h.Uid, h.Gid, err = p.IDs.ToContainer(int(st.Uid), int(st.Gid)); err != nil {
		// Not of the ranges of userns-remap: BuildKit makes such folders, the host's root's. On whichever host the
		// layer is used they are to be root's, but never to act for it.
		h.Uid, h.Gid, h.Mode = 0, 0, h.Mode&^(unix.S_ISUID|unix.S_ISGID)
	}
	if !info.IsDir() && st.Nlink > 1 {
		if first, ok := p.seen[st.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		}
	}
	return h, nil
}

// open opens the very file or folder that info describes.
func (p *packer) open(name string, info fs.FileInfo) (*os.File, error) {
	f, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(now, info) {
		err = fmt.Errorf("%s: replaced while it was read: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// write writes an entry; content is what a regular file holds, of which as much is taken as the header says.
func (p *packer) write(h *tar.Header, content io.Reader) error {
	if err := p.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if content == nil || h.Size == 0 {
		return nil
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{p.w}, io.LimitReader(content, h.Size), p.buf)
	if err == nil && n < h.Size {
		err = fmt.Errorf("shrank from %d to %d bytes while it was read", h.Size, n)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

// isWhiteout reports whether it is the device that hides a name of the layers below.
func isWhiteout(info fs.FileInfo) bool {
	return info.Mode()&fs.ModeCharDevice != 0 && info.Sys().(*syscall.Stat_t).Rdev == 0
}

// fgetxattr returns an extended attribute of at most 64 bytes, nil where there is none.
func fgetxattr(f *os.File, name string) ([]byte, error) {
	b := make([]byte, 64)
	n, err := unix.Fgetxattr(int(f.Fd()), name, b)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "fgetxattr " + name, Path: f.Name(), Err: err}
	}
	return b[:n], nil
}

// portable makes a file capability that is bound to a user namespace (revision 3) one that isn't (revision 2): the
// number of the namespace's root means nothing on another host. See linux/capability.h.
func portable(capability []byte) string {
	const revisionAt, revision2, revision3, size2 = 3, 2, 3, 20
	if len(capability) > size2 && capability[revisionAt] == revision3 {
		capability = append([]byte(nil), capability[:size2]...)
		capability[revisionAt] = revision2
	}
	return string(capability)
}
