package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"runtime"
	"runtime/debug"
	"sort"

	"golang.org/x/sys/unix"
)

// ErrCorrupt means that an image is not one that Write has written, or is damaged.
var ErrCorrupt = errors.New("damaged EROFS image")

// Reader reads an image that Write has written, any part of it at any time. It trusts nothing it reads: a damaged image
// gives ErrCorrupt, or another tree than the one written, but never a panic. It is safe for concurrent use.
type Reader struct {
	mem    []byte
	root   uint64
	epoch  timestamp
	shared uint64 // offset of the shared attributes
	uuid   [16]byte
}

// Inode is what stat(2) shows of a file.
type Inode struct {
	Nid                  uint64
	Mode, UID, GID, Link uint32 // Link is the number of names
	Size                 int64
	Mtime                int64
	MtimeN               uint32
	Rdev                 uint64 // of a device, as st_rdev
}

// OpenReader maps an image. The mapping goes with the Reader, which needs no closing.
func OpenReader(path string) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	if info.Size() < blockSize || int64(int(info.Size())) != info.Size() {
		return nil, fmt.Errorf("open image %s: %w: it has %d bytes", path, ErrCorrupt, info.Size())
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map image %s: %w", path, err)
	}
	r := &Reader{mem: mem}
	runtime.AddCleanup(r, func(mem []byte) { unix.Munmap(mem) }, mem) // the mapping is ours
	if err := r.begin(); err != nil {
		return nil, fmt.Errorf("open image %s: %w", path, err)
	}
	return r, nil
}

// NewReader reads an image in memory, which must not change.
func NewReader(image []byte) (*Reader, error) {
	r := &Reader{mem: image}
	if err := r.begin(); err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	return r, nil
}

// begin reads the superblock.
func (r *Reader) begin() (err error) {
	defer r.guard(debug.SetPanicOnFault(true), &err)
	if len(r.mem) < blockSize {
		return fmt.Errorf("%w: it has %d bytes", ErrCorrupt, len(r.mem))
	}
	le, b := binary.LittleEndian, r.mem[superOffset:blockSize]
	head := bytes.Clone(b)
	clear(head[checksumOffset : checksumOffset+4])
	switch {
	case le.Uint32(b) != superMagic:
		return fmt.Errorf("%w: no superblock", ErrCorrupt)
	case le.Uint32(b[checksumOffset:]) != ^crc32.Checksum(head, crc32.MakeTable(crc32.Castagnoli)):
		return fmt.Errorf("%w: checksum of the superblock", ErrCorrupt)
	case b[12] != blockBits || le.Uint32(b[40:]) != 0 || le.Uint32(b[80:])&^incompatChunks != 0:
		return fmt.Errorf("%w: of another writer", ErrCorrupt)
	case uint64(le.Uint32(b[36:]))*blockSize > uint64(len(r.mem)):
		return fmt.Errorf("%w: %d bytes of %d blocks are there", ErrCorrupt, len(r.mem), le.Uint32(b[36:]))
	}
	r.root = uint64(le.Uint16(b[14:]))
	r.epoch = timestamp{int64(le.Uint64(b[24:])), le.Uint32(b[32:])}
	r.shared = uint64(le.Uint32(b[44:])) * blockSize
	copy(r.uuid[:], b[48:])
	if n, err := r.inode(r.root); err != nil || !n.is(unix.S_IFDIR) {
		return errors.Join(fmt.Errorf("%w: the root is no folder", ErrCorrupt), err)
	}
	return nil
}

// guard turns the fault of a page that can't be read, as of a file cut short or a broken disk, into an error. Being
// called at the end it also keeps the mapping until then.
func (r *Reader) guard(before bool, err *error) {
	debug.SetPanicOnFault(before)
	p := recover()
	if p == nil {
		return
	}
	fault, ok := p.(interface {
		error
		Addr() uintptr
	})
	if !ok {
		panic(p)
	}
	*err = fmt.Errorf("%w: a part of its file can't be read (%w)", ErrCorrupt, fault)
}

// Root is the nid of the root folder.
func (r *Reader) Root() uint64 { return r.root }

// UUID is the file system's.
func (r *Reader) UUID() [16]byte { return r.uuid }

// Slots is the number of slots: nids are below it.
func (r *Reader) Slots() uint64 { return uint64(len(r.mem)) / slotSize }

// Inode reads an inode.
func (r *Reader) Inode(nid uint64) (i Inode, err error) {
	defer r.guard(debug.SetPanicOnFault(true), &err)
	n, err := r.inode(nid)
	return n.Inode, err
}

// stored is an inode as far as its reader needs it.
type stored struct {
	Inode
	layout uint16
	info   uint32
	xattrs []byte // what follows the inode for its attributes; may be empty
	tail   uint64 // offset of inline content
}

func (n *stored) is(kind uint32) bool { return n.Mode&unix.S_IFMT == kind }

