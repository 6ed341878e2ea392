package erofs

import (
	"errors"
	"math"

	"golang.org/x/sys/unix"
)

const (
	blockBits = 12
	blockSize = 1 << blockBits
	slotSize  = 32

	superOffset = 1024
	superSize   = 128

	compactSize  = 32
	extendedSize = 64

	maxChunkBits = 31 // of a chunk, in blocks
)

// place returns every inode its slot, and the areas behind the inodes theirs.
func (im *image) place() error {
	pos := uint64(superOffset + superSize)
	content := uint64(0)
	var ids []uint32
	var own []Xattr
	for i, d := range im.all() {
		n := &im.inodes[i]
		ids, own = im.shared.split(n.node.Xattrs, ids[:0], own[:0])
		attrs := icount(xattrSize(ids, own))
		if attrs > maxIcount {
			return im.tooManyXattrs(i)
		}
		n.icount = uint16(attrs)
		size := n.size(d)
		n.extended = im.needsExtended(n, size)
		pos = align(pos, slotSize)
		head := n.headSize()
		if n.is(unix.S_IFREG) {
			_, chunks := chunking(size)
			head += 4 * chunks
		}
		var tail uint64
		if d != nil || n.is(unix.S_IFLNK) {
			var pad uint64
			pad, tail = inlineAt(pos, head, size%blockSize)
			n.inline = tail > 0
			pos += pad
			content += align(size-tail, blockSize)
		}
		n.nid = pos / slotSize
		pos += head + tail
	}
	im.contentPos = align(pos, blockSize)
	im.sharedPos = im.contentPos + content
	im.end = align(im.sharedPos+im.shared.size, blockSize)
	if im.end/blockSize > math.MaxUint32 {
		return errors.New("erofs: the image would be larger than 16 TiB; divide the tree")
	}
	return nil
}

// inlineAt decides about a tail that would follow an inode at pos with a head of so many bytes. All three must lie in
// one block. It gives the padding needed before the inode, and the tail, or zeros where a block of its own costs less.
func inlineAt(pos, head, tail uint64) (pad, inline uint64) {
	if tail == 0 || head+tail > blockSize {
		return 0, 0
	}
	if pos%blockSize+head+tail > blockSize {
		pad = blockSize - pos%blockSize
	}
	if pad+tail > blockSize {
		return 0, 0
	}
	return pad, tail
}

// needsExtended reports whether a compact inode has no room for the attributes of n.
func (im *image) needsExtended(n *inode, size uint64) bool {
	return n.node.UID > math.MaxUint16 || n.node.GID > math.MaxUint16 || n.nlink > math.MaxUint16 ||
		size > math.MaxUint32 ||
		im.epoch != timestamp{n.node.Mtime, n.node.MtimeN}
}

// size is i_size. The folder must be given if n is one.
func (n *inode) size(d *dir) uint64 {
	switch n.node.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return d.size
	case unix.S_IFREG:
		return uint64(n.node.Size)
	case unix.S_IFLNK:
		return uint64(len(n.node.Target))
	}
	return 0
}

// headSize is the size of the inode and its attributes.
func (n *inode) headSize() uint64 {
	if n.extended {
		return extendedSize + n.xattrBytes()
	}
	return compactSize + n.xattrBytes()
}

// chunking divides a file into as few chunks as possible: the size of a chunk as the exponent of a number of blocks,
// and the number of chunks.
func chunking(size uint64) (chunkBits uint16, chunks uint64) {
	for chunkBits < maxChunkBits && size > blockSize<<chunkBits {
		chunkBits++
	}
	return chunkBits, align(size, blockSize<<chunkBits) >> (blockBits + chunkBits)
}

// tooManyXattrs is the error for an inode whose attributes don't fit. It is named by one of its links.
func (im *image) tooManyXattrs(i int) error {
	for d := range im.dirs {
		for _, c := range im.dirs[d].children {
			if int(im.index[c.Node]) == i {
				return im.fault(uint32(d), c.Name, xattrsTooLong)
			}
		}
	}
	return im.fault(0, "", xattrsTooLong)
}

func align(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }
