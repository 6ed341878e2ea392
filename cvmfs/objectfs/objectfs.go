// Package objectfs is the FUSE tree behind container root file systems: it brings in objects that are not on disk yet
// at the moment somebody opens them.
//
// An overlay looks for the content of a file, an object, in four folders in this order: the store, the gate, the fresh
// folder and the data folder. Two of them are ours:
//
//	gate/objects/<xx>/<object>   never holds anything
//	data/objects/<xx>/<object>   holds every object of the index
//
// The words used here:
//
//   - The gate is a folder in which looking for an object makes it arrive: the lookup fetches it, verified and whole,
//     into the store and links it into the fresh folder. Then it answers that there is nothing, which the kernel must
//     not remember; so the overlay goes on and finds an ordinary local file in the fresh folder. (Not in the store: it
//     has passed that already.) The next overlay finds it in the store and asks nobody.
//   - The data folder comes last. It serves what the gate has let pass: chunked objects too large to wait for, of which
//     only the chunks read are fetched, what the store has no room for within its limit, and objects that could not be
//     fetched. As the last folder decides which error a reader sees, failures show there when the file is read, as EIO,
//     or ENOSPC where the disk is full; the next read tries again.
//   - Neighbours are the objects next to one in the order of the image's folders. Every lookup in the gate asks for
//     some of them, too: a program that opens one file of a folder mostly opens others of it. They are kept out of the
//     store's folder until the gate is asked for them, which tells which are used.
//
// Folders list nothing, though names in them are found: nobody needs listings of what an image may hold.
//
// Node ids are fixed numbers for folders and keyed hashes of the object's name for objects, so that a server that
// succeeds another one on the same mount understands its requests.
package objectfs

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/fusewire"
)

// The folders to give to an overlay as data-only layers, below the mount.
const (
	Gate = "gate"
	Data = "data"
)

// Config says what to serve; Index and Store are needed.
type Config struct {
	Index     *objects.Index
	Store     *objects.Store
	GateLimit int64 // size in bytes above which the gate does not wait for a chunked object; 64 KiB
	InPart    int64 // as objects.Config.InPart: above, it waits for none
	Log       *slog.Logger
	// Users reports what an object is needed for, as attributes of a log line; nil if nobody can tell.
	Users func(objects.Ref) []any
}

// gateLimit is what is better fetched at once than page by page. Files from there to 1 MiB have chunks only where a
// start profile says that some of them aren't read (ADR 38).
const gateLimit = 64 << 10

// FS is the tree; it answers the requests of one mount.
type FS struct {
	cfg      Config
	failures failures
}

