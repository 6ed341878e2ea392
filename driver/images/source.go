package images

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/erofs"
)

// objectsFolder is where redirects to content of repositories begin.
const objectsFolder = "/objects/"

// maxPath bounds a path inside a layer, in bytes: a catalog may nest folders without end.
const maxPath = 1 << 16

// folder is a layer in a repository, at a revision.
type folder struct {
	revision *client.Revision
	holder   hash.Digest // the catalog that names all that is in the folder
	fqrn     string
	path     string
	record   *foundRecord // nil if the layer has none
	isolate  bool         // its objects are shared with no other repository
	tells    bool         // servers are told the paths of its files
	ids      idMaps
	// not nil: the folder is wanted as it is published, symbolic links with these targets, and with these modes
	expand func(target string) string
	mode   func(mode uint32) uint32
}

// idMaps is how a catalog's owner becomes the one on this host: the repository's maps first, then the engine's
// remapping.
type idMaps struct {
	repository *config.Config
	engine     user.IdentityMapping
}

func (m idMaps) owner(uid, gid uint32) (uint32, uint32, error) {
	uid, gid = m.repository.UIDMap.Map(uid), m.repository.GIDMap.Map(gid)
	if m.engine.Empty() {
		return uid, gid, nil
	}
	u, g, err := m.engine.ToHost(int(uid), int(gid))
	if err != nil {
		return 0, 0, fmt.Errorf("owner %d:%d has no place in the engine's userns-remap ranges: enlarge them in /etc/subuid and /etc/subgid: %w", uid, gid, err)
	}
	return uint32(u), uint32(g), nil
}

// read makes the layer's tree of what the catalogs and the layer's record say.
func (f *folder) read(ctx context.Context) (*node, error) {
	var n *node
	w, err := f.walk(ctx)
	if err == nil {
		n, err = w.finish()
	}
	if err != nil {
		return nil, fmt.Errorf("read layer cvmfs://%s%s: %w", f.fqrn, f.path, err)
	}
	return n, nil
}

// walk reads the folder. The record comes while the catalog does.
func (f *folder) walk(ctx context.Context) (w *folderWalk, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var k *record
	var failed error
	come := make(chan struct{})
	go func() {
		defer close(come)
		k, failed = f.readRecord(ctx)
	}()
	defer func() {
		cancel()
		<-come
	}()
	err = f.revision.Walk(ctx, f.path, func(n *client.Node) error {
		if w == nil {
			if <-come; failed != nil {
				return failed
			}
			w = newFolderWalk(f, k)
		}
		return w.add(n)
	})
	return w, err
}

// folderWalk collects what a walk of a layer meets.
type folderWalk struct {
	*folder
	record  *record
	builder builder
	links   map[uint64]*inode // by client.Node.Link
	nested  map[string]bool   // folders that are the root of a catalog
}

func newFolderWalk(f *folder, k *record) *folderWalk {
	return &folderWalk{
		folder: f, record: k, builder: builder{published: f.expand != nil}, links: map[uint64]*inode{},
		nested: map[string]bool{},
	}
}

// add takes an entry in.
func (w *folderWalk) add(n *client.Node) error {
	path := strings.TrimPrefix(n.Path, w.path)
	if len(path) > maxPath {
		return fmt.Errorf("a path has %d bytes, the limit is %d", len(path), maxPath)
	}
	if n.IsDir() && (path == "" || n.Flags&catalog.NestedRoot != 0) {
		w.nested[path] = true
	}
	own := strings.TrimPrefix(path, "/")
	if w.expand == nil && catalog.IsMarker(n.Name) && w.nested[strings.TrimSuffix(path, "/"+n.Name)] && !w.record.markers[own] {
		return nil
	}
	i := w.links[n.Link]
	if n.Link == 0 || i == nil {
		var err error
		if i, err = w.inode(n); err != nil {
			return fmt.Errorf("%s: %w", n.Path, err)
		}
		if n.Link != 0 {
			w.links[n.Link] = i
		}
	}
	i, err := w.record.apply(own, i, n.Link != 0)
	if err != nil {
		return fmt.Errorf("layer record: %w", err)
	}
	w.builder.add(path, i)
	return nil
}

// finish returns the tree. Its root is the repository's folder unless the record knows better.
func (w *folderWalk) finish() (*node, error) {
	root := w.builder.root
	if root == nil || !root.isDir() {
		return nil, fmt.Errorf("%s is no folder", w.path)
	}
	if err := w.record.complete(); err != nil {
		return nil, fmt.Errorf("layer record: %w", err)
	}
	i, err := w.record.root(w.ids)
	if err != nil {
		return nil, err
	}
	if i != nil {
		i.opaque = root.opaque
		root.inode, root.recorded = i, true
	}
	return root, nil
}

