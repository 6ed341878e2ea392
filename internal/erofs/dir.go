package erofs

import (
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const direntSize = 12 // of struct erofs_dirent, without the name

// dir is a folder. Its dirents are its children and "." and "..", all in one order.
type dir struct {
	name     string // in its parent
	parent   uint32 // position in image.dirs; the root is its own
	inode    uint32
	children []Child // sorted
	dot      int     // position of "." among the dirents
	dotdot   int
	last     int // the dirent that begins the last block
	size     uint64
}

// sort enters the children. The slice given is left as it is.
func (d *dir) sort(children []Child) {
	byName := func(a, b Child) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(children, byName) {
		children = slices.Clone(children)
		slices.SortFunc(children, byName)
	}
	d.children = children
	find := func(name string) int {
		i, _ := slices.BinarySearchFunc(children, Child{Name: name}, byName)
		return i
	}
	d.dot, d.dotdot = find("."), find("..")+1
}

// pack divides the dirents into blocks.
func (d *dir) pack() {
	for next := 0; next < d.len(); {
		if next > 0 {
			d.size += blockSize
		}
		d.last = next
		next = d.blockEnd(next)
	}
	d.size += uint64(d.used(d.last, d.len()))
}

func (d *dir) len() int { return len(d.children) + 2 }

// at is a dirent. The node of "." and ".." is nil.
func (d *dir) at(i int) Child {
	switch {
	case i == d.dot:
		return Child{Name: "."}
	case i == d.dotdot:
		return Child{Name: ".."}
	case i > d.dotdot:
		return d.children[i-2]
	case i > d.dot:
		return d.children[i-1]
	}
	return d.children[i]
}

// blockEnd is the first dirent that doesn't fit in the block that begins with dirent from.
func (d *dir) blockEnd(from int) int {
	room := blockSize
	for i := from; i < d.len(); i++ {
		if room -= direntSize + len(d.at(i).Name); room < 0 {
			return i
		}
	}
	return d.len()
}

// used is the number of bytes of some dirents in one block.
func (d *dir) used(from, to int) int {
	n := 0
	for i := from; i < to; i++ {
		n += direntSize + len(d.at(i).Name)
	}
	return n
}

// appendDirents appends dirents of one block: first the records, then the names.
func (im *image) appendDirents(b []byte, d *dir, from, to int) []byte {
	nameOff := (to - from) * direntSize
	for i := from; i < to; i++ {
		c := d.at(i)
		in := d.inode
		switch {
		case c.Node != nil:
			in = im.index[c.Node]
		case i == d.dotdot:
			in = im.dirs[d.parent].inode
		}
		b = binary.LittleEndian.AppendUint64(b, im.inodes[in].nid)
		b = binary.LittleEndian.AppendUint16(b, uint16(nameOff))
		b = append(b, fileType(im.inodes[in].node.Mode), 0)
		nameOff += len(c.Name)
	}
	for i := from; i < to; i++ {
		b = append(b, d.at(i).Name...)
	}
	return b
}

// fileType is a type as dirents say it (include/linux/fs_types.h).
func fileType(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	}
	return 7 // symbolic link
}