// New makes the tree.
func New(cfg Config) *FS {
	if cfg.GateLimit <= 0 {
		cfg.GateLimit = gateLimit
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &FS{cfg: cfg}
}

var _ fusewire.Prompt = (*FS)(nil)

// Nodes of folders. Each tree's 256 folders of objects follow its first one; objects have bit 62 set.
const (
	gateNode    = 2
	dataNode    = 3
	gateObjects = 4
	dataObjects = 5
	gateFirst   = 0x100
	dataFirst   = 0x200
	foldersEnd  = 0x300
)

func isFolder(node uint64) bool {
	return node >= fusewire.RootNode && node <= dataObjects || node >= gateFirst && node < foldersEnd
}

func folderEntry(node uint64) fusewire.Entry {
	return fusewire.Entry{Node: node, Attr: fusewire.Attr{Mode: syscall.S_IFDIR | 0o555}, Valid: fusewire.Forever}
}

func objectAttr(r objects.Ref) fusewire.Attr {
	return fusewire.Attr{Mode: syscall.S_IFREG | 0o444, Size: r.Size()}
}

// subfolder finds a folder in a folder.
func subfolder(folder uint64, name string) (uint64, bool) {
	switch {
	case folder == fusewire.RootNode && name == Gate:
		return gateNode, true
	case folder == fusewire.RootNode && name == Data:
		return dataNode, true
	case folder == gateNode && name == "objects":
		return gateObjects, true
	case folder == dataNode && name == "objects":
		return dataObjects, true
	case folder == gateObjects || folder == dataObjects:
		n, ok := twoHex(name)
		return (folder-gateObjects+1)*gateFirst + n, ok
	}
	return 0, false
}

// twoHex reads two lower-case hex digits.
func twoHex(s string) (n uint64, ok bool) {
	if len(s) != 2 {
		return 0, false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			n = n<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}

// Blocks is true for what may wait for the network: lookups at the gate, and reads.
func (f *FS) Blocks(op fusewire.Op, node uint64) bool {
	return op == fusewire.OpRead || op == fusewire.OpLookup && node >= gateFirst && node < dataFirst
}

// Lookup finds folders and, in the data tree, objects. In the gate tree it makes the object arrive and finds nothing.
func (f *FS) Lookup(ctx context.Context, folder uint64, name []byte) (fusewire.Entry, syscall.Errno) {
	if folder < gateFirst {
		if n, ok := subfolder(folder, string(name)); ok {
			return folderEntry(n), 0
		}
		return fusewire.Entry{}, syscall.ENOENT
	}
	r, ok := f.cfg.Index.Lookup(string(name))
	if prefix, hex := twoHex(string(name[:min(2, len(name))])); !ok || !hex || prefix != folder&0xff ||
		folder >= foldersEnd {
		return fusewire.Entry{}, syscall.ENOENT
	}
	if folder < dataFirst {
		return fusewire.Entry{}, f.arrive(ctx, r)
	}
	return fusewire.Entry{Node: r.Node(), Attr: objectAttr(r), Valid: fusewire.Forever}, 0
}

// arrive makes an object and neighbours of it arrive. It gives ENOENT whether it could or not, so that the data folder
// decides what a reader sees, or EINTR.
func (f *FS) arrive(ctx context.Context, r objects.Ref) syscall.Errno {
	if f.large(r) {
		f.cfg.Store.Near(r)
		return syscall.ENOENT
	}
	err := f.cfg.Store.FetchNear(ctx, r)
	if err == nil {
		err = f.cfg.Store.LinkFresh(r)
	}
	switch {
	case err == nil || errors.Is(err, objects.ErrLimit): // at the limit the data folder serves it
	case ctx.Err() != nil:
		return syscall.EINTR
	default:
		f.failed(r, err)
	}
	return syscall.ENOENT
}

// large reports whether the gate does not wait for this object. One without chunks can only be verified whole: there is
// nothing to gain by reading it through the data folder, but that its reads are seen.
func (f *FS) large(r objects.Ref) bool {
	return r.Chunked() && r.Size() > f.cfg.GateLimit || f.cfg.InPart > 0 && r.Size() > f.cfg.InPart
}

// Getattr knows folders and the objects of the index. ESTALE means that the image an object belonged to is gone.
func (f *FS) Getattr(_ context.Context, node uint64) (fusewire.Attr, syscall.Errno) {
	if isFolder(node) {
		return folderEntry(node).Attr, 0
	}
	r, ok := f.cfg.Index.Node(node)
	if !ok {
		return fusewire.Attr{}, syscall.ESTALE
	}
	return objectAttr(r), 0
}

// ReadNow is Read of what is here of an object that is not here as a whole.
func (f *FS) ReadNow(node uint64, p []byte, off int64) (int, bool) {
	r, ok := f.cfg.Index.Node(node)
	if !ok {
		return 0, false
	}
	return f.cfg.Store.ReadNow(r, p[:max(0, min(int64(len(p)), r.Size()-off))], off)
}

// Read reads an object's content, which is fetched as far as needed. It never gives less than the object holds there:
// the kernel would take the rest for NUL bytes.
func (f *FS) Read(ctx context.Context, node uint64, p []byte, off int64) (int, syscall.Errno) {
	r, ok := f.cfg.Index.Node(node)
	switch {
	case isFolder(node):
		return 0, syscall.EISDIR
	case !ok:
		return 0, syscall.ESTALE
	case off >= r.Size():
		return 0, 0
	}
	if errno := f.failures.fresh(node, time.Now()); errno != 0 && !f.large(r) && !f.cfg.Store.Has(r) {
		return 0, errno // the gate has just tried; so may the kernel's read-ahead have
	}
	p = p[:min(int64(len(p)), r.Size()-off)]
	n, err := f.cfg.Store.ReadAt(ctx, r, p, off)
	switch {
	case n == len(p): // ReadAt may say io.EOF with the last byte
		return n, 0
	case ctx.Err() != nil:
		return 0, syscall.EINTR
	case err == nil:
		err = errShort
	}
	f.failed(r, err)
	return 0, errnoOf(err)
}

// errnoOf is what readers get for an error.
func errnoOf(err error) syscall.Errno {
	if errors.Is(err, syscall.ENOSPC) {
		return syscall.ENOSPC
	}
	return syscall.EIO
}

var errShort = errors.New("the store gave less than was asked for")

// Readdir lists the two trees in the root, and nothing elsewhere.
func (f *FS) Readdir(_ context.Context, node, from uint64, add func(string, fusewire.Entry) bool) syscall.Errno {
	if !isFolder(node) {
		return syscall.ENOTDIR
	}
	names := []string{".", "..", Gate, Data}
	nodes := []uint64{node, fusewire.RootNode, gateNode, dataNode}
	if node != fusewire.RootNode {
		names = names[:2]
	}
	for i := from; i < uint64(len(names)) && add(names[i], folderEntry(nodes[i])); i++ {
	}
	return 0
}

// failed notes that an object could not be fetched or read. It logs that for each object at most once a minute, and for
// all together no more than mostLines times; a line says how many failures before it were left out.
func (f *FS) failed(r objects.Ref, err error) {
	log, leftOut := f.failures.add(r.Node(), errnoOf(err), time.Now())
	if !log {
		return
	}
	attrs := []any{"object", r.Name(), "repo", r.Repo(), "full", errnoOf(err) == syscall.ENOSPC}
	if f.cfg.Users != nil {
		attrs = append(attrs, f.cfg.Users(r)...)
	}
	attrs = append(append(attrs, from(err)...), "err", err, "remedy", remedy(err))
	if leftOut > 0 {
		attrs = append(attrs, "left_out", leftOut)
	}
	f.cfg.Log.Error("object can't be read", attrs...)
}
