// Package erofs writes and reads EROFS images that hold the metadata of a tree and none of its content.
//
// EROFS is the kernel's read-only file system for images. Such an image, mounted below overlayfs, gives names,
// attributes and extended attributes at the kernel's own speed, while the content of files comes from elsewhere:
// overlayfs follows the attribute trusted.overlay.redirect of a file into a data-only layer. The format is the one of
// the kernel's fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst; the kernels meant are 6.12 (which mounts an
// image from a plain file) and later, though nothing is used that 5.15 doesn't know.
//
// The words used here:
//
//   - A block is 4096 bytes. An image is a whole number of them.
//   - A slot is 32 bytes. An inode begins at a slot, and its nid, the number of that slot counted from the beginning of
//     the image, is the inode number that stat(2) tells.
//   - A compact inode takes one slot, an extended one two. The compact one has no time of its own: it has the image's
//     epoch.
//   - An inode's extended attributes follow it; those that stand on several inodes are shared: written once, in an area
//     of their own, and referred to by number.
//   - A dirent is a folder's record of one name. Dirents are sorted by name within a block and from block to block.
//   - Content whose last, partial block follows the inode (and its attributes) is inline; otherwise it is plain.
//   - A hole is a regular file all of whose content is absent: it has a size and reads as zeros. Every file that isn't
//     empty is one. Its map consists of one null address a chunk, a chunk being up to 8 TiB.
//
// An image is laid out as: superblock, inodes in the order of a walk (all entries of a folder side by side, as whoever
// lists a folder goes on to ask for their attributes), blocks of large folders and long symbolic links, shared
// attributes.
package erofs

import (
	"crypto/sha256"
	"fmt"
	"io"
)

// MaxFileSize is the size in bytes of the largest file an image takes: 8 PiB, whose map of 1,024 addresses is the most
// that one entry of a tree can make a writer write for its size alone.
const MaxFileSize = 1 << 53

// Node is a file of any kind. A node that stands under several names is one inode with as many hard links.
type Node struct {
	Mode     uint32  // type and permissions, as st_mode
	UID, GID uint32  // owner
	Size     int64   // of a regular file, 0 to MaxFileSize; of no meaning elsewhere
	Mtime    int64   // seconds since 1970, negative before
	MtimeN   uint32  // nanoseconds on top of Mtime, below 1e9
	Rdev     uint64  // of a device: its number, as st_rdev
	Target   string  // of a symbolic link: 1 to 4095 bytes
	Xattrs   []Xattr // in any order
	Children []Child // of a folder, in any order
}

// Xattr is an extended attribute under its full name: user.*, trusted.*, security.*, system.posix_acl_access or
// system.posix_acl_default. The value has at most 65,535 bytes.
type Xattr struct {
	Name, Value string
}

// Child is an entry of a folder.
type Child struct {
	Name string
	Node *Node
}

// Options are what of an image isn't given by the tree.
type Options struct {
	UUID [16]byte // the file system's; zero: made from the image's content, at the price of encoding the image twice
}

// Stats reports what was written.
type Stats struct {
	Inodes       int
	Compact      int   // inodes of 32 bytes
	SharedXattrs int   // attributes written once for several inodes
	Blocks       int64 // of 4096 bytes
	Size         int64 // bytes
}

// NodeError is a fault of the tree: an entry that can't stand in an image. Nothing was written.
type NodeError struct {
	Path   string // "/" for the root; cut at the left when it is very long
	Reason string
}

func (e *NodeError) Error() string { return fmt.Sprintf("erofs: %q: %s", e.Path, e.Reason) }

// Write writes the image of the tree below root, in sequence. Equal trees and options give equal bytes, whatever the
// order of children and attributes. The tree is only read; it must not change meanwhile. The error is a *NodeError
// where the tree is at fault, or else the one w gave.
func Write(w io.Writer, root *Node, opt Options) (Stats, error) {
	im, err := scan(root)
	if err != nil {
		return Stats{}, err
	}
	im.share()
	if err := im.place(); err != nil {
		return Stats{}, err
	}
	if opt.UUID == ([16]byte{}) {
		if opt.UUID, err = im.contentUUID(); err != nil {
			return Stats{}, err
		}
	}
	if err := im.write(w, opt.UUID); err != nil {
		return Stats{}, fmt.Errorf("erofs: write image: %w", err)
	}
	return im.stats(), nil
}

// contentUUID makes a UUID (version 8 of RFC 9562) from the image's bytes as they are without one.
func (im *image) contentUUID() (id [16]byte, err error) {
	h := sha256.New()
	if err := im.write(h, id); err != nil {
		return id, fmt.Errorf("erofs: make the image's UUID: %w", err)
	}
	copy(id[:], h.Sum(nil))
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id, nil
}

func (im *image) stats() Stats {
	s := Stats{
		Inodes:       len(im.inodes),
		SharedXattrs: len(im.shared.keys),
		Blocks:       int64(im.end / blockSize),
		Size:         int64(im.end),
	}
	for i := range im.inodes {
		if !im.inodes[i].extended {
			s.Compact++
		}
	}
	return s
}