// damaged is the error about an inode.
func damaged(nid uint64, what string) error {
	return fmt.Errorf("%w: inode %d: %s", ErrCorrupt, nid, what)
}

// bytes are n bytes at an offset; nil if they aren't all there.
func (r *Reader) bytes(off, n uint64) []byte {
	if off > uint64(len(r.mem)) || n > uint64(len(r.mem))-off {
		return nil
	}
	return r.mem[off : off+n : off+n]
}

func (r *Reader) inode(nid uint64) (n stored, err error) {
	if nid >= r.Slots() {
		return n, damaged(nid, "no such place")
	}
	le, off := binary.LittleEndian, nid*slotSize
	b := r.bytes(off, compactSize)
	format := le.Uint16(b)
	n.Nid, n.layout, n.Mode, n.info = nid, format>>1, uint32(le.Uint16(b[4:])), le.Uint32(b[16:])
	head := uint64(compactSize)
	if format&1 == 0 {
		n.Link, n.Size = uint32(le.Uint16(b[6:])), int64(le.Uint32(b[8:]))
		n.UID, n.GID = uint32(le.Uint16(b[24:])), uint32(le.Uint16(b[26:]))
		n.Mtime, n.MtimeN = r.epoch.sec, r.epoch.nsec
	} else {
		if b = r.bytes(off, extendedSize); b == nil {
			return n, damaged(nid, "cut off")
		}
		head = extendedSize
		n.Size, n.UID, n.GID = int64(le.Uint64(b[8:])), le.Uint32(b[24:]), le.Uint32(b[28:])
		n.Mtime, n.MtimeN, n.Link = int64(le.Uint64(b[32:])), le.Uint32(b[40:]), le.Uint32(b[44:])
	}
	if n.Size < 0 || n.Size > MaxFileSize || n.MtimeN >= second {
		return n, damaged(nid, "size or time")
	}
	attrs := inode{icount: le.Uint16(b[2:])}
	if n.xattrs = r.bytes(off+head, attrs.xattrBytes()); n.xattrs == nil {
		return n, damaged(nid, "attributes")
	}
	n.tail = off + head + attrs.xattrBytes()
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = unix.Mkdev(n.info>>8&0xfff, n.info&0xff|n.info>>12&^0xff)
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	case unix.S_IFDIR, unix.S_IFLNK:
		if n.layout != layoutPlain && n.layout != layoutInline || uint64(n.Size) > uint64(len(r.mem)) {
			return n, damaged(nid, "content")
		}
	default:
		return n, damaged(nid, "type")
	}
	return n, nil
}

// block is a block of the content of a folder or symbolic link; the last one may be short.
func (r *Reader) block(n *stored, i uint64) ([]byte, error) {
	size := min(uint64(n.Size)-i*blockSize, blockSize)
	off := (uint64(n.info) + i) * blockSize
	if n.layout == layoutInline && size < blockSize {
		off = n.tail
	}
	b := r.bytes(off, size)
	if b == nil {
		return nil, damaged(n.Nid, "content cut off")
	}
	return b, nil
}

// Readlink reads a symbolic link's target.
func (r *Reader) Readlink(nid uint64) (target string, err error) {
	defer r.guard(debug.SetPanicOnFault(true), &err)
	n, err := r.inode(nid)
	if err != nil {
		return "", err
	}
	if !n.is(unix.S_IFLNK) || n.Size == 0 || n.Size > maxTarget {
		return "", damaged(nid, "not a symbolic link")
	}
	b, err := r.block(&n, 0)
	return string(b), err
}

// folder is an inode that must be a folder's, and its number of blocks.
func (r *Reader) folder(nid uint64) (n stored, blocks uint64, err error) {
	n, err = r.inode(nid)
	if err == nil && !n.is(unix.S_IFDIR) {
		err = damaged(nid, "not a folder")
	}
	return n, align(uint64(n.Size), blockSize) / blockSize, err
}

// dirents are the records of a block of a folder.
type dirents struct {
	block []byte
	n     int
}

func (r *Reader) dirents(n *stored, i uint64) (dirents, error) {
	b, err := r.block(n, i)
	if err != nil {
		return dirents{}, err
	}
	if len(b) < direntSize {
		return dirents{}, damaged(n.Nid, "folder")
	}
	first := int(binary.LittleEndian.Uint16(b[8:]))
	if first == 0 || first%direntSize != 0 || first > len(b) {
		return dirents{}, damaged(n.Nid, "folder")
	}
	return dirents{b, first / direntSize}, nil
}

// name is a record's name; empty if it is damaged.
func (d dirents) name(i int) []byte {
	from, to := d.offset(i), len(d.block)
	if i+1 < d.n {
		to = d.offset(i + 1)
	}
	if from > to || to > len(d.block) || from < d.n*direntSize {
		return nil
	}
	name := d.block[from:to]
	if i+1 == d.n {
		name, _, _ = bytes.Cut(name, []byte{0}) // the block's padding
	}
	if len(name) > maxName {
		return nil
	}
	return name
}

