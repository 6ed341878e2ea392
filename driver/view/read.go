package view

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/overlayfs"
)

// Read reads a file's content, which is fetched as far as needed. It never gives less than the file holds there: the
// kernel would take the rest for NUL bytes.
func (f *FS) Read(ctx context.Context, node uint64, p []byte, off int64) (int, syscall.Errno) {
	if !isImage(node) {
		if node == folderNode {
			return 0, syscall.EISDIR
		}
		return f.cfg.Objects.Read(ctx, node, p, off)
	}
	i, nid := f.at(node)
	if i == nil {
		return 0, syscall.ESTALE
	}
	if o := f.files.get(node); o != nil {
		if n, err := o.read(p, off); err == nil {
			return n, 0
		} // closed meanwhile, or worse: opened afresh it will tell
	}
	n, err := i.Inode(nid)
	if err != nil {
		return 0, f.fault(i, nid, err)
	}
	switch {
	case n.Mode&unix.S_IFMT == unix.S_IFDIR:
		return 0, syscall.EISDIR
	case n.Mode&unix.S_IFMT != unix.S_IFREG:
		return 0, syscall.EINVAL
	case off >= n.Size:
		return 0, 0
	}
	return f.readFile(ctx, i, nid, n.Size, p, off)
}

// ReadNow is that of the objects, also of those that files of images are. What is here as a whole it doesn't read: a
// disk may have to be waited for.
func (f *FS) ReadNow(node uint64, p []byte, off int64) (int, bool) {
	if !isImage(node) {
		return f.cfg.Objects.ReadNow(node, p, off)
	}
	i, nid := f.at(node)
	if i == nil || f.files.get(node) != nil {
		return 0, false
	}
	redirect, _, err := i.Xattr(nid, overlayfs.XattrRedirect)
	if err != nil || !strings.HasPrefix(string(redirect), objectsFolder) {
		return 0, false
	}
	n, err := i.Inode(nid)
	r, ok := f.cfg.Index.Lookup(path.Base(string(redirect)))
	if err != nil || !ok || r.Size() != n.Size {
		return 0, false // Read tells
	}
	return f.cfg.Objects.ReadNow(r.Node(), p, off)
}

// objectsFolder begins the redirects to objects.
const objectsFolder = "/objects/"

// readFile reads from a file that is not open.
func (f *FS) readFile(ctx context.Context, i *image, nid uint64, size int64, p []byte, off int64) (int, syscall.Errno) {
	redirect, _, err := i.Xattr(nid, overlayfs.XattrRedirect)
	if err != nil {
		return 0, f.fault(i, nid, err)
	}
	var file *os.File
	if strings.HasPrefix(string(redirect), objectsFolder) {
		r, ok := f.cfg.Index.Lookup(path.Base(string(redirect)))
		if !ok || r.Size() != size {
			return 0, f.fault(i, nid, fmt.Errorf("object %s is not in the image's table", redirect))
		}
		if !f.cfg.Store.Has(r) {
			return f.fetch(ctx, r, p, off)
		}
		file, err = os.Open(filepath.Join(f.cfg.Dir, r.Path()))
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile: it was damaged
			return f.fetch(ctx, r, p, off)
		}
	} else {
		file, err = f.openOrdinary(string(redirect))
	}
	if err != nil {
		return 0, f.fault(i, nid, fmt.Errorf("open what a file is redirected to: %w", err))
	}
	o, err := newOpenFile(i.node(nid), file, size)
	if err != nil {
		return 0, f.fault(i, nid, err)
	}
	defer f.files.put(o)
	n, err := o.read(p, off)
	return n, f.fault(i, nid, err)
}

// fetch reads from an object that is not in the store's folder, and asks for neighbours of it.
func (f *FS) fetch(ctx context.Context, r objects.Ref, p []byte, off int64) (n int, errno syscall.Errno) {
	f.cfg.Store.ReadNear(ctx, r, func(ctx context.Context) { n, errno = f.cfg.Objects.Read(ctx, r.Node(), p, off) })
	return n, errno
}

// openOrdinary opens the file of an ordinary layer that a redirect names.
func (f *FS) openOrdinary(redirect string) (*os.File, error) {
	rest, ok := strings.CutPrefix(redirect, "/graph/")
	id, _, _ := strings.Cut(rest, "/")
	if !ok || f.cfg.Layers == "" || id == "" || !filepath.IsLocal(id) {
		return nil, fmt.Errorf("redirect %q leads nowhere", redirect)
	}
	return os.OpenInRoot(filepath.Join(f.cfg.Layers, id), redirect[1:])
}

// maxFiles is how many files are kept open. An open file keeps its disk space also when the object is removed.
const maxFiles = 256

// openFile is the content of a file.
type openFile struct {
	*os.File
	node uint64
	size int64
}

var errSize = errors.New("a file that an image is made of has not the size it had")

// newOpenFile takes over a file that must have the size.
func newOpenFile(node uint64, file *os.File, size int64) (*openFile, error) {
	info, err := file.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != size) {
		err = fmt.Errorf("%w: %s: %v, %d bytes instead of %d", errSize, file.Name(), info.Mode(), info.Size(), size)
	}
	if err != nil {
		file.Close() // it was only looked at
		return nil, err
	}
	return &openFile{file, node, size}, nil
}

// read fills p, or less at the end of the file.
func (o *openFile) read(p []byte, off int64) (int, error) {
	if off >= o.size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), o.size-off)]
	n, err := o.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	return 0, errors.Join(errSize, err)
}

// files keeps the files open that were read last. The zero value is ready.
type files struct {
	mu    sync.Mutex
	order list.List // of *openFile, the last used first
	by    map[uint64]*list.Element
}

// get returns an open file; nil if it isn't. It may be closed before it is read.
func (s *files) get(node uint64) *openFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.by[node]
	if e == nil {
		return nil
	}
	s.order.MoveToFront(e)
	return e.Value.(*openFile)
}

// put keeps a file open, in the place of the one that was not used for longest or of an older one of the same node.
func (s *files) put(o *openFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[uint64]*list.Element{}
	}
	if e := s.by[o.node]; e != nil {
		s.drop(e)
	}
	s.by[o.node] = s.order.PushFront(o)
	if s.order.Len() > maxFiles {
		s.drop(s.order.Back())
	}
}

// drop closes a file; reads under way end first.
func (s *files) drop(e *list.Element) {
	o := s.order.Remove(e).(*openFile)
	delete(s.by, o.node)
	o.Close() // it was only read
}

// forget closes the files of nodes.
func (s *files) forget(of func(node uint64) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for node, e := range s.by {
		if of(node) {
			s.drop(e)
		}
	}
}
