package view

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/sys/user"

	"cvmfs-graphdriver/cvmfs/objectfs"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/erofs"
	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/internal/overlayfs"
)

// Folder is the folder of the mount that holds the images.
const Folder = "view"

// Config says what to show. All but Layers, Log and Users is needed.
type Config struct {
	Objects *objectfs.FS   // answers for all other nodes of the mount, and fetches what is read
	Index   *objects.Index // knows the objects of every image that is added
	Store   *objects.Store
	Dir     string // the store's folder of objects
	Layers  string // ordinary layers: the redirect /graph/<id>/… is Layers/<id>/graph/<id>/…
	Log     *slog.Logger
	// Users reports what an image is needed for, as attributes of a log line; nil if nobody can tell.
	Users func(key string) []any
}

// FS is the tree of all images. It answers the requests of one mount.
type FS struct {
	cfg   Config
	files files

	mu     sync.RWMutex
	images map[uint64]*image // by tag
}

// image is an image that is shown.
type image struct {
	*erofs.Reader
	key  string
	name string // in the folder: the key, or that of the image with mapped owners
	tag  uint64 // in its place in node ids
	ids  user.IdentityMapping

	mu   sync.Mutex
	said time.Time // when its last fault was logged
}

// New makes the tree, without images.
func New(cfg Config) *FS {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &FS{cfg: cfg, images: map[uint64]*image{}}
}

var (
	_ fusewire.Tree   = (*FS)(nil)
	_ fusewire.Prompt = (*FS)(nil)
)

// Node ids. The folder's is one objectfs has no use for: its folders are below, and its objects have bit 62.
const (
	folderNode = 0x400
	imageBit   = 1 << 61
	tagBits    = 29
	nidBits    = 61 - tagBits
	nidMask    = 1<<nidBits - 1
)

// quiet is how long faults of an image are not logged again.
const quiet = time.Minute

// tagOf makes the tag of a key.
func tagOf(key string) (uint64, error) {
	b, err := hex.DecodeString(key)
	if err != nil || len(b) < 4 {
		return 0, fmt.Errorf("show image %q: its key is no digest", key)
	}
	first := uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])
	return first >> (32 - tagBits) << nidBits, nil
}

// Add shows the image in a file. One that is shown already stays as it is.
func (f *FS) Add(key, path string) error {
	tag, err := tagOf(key)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if shown, err := f.shown(key, tag); shown || err != nil {
		return err
	}
	r, err := erofs.OpenReader(path)
	if err != nil {
		return fmt.Errorf("show image %s: %w", key, err)
	}
	if r.Slots() > math.MaxUint32 {
		return fmt.Errorf("show image %s: it is larger than 128 GiB", key)
	}
	f.images[tag] = &image{Reader: r, key: key, name: key, tag: tag}
	return nil
}

// shown reports whether an image is shown under a name. The caller holds mu.
func (f *FS) shown(name string, tag uint64) (bool, error) {
	i := f.images[tag]
	if i != nil && i.name != name {
		return false, fmt.Errorf("show image %s: its node ids are those of image %s: remove one of the two", name,
			i.name)
	}
	return i != nil, nil
}

// Remove ends the showing of an image, with its own owners and with mapped ones. No mount may need it any more.
func (f *FS) Remove(key string) { f.remove(func(i *image) bool { return i.key == key }) }

func (f *FS) remove(these func(i *image) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for tag, i := range f.images {
		if these(i) {
			delete(f.images, tag)
			f.files.forget(func(node uint64) bool { return node&^nidMask == imageBit|tag })
		}
	}
}