func (d dirents) offset(i int) int { return int(binary.LittleEndian.Uint16(d.block[i*direntSize+8:])) }
func (d dirents) nid(i int) uint64 { return binary.LittleEndian.Uint64(d.block[i*direntSize:]) }

// Lookup finds a name in a folder; false if it isn't there.
func (r *Reader) Lookup(folder uint64, name []byte) (nid uint64, found bool, err error) {
	defer r.guard(debug.SetPanicOnFault(true), &err)
	n, blocks, err := r.folder(folder)
	if err != nil {
		return 0, false, err
	}
	var failed error
	after := sort.Search(int(blocks), func(i int) bool {
		d, err := r.dirents(&n, uint64(i))
		failed = errors.Join(failed, err)
		return err != nil || bytes.Compare(d.name(0), name) > 0
	})
	if failed != nil || after == 0 {
		return 0, false, failed
	}
	d, err := r.dirents(&n, uint64(after-1))
	if err != nil {
		return 0, false, err
	}
	i := sort.Search(d.n, func(i int) bool { return bytes.Compare(d.name(i), name) >= 0 })
	if i == d.n || !bytes.Equal(d.name(i), name) {
		return 0, false, nil
	}
	return d.nid(i), true, nil
}

// ReadDir lists a folder in the order of its names, "." and ".." included, from the entry with number from on; it ends
// when visit says false.
func (r *Reader) ReadDir(folder, from uint64, visit func(name string, nid uint64) bool) (err error) {
	defer r.guard(debug.SetPanicOnFault(true), &err)
	n, blocks, err := r.folder(folder)
	if err != nil {
		return err
	}
	for b := range blocks {
		d, err := r.dirents(&n, b)
		if err != nil {
			return err
		}
		for i := min(from, uint64(d.n)); i < uint64(d.n); i++ {
			name := string(d.name(int(i)))
			if name == "" {
				return damaged(folder, "name in the folder")
			}
			if !visit(name, d.nid(int(i))) {
				return nil
			}
		}
		from -= min(from, uint64(d.n))
	}
	return nil
}

// XattrNames lists the names of a file's extended attributes: the shared ones, then its own.
func (r *Reader) XattrNames(nid uint64) (names []string, err error) {
	defer r.guard(debug.SetPanicOnFault(true), &err)
	err = r.eachXattr(nid, func(name string, _ []byte) bool {
		names = append(names, name)
		return true
	})
	return names, err
}

// Xattr reads one extended attribute; false if the file hasn't got it.
func (r *Reader) Xattr(nid uint64, name string) (value []byte, found bool, err error) {
	defer r.guard(debug.SetPanicOnFault(true), &err)
	err = r.eachXattr(nid, func(n string, v []byte) bool {
		if found = n == name; found {
			value = bytes.Clone(v)
		}
		return !found
	})
	return value, found, err
}

func (r *Reader) eachXattr(nid uint64, visit func(name string, value []byte) bool) error {
	n, err := r.inode(nid)
	if err != nil || len(n.xattrs) == 0 {
		return err
	}
	ids := n.xattrs[xattrHeaderSize:]
	count := 4 * int(n.xattrs[4])
	if count > len(ids) {
		return damaged(nid, "attributes")
	}
	ids, own := ids[:count], ids[count:]
	for ; len(ids) > 0; ids = ids[4:] {
		at := r.shared + 4*uint64(binary.LittleEndian.Uint32(ids))
		if at > uint64(len(r.mem)) {
			return damaged(nid, "attributes")
		}
		x, ok := parseXattr(r.mem[at:])
		if !ok {
			return damaged(nid, "attributes")
		}
		if !visit(x.name(), x.value) {
			return nil
		}
	}
	for len(own) > 0 {
		x, ok := parseXattr(own)
		if !ok {
			return damaged(nid, "attributes")
		}
		if !visit(x.name(), x.value) {
			return nil
		}
		own = own[min(x.size, len(own)):]
	}
	return nil
}

// storedXattr is an attribute's entry.
type storedXattr struct {
	prefix      string
	rest, value []byte
	size        int // of the entry
}

func (x *storedXattr) name() string { return x.prefix + string(x.rest) }

func parseXattr(b []byte) (x storedXattr, ok bool) {
	if len(b) < xattrEntrySize {
		return x, false
	}
	rest, value := int(b[0]), int(binary.LittleEndian.Uint16(b[2:]))
	end := xattrEntrySize + rest + value
	if x.prefix, ok = prefixOf(b[1]); !ok || end > len(b) {
		return x, false
	}
	x.rest, x.value = b[xattrEntrySize:xattrEntrySize+rest], b[xattrEntrySize+rest:end]
	x.size = int(align(uint64(end), 4))
	return x, true
}

// prefixOf is the inverse of namespaceOf.
func prefixOf(index byte) (string, bool) {
	for _, ns := range namespaces() {
		if ns.index == index {
			return ns.prefix, true
		}
	}
	return "", false
}
