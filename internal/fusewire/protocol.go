package fusewire

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Op is the kind of a request, FUSE_LOOKUP and so on in the kernel's header.
type Op uint32

// The requests a read-only tree meets.
const (
	OpLookup      Op = 1
	OpForget      Op = 2
	OpGetattr     Op = 3
	OpReadlink    Op = 5
	OpOpen        Op = 14
	OpRead        Op = 15
	OpStatfs      Op = 17
	OpRelease     Op = 18
	OpGetxattr    Op = 22
	OpListxattr   Op = 23
	OpInit        Op = 26
	OpOpendir     Op = 27
	OpReaddir     Op = 28
	OpReleasedir  Op = 29
	OpInterrupt   Op = 36
	OpDestroy     Op = 38
	OpBatchForget Op = 42
	OpReaddirplus Op = 44
)

// RootNode is the node of the mount's root folder.
const RootNode = 1

// MaxName is the longest name of a folder's entry, bytes.
const MaxName = 255

// Sizes of the fixed structures, bytes.
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	initInSize    = 16 // through 7.35; later kernels send 64
	initOutSize   = 64
	readInSize    = 40
	xattrInSize   = 8
	attrSize      = 88
	entryOutSize  = 40 + attrSize
	attrOutSize   = 16 + attrSize
	openOutSize   = 16
	statfsOutSize = 80
	direntSize    = 24 // before the name
)

// requestSize is the length of a buffer for requests: the least the kernel accepts (FUSE_MIN_READ_BUFFER), enough since
// we let nobody write more than a page (fuse_dev_do_read in fs/fuse/dev.c).
const requestSize = 8192

// resentBit of a unique number tells that the request was read before, by a server that died (FUSE_UNIQUE_RESEND).
const resentBit = 1 << 63

var native = binary.NativeEndian

// header is struct fuse_in_header without the caller's ids, which nobody asks for.
type header struct {
	length uint32 // of the request with this header
	op     Op
	unique uint64
	node   uint64
	thread uint32 // that waits for it, in the PID namespace of who mounted; 0: it is not seen there
}

// parseRequest splits a request as read from the device. arg is a part of b.
func parseRequest(b []byte) (h header, arg []byte, err error) {
	if len(b) < inHeaderSize {
		return h, nil, fmt.Errorf("FUSE request of %d bytes, shorter than its header", len(b))
	}
	h = header{
		native.Uint32(b), Op(native.Uint32(b[4:])), native.Uint64(b[8:]), native.Uint64(b[16:]), native.Uint32(b[32:]),
	}
	if h.length < inHeaderSize || int64(h.length) > int64(len(b)) {
		return h, nil, fmt.Errorf("FUSE request %d gives its length as %d, but is %d bytes long", h.op, h.length,
			len(b))
	}
	return h, b[inHeaderSize:h.length], nil
}

// nameArg is the NUL-terminated name in arg.
func nameArg(arg []byte) ([]byte, syscall.Errno) {
	name, _, ok := bytes.Cut(arg, []byte{0})
	switch {
	case !ok || len(name) == 0:
		return nil, syscall.EINVAL
	case len(name) > MaxName:
		return nil, syscall.ENAMETOOLONG
	}
	return name, 0
}

// readArg is what READ, READDIR and READDIRPLUS ask for.
func readArg(arg []byte) (off uint64, size int, errno syscall.Errno) {
	if len(arg) < readInSize {
		return 0, 0, syscall.EINVAL
	}
	off, size = native.Uint64(arg[8:]), int(native.Uint32(arg[16:]))
	if off > math.MaxInt64 || size > MaxRead {
		return 0, 0, syscall.EINVAL
	}
	return off, size, 0
}

// sizeArg is what GETXATTR and LISTXATTR ask for: the size of the caller's buffer, 0 if it wants to know the size it
// needs.
func sizeArg(arg []byte) (size int, rest []byte, errno syscall.Errno) {
	if len(arg) < xattrInSize {
		return 0, nil, syscall.EINVAL
	}
	return int(native.Uint32(arg)), arg[xattrInSize:], 0
}

// putReply writes the header of a reply of n bytes (header included) or, if errno is not 0, of an error; it gives the
// reply's length.
func putReply(out []byte, unique uint64, n int, errno syscall.Errno) int {
	if errno != 0 {
		n = outHeaderSize
	}
	native.PutUint32(out, uint32(n))
	native.PutUint32(out[4:], uint32(-int32(errno)))
	native.PutUint64(out[8:], unique)
	return n
}

// putAttr writes struct fuse_attr.
func putAttr(b []byte, node uint64, a Attr) {
	clear(b[:attrSize])
	links := a.Links
	if links == 0 {
		links = 1
		if a.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			links = 2
		}
	}
	native.PutUint64(b, cmp.Or(a.Ino, node))
	native.PutUint64(b[8:], uint64(a.Size))
	native.PutUint64(b[16:], uint64(a.Size+511)/512)
	for i := range 3 {
		native.PutUint64(b[24+8*i:], uint64(a.Mtime))
		native.PutUint32(b[48+4*i:], a.MtimeN)
	}
	native.PutUint32(b[60:], a.Mode)
	native.PutUint32(b[64:], links)
	native.PutUint32(b[68:], a.UID)
	native.PutUint32(b[72:], a.GID)
	native.PutUint32(b[76:], encodeDevice(a.Rdev))
	native.PutUint32(b[80:], 4096)
}

// encodeDevice is new_encode_dev of the kernel's include/linux/kdev_t.h.
func encodeDevice(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// putEntry writes struct fuse_entry_out.
func putEntry(b []byte, e Entry) {
	clear(b[:40])
	native.PutUint64(b, e.Node)
	seconds := uint64(e.Valid / time.Second)
	native.PutUint64(b[16:], seconds)
	native.PutUint64(b[24:], seconds)
	putAttr(b[40:], e.Node, e.Attr)
}

// putStatfs writes struct fuse_statfs_out: block size and name length, all counts 0.
func putStatfs(b []byte) {
	clear(b[:statfsOutSize])
	native.PutUint32(b[40:], 4096)
	native.PutUint32(b[44:], MaxName)
	native.PutUint32(b[48:], 4096)
}

// direntWriter fills the reply to READDIR or READDIRPLUS, at most cap(out) bytes.
type direntWriter struct {
	out  []byte
	next uint64 // offset the following entry is at
	plus bool
}

// add appends one entry unless it doesn't fit; then it says false.
func (w *direntWriter) add(name string, e Entry) bool {
	fixed := direntSize
	if w.plus {
		fixed += entryOutSize
	}
	n := (fixed + len(name) + 7) &^ 7
	at := len(w.out)
	if len(name) > MaxName || at+n > cap(w.out) {
		return false
	}
	w.out = w.out[:at+n]
	b := w.out[at:]
	if w.plus {
		putEntry(b, e)
		b = b[entryOutSize:]
	}
	w.next++
	native.PutUint64(b, cmp.Or(e.Attr.Ino, e.Node))
	native.PutUint64(b[8:], w.next)
	native.PutUint32(b[16:], uint32(len(name)))
	native.PutUint32(b[20:], e.Attr.Mode>>12&15)
	clear(b[direntSize+copy(b[direntSize:], name):])
	return true
}