// at returns the image of a node and the position in it; nil if the node is of no image that is shown.
func (f *FS) at(node uint64) (*image, uint64) {
	if !isImage(node) {
		return nil, 0
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.images[node&^imageBit&^nidMask], node & nidMask
}

// isImage tells nodes of images from others.
func isImage(node uint64) bool { return node>>61 == 1 }

func (i *image) node(nid uint64) uint64 { return imageBit | i.tag | nid&nidMask }

// attr reads the attributes of a position.
func (i *image) attr(nid uint64) (fusewire.Attr, error) {
	n, err := i.Inode(nid)
	uid, gid := i.owner(n.UID, n.GID)
	return fusewire.Attr{
		Mode: n.Mode, Size: n.Size, Ino: nid, Links: n.Link, UID: uid, GID: gid, Mtime: n.Mtime, MtimeN: n.MtimeN,
		Rdev: n.Rdev,
	}, err
}

func (i *image) entry(nid uint64) (fusewire.Entry, error) {
	a, err := i.attr(nid)
	return fusewire.Entry{Node: i.node(nid), Attr: a, Valid: fusewire.Forever}, err
}

var folder = fusewire.Entry{
	Node: folderNode, Attr: fusewire.Attr{Mode: syscall.S_IFDIR | 0o555},
	Valid: fusewire.Forever,
}

// fault turns an error of an image into an errno, and logs it if none was lately.
func (f *FS) fault(i *image, nid uint64, err error) syscall.Errno {
	if err == nil {
		return 0
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if now := time.Now(); now.Sub(i.said) >= quiet {
		i.said = now
		attrs := []any{"image", i.key, "inode", nid}
		if f.cfg.Users != nil {
			attrs = append(attrs, f.cfg.Users(i.key)...)
		}
		f.cfg.Log.Error("composed image can't be read: remove the image and pull it again",
			append(attrs, "err", err)...)
	}
	return syscall.EIO
}

// Blocks is true for reads.
func (f *FS) Blocks(op fusewire.Op, node uint64) bool {
	if isImage(node) || node == folderNode {
		return op == fusewire.OpRead
	}
	return f.cfg.Objects.Blocks(op, node)
}

// Lookup finds names in images, and images by their key.
func (f *FS) Lookup(ctx context.Context, parent uint64, name []byte) (fusewire.Entry, syscall.Errno) {
	switch {
	case parent == fusewire.RootNode && string(name) == Folder:
		return folder, 0
	case parent == folderNode:
		return f.lookupImage(string(name))
	case !isImage(parent):
		return f.cfg.Objects.Lookup(ctx, parent, name)
	}
	i, nid := f.at(parent)
	if i == nil {
		return fusewire.Entry{}, syscall.ESTALE
	}
	child, found, err := i.Lookup(nid, name)
	if err != nil {
		return fusewire.Entry{}, f.fault(i, nid, err)
	}
	if !found {
		return fusewire.Entry{Valid: fusewire.Forever}, 0
	}
	e, err := i.entry(child)
	return e, f.fault(i, child, err)
}

func (f *FS) lookupImage(name string) (fusewire.Entry, syscall.Errno) {
	tag, err := tagOf(name)
	if key, mapping, is := strings.Cut(name, "."); is {
		_, tag = mapped(key, mapping)
	} else if err != nil {
		return fusewire.Entry{}, syscall.ENOENT
	}
	f.mu.RLock()
	i := f.images[tag]
	f.mu.RUnlock()
	if i == nil || i.name != name {
		return fusewire.Entry{}, syscall.ENOENT
	}
	e, err := i.entry(i.Root())
	return e, f.fault(i, i.Root(), err)
}

// Getattr returns a node's attributes. ESTALE means that its image is gone.
func (f *FS) Getattr(ctx context.Context, node uint64) (fusewire.Attr, syscall.Errno) {
	switch {
	case node == folderNode:
		return folder.Attr, 0
	case !isImage(node):
		return f.cfg.Objects.Getattr(ctx, node)
	}
	i, nid := f.at(node)
	if i == nil {
		return fusewire.Attr{}, syscall.ESTALE
	}
	a, err := i.attr(nid)
	return a, f.fault(i, nid, err)
}

// Readdir lists folders of images. The folder of the images seems empty.
func (f *FS) Readdir(ctx context.Context, node, from uint64, add func(string, fusewire.Entry) bool) syscall.Errno {
	switch {
	case node == folderNode:
		names := []string{".", ".."}
		for i := from; i < uint64(len(names)) && add(names[i], folder); i++ {
		}
		return 0
	case !isImage(node):
		return f.cfg.Objects.Readdir(ctx, node, from, add)
	}
	i, nid := f.at(node)
	if i == nil {
		return syscall.ESTALE
	}
	var failed error
	err := i.ReadDir(nid, from, func(name string, child uint64) bool {
		var e fusewire.Entry
		if e, failed = i.entry(child); failed != nil {
			return false
		}
		return add(name, e)
	})
	if err == nil {
		err = failed
	}
	return f.fault(i, nid, err)
}

// Readlink returns a symbolic link's target.
func (f *FS) Readlink(_ context.Context, node uint64) (string, syscall.Errno) {
	i, nid := f.at(node)
	if i == nil {
		return "", syscall.ESTALE
	}
	target, err := i.Readlink(nid)
	return target, f.fault(i, nid, err)
}

// hidden tells attributes that are instructions to overlayfs. It would take those of a layer below it for its own.
func hidden(name string) bool { return strings.HasPrefix(name, overlayfs.XattrPrefix) }

// Getxattr returns an extended attribute. Nodes outside images have none.
func (f *FS) Getxattr(_ context.Context, node uint64, name string) ([]byte, syscall.Errno) {
	i, nid := f.at(node)
	switch {
	case i == nil && isImage(node):
		return nil, syscall.ESTALE
	case i == nil || hidden(name):
		return nil, syscall.ENODATA
	}
	value, found, err := i.Xattr(nid, name)
	if err == nil && !found {
		return nil, syscall.ENODATA
	}
	return i.bound(name, value), f.fault(i, nid, err)
}

// Listxattr lists extended attributes.
func (f *FS) Listxattr(_ context.Context, node uint64) ([]string, syscall.Errno) {
	i, nid := f.at(node)
	switch {
	case i == nil && isImage(node):
		return nil, syscall.ESTALE
	case i == nil:
		return nil, 0
	}
	all, err := i.XattrNames(nid)
	names := all[:0]
	for _, name := range all {
		if !hidden(name) {
			names = append(names, name)
		}
	}
	return names, f.fault(i, nid, err)
}
