package erofs

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"golang.org/x/sys/unix"
)

// Numbers of the kernel's fs/erofs/erofs_fs.h.
const (
	superMagic     = 0xe0f5e1e2
	compatChecksum = 0x1 // the superblock has a checksum
	compatMtime    = 0x2 // the time of an inode is its mtime
	incompatChunks = 0x4 // there are files with maps of chunks

	layoutPlain   = 0
	layoutInline  = 2
	layoutChunked = 4
	nullAddress   = 0xffffffff
)

const (
	checksumOffset = 4       // in the superblock
	flushSize      = 1 << 16 // bytes collected before they are written
)

// errChanged is given when the tree has not the size it had when its image was planned.
var errChanged = errors.New("the tree changed meanwhile")

// stream is the image as far as it is written. The first error sticks.
type stream struct {
	w    io.Writer
	buf  []byte
	done uint64 // bytes given to w
	err  error
}

func (s *stream) pos() uint64 { return s.done + uint64(len(s.buf)) }

// padTo fills up with zeros to an offset of the image.
func (s *stream) padTo(pos uint64) {
	if s.err == nil && s.pos() > pos {
		s.err = errChanged
	}
	for s.err == nil && s.pos() < pos {
		s.buf = append(s.buf, make([]byte, min(pos-s.pos(), blockSize))...)
		s.flush(flushSize)
	}
}

// flush writes what is buffered if it is at least so many bytes. With the first ones, which are no less than a block,
// goes the superblock; its checksum covers all of its block behind the 1024 bytes that belong to boot loaders.
func (s *stream) flush(least int) {
	if s.err != nil || len(s.buf) < least {
		return
	}
	if s.done == 0 {
		sum := ^crc32.Checksum(s.buf[superOffset:blockSize], crc32.MakeTable(crc32.Castagnoli))
		binary.LittleEndian.PutUint32(s.buf[superOffset+checksumOffset:], sum)
	}
	_, s.err = s.w.Write(s.buf)
	s.done += uint64(len(s.buf))
	s.buf = s.buf[:0]
}

// write encodes the image that place has planned.
func (im *image) write(w io.Writer, uuid [16]byte) error {
	s := &stream{w: w, buf: make([]byte, 0, 2*flushSize)}
	s.padTo(superOffset)
	s.buf = im.appendSuper(s.buf, uuid)
	im.writeInodes(s)
	s.padTo(im.contentPos)
	im.writeContent(s)
	s.padTo(im.sharedPos)
	for _, x := range im.shared.keys {
		s.buf = x.appendTo(s.buf)
		s.flush(flushSize)
	}
	s.padTo(im.end)
	s.flush(1)
	return s.err
}

// appendSuper appends struct erofs_super_block.
func (im *image) appendSuper(b []byte, uuid [16]byte) []byte {
	le := binary.LittleEndian
	end := len(b) + superSize
	b = le.AppendUint32(b, superMagic)
	b = le.AppendUint32(b, 0) // the checksum, see flush
	b = le.AppendUint32(b, compatChecksum|compatMtime)
	b = append(b, blockBits, 0)
	b = le.AppendUint16(b, uint16(im.inodes[0].nid)) // within the first two blocks
	b = le.AppendUint64(b, uint64(len(im.inodes)))
	b = le.AppendUint64(b, uint64(im.epoch.sec))
	b = le.AppendUint32(b, im.epoch.nsec)
	b = le.AppendUint32(b, uint32(im.end/blockSize))
	b = le.AppendUint32(b, 0) // the block from which nids count
	b = le.AppendUint32(b, uint32(im.sharedPos/blockSize))
	b = append(b, uuid[:]...)
	b = append(b, make([]byte, 16)...) // the volume's name
	b = le.AppendUint32(b, incompatChunks)
	return append(b, make([]byte, end-len(b))...)
}