// inode translates a catalog's entry.
func (f *folder) inode(n *client.Node) (*inode, error) {
	uid, gid, err := f.ids.owner(n.UID, n.GID)
	if err != nil {
		return nil, err
	}
	i := &inode{Node: erofs.Node{
		Mode: n.Mode, UID: uid, GID: gid, Mtime: n.Mtime, MtimeN: uint32(n.MtimeN), Rdev: n.Rdev, Target: n.Target,
	}}
	if f.mode != nil {
		i.Mode = f.mode(i.Mode)
	}
	for _, x := range n.Xattrs {
		if erofs.Storable(x.Name) {
			i.Xattrs = append(i.Xattrs, erofs.Xattr{Name: x.Name, Value: string(x.Value)})
		}
	}
	if i.Mode&typeMask == unix.S_IFLNK {
		i.Mode |= 0o777 // Linux has no other; archives, and catalogs made of them, may
		if f.expand != nil {
			i.Target = cmp.Or(f.expand(i.Target), i.Target) // an image takes no empty one
		}
	}
	if !i.isRegular() {
		return i, nil
	}
	i.Size = n.Size
	if n.Size > 0 {
		object, err := objects.FromEntry(n.Entry, n.Path)
		if err != nil {
			return nil, err
		}
		if f.tells {
			object.File = n.Path
		}
		i.object, i.repo, i.redirect = &object, f.fqrn, objectsFolder+object.PlaceIn(f.fqrn, f.isolate)
	}
	return i, nil
}

// readDir makes the tree of an ordinary layer: its diff folder as package layers keeps it, owners already those of the
// host.
func readDir(l Layer) (*node, error) {
	var b builder
	links := map[uint64]*inode{}
	err := filepath.WalkDir(l.Diff, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path := strings.TrimPrefix(name, l.Diff)
		i, ino, err := lstat(name)
		if err != nil {
			return err
		}
		if known := links[ino]; known != nil {
			i = known
		} else if ino != 0 {
			links[ino] = i
		}
		if i.isRegular() && i.Size > 0 && i.redirect == "" {
			i.redirect = "/graph/" + l.ID + "/diff" + path
			if len(i.redirect) >= unix.PathMax {
				return fmt.Errorf("%s: path too long for overlayfs to be redirected to", path)
			}
		}
		b.add(path, i)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read ordinary layer %s: %w", l.ID, err)
	}
	return b.root, nil
}

// lstat reads an inode from disk; the number is non-zero for one with several names.
func lstat(name string) (*inode, uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(name, &st); err != nil {
		return nil, 0, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	i := &inode{Node: erofs.Node{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Sec, MtimeN: uint32(st.Mtim.Nsec), Rdev: st.Rdev,
	}}
	var err error
	if i.Xattrs, err = xattrs(name); err != nil {
		return nil, 0, err
	}
	switch st.Mode & typeMask {
	case typeRegular:
		i.Size = st.Size
	case syscall.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := syscall.Readlink(name, target)
		if err != nil {
			return nil, 0, &fs.PathError{Op: "readlink", Path: name, Err: err}
		}
		i.Target = string(target[:n])
	}
	if st.Mode&typeMask != typeDir && st.Nlink > 1 {
		return i, st.Ino, nil
	}
	return i, 0, nil
}

// xattrs reads the extended attributes an image can hold, sorted by name.
func xattrs(name string) ([]erofs.Xattr, error) {
	list, err := sized(func(b []byte) (int, error) { return unix.Llistxattr(name, b) })
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: name, Err: err}
	}
	var out []erofs.Xattr
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if !erofs.Storable(key) {
			continue
		}
		value, err := sized(func(b []byte) (int, error) { return unix.Lgetxattr(name, key, b) })
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr " + key, Path: name, Err: err}
		}
		out = append(out, erofs.Xattr{Name: key, Value: string(value)})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// sized calls a system call that tells the size it needs when given no buffer.
func sized(call func([]byte) (int, error)) ([]byte, error) {
	n, err := call(nil)
	if err != nil || n == 0 {
		return nil, err
	}
	b := make([]byte, n)
	if n, err = call(b); err != nil {
		return nil, err
	}
	return b[:n], nil
}