// writeInodes writes every inode with its attributes and what of its content, or of its map, follows it.
func (im *image) writeInodes(s *stream) {
	block := uint32(im.contentPos / blockSize)
	var ids []uint32
	var own []Xattr
	for i, d := range im.all() {
		n := &im.inodes[i]
		s.padTo(n.nid * slotSize)
		plain := n.plainBlocks(d)
		s.buf = im.appendInode(s.buf, uint32(i), n.size(d), block)
		block += plain
		ids, own = im.shared.split(n.node.Xattrs, ids[:0], own[:0])
		s.buf = appendXattrs(s.buf, ids, own)
		switch {
		case n.is(unix.S_IFREG):
			_, chunks := chunking(n.size(nil))
			for range chunks {
				s.buf = binary.LittleEndian.AppendUint32(s.buf, nullAddress)
			}
		case n.inline && d != nil:
			s.buf = im.appendDirents(s.buf, d, d.last, d.len())
		case n.inline:
			s.buf = append(s.buf, n.node.Target...)
		}
		s.flush(flushSize)
	}
}

// plainBlocks is the number of blocks of content that don't follow the inode.
func (n *inode) plainBlocks(d *dir) uint32 {
	if d == nil && !n.is(unix.S_IFLNK) {
		return 0
	}
	size := n.size(d)
	if n.inline {
		return uint32(size / blockSize)
	}
	return uint32(align(size, blockSize) / blockSize)
}

// appendInode appends struct erofs_inode_compact or erofs_inode_extended. The block is where plain content begins.
func (im *image) appendInode(b []byte, i uint32, size uint64, block uint32) []byte {
	le := binary.LittleEndian
	n := &im.inodes[i]
	layout, info := n.layout(size, block)
	if n.extended {
		b = le.AppendUint16(b, layout<<1|1)
	} else {
		b = le.AppendUint16(b, layout<<1)
	}
	b = le.AppendUint16(b, n.icount)
	b = le.AppendUint16(b, uint16(n.node.Mode))
	if !n.extended {
		b = le.AppendUint16(b, uint16(n.nlink))
		b = le.AppendUint32(b, uint32(size))
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, info)
		b = le.AppendUint32(b, i+1) // for 32-bit stat
		b = le.AppendUint16(b, uint16(n.node.UID))
		b = le.AppendUint16(b, uint16(n.node.GID))
		return le.AppendUint32(b, 0)
	}
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, size)
	b = le.AppendUint32(b, info)
	b = le.AppendUint32(b, i+1)
	b = le.AppendUint32(b, n.node.UID)
	b = le.AppendUint32(b, n.node.GID)
	b = le.AppendUint64(b, uint64(n.node.Mtime))
	b = le.AppendUint32(b, n.node.MtimeN)
	b = le.AppendUint32(b, n.nlink)
	return append(b, make([]byte, 16)...)
}

// layout is the layout of the content of n, and the word i_u that goes with it.
func (n *inode) layout(size uint64, block uint32) (layout uint16, info uint32) {
	switch n.node.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if size == 0 {
			return layoutPlain, 0
		}
		chunkBits, _ := chunking(size)
		return layoutChunked, uint32(chunkBits)
	case unix.S_IFCHR, unix.S_IFBLK:
		return layoutPlain, encodeDevice(n.node.Rdev)
	case unix.S_IFDIR, unix.S_IFLNK:
		if n.inline {
			return layoutInline, block
		}
		return layoutPlain, block
	}
	return layoutPlain, 0
}

// encodeDevice is new_encode_dev of the kernel's include/linux/kdev_t.h.
func encodeDevice(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// writeContent writes the plain blocks of folders and symbolic links.
func (im *image) writeContent(s *stream) {
	for i, d := range im.all() {
		n := &im.inodes[i]
		switch {
		case d != nil:
			im.writeDirents(s, n, d)
		case n.is(unix.S_IFLNK) && !n.inline:
			s.buf = append(s.buf, n.node.Target...)
			s.padTo(align(s.pos(), blockSize))
		}
	}
}

// writeDirents writes the plain blocks of a folder.
func (im *image) writeDirents(s *stream, n *inode, d *dir) {
	end := d.len()
	if n.inline {
		end = d.last
	}
	for from := 0; from < end; {
		to := d.blockEnd(from)
		s.buf = im.appendDirents(s.buf, d, from, to)
		s.padTo(align(s.pos(), blockSize))
		s.flush(flushSize)
		from = to
	}
}
