package erofs

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"slices"
	"strings"
)

const (
	xattrHeaderSize = 12             // of struct erofs_xattr_ibody_header
	xattrEntrySize  = 4              // of struct erofs_xattr_entry, without name and value
	maxXattrName    = 255            // bytes, XATTR_NAME_MAX
	maxXattrValue   = math.MaxUint16 // bytes
	maxShared       = math.MaxUint8  // on one inode
	maxIcount       = math.MaxUint16

	headroom      = 4 << 10 // bytes of attributes that Check leaves for overlayfs' own
	xattrsTooLong = "the extended attributes together take more than 256 KiB"
)

// namespace is a beginning of attribute names that is written as one number (EROFS_XATTR_INDEX_*).
type namespace struct {
	prefix string
	index  byte
	whole  bool // the beginning is the whole name
}

func namespaces() [5]namespace {
	return [...]namespace{
		{"trusted.", 4, false},
		{"user.", 1, false},
		{"security.", 6, false},
		{"system.posix_acl_access", 2, true},
		{"system.posix_acl_default", 3, true},
	}
}

// namespaceOf finds the namespace of a name.
func namespaceOf(name string) (namespace, bool) {
	for _, ns := range namespaces() {
		if strings.HasPrefix(name, ns.prefix) && (len(name) == len(ns.prefix)) == ns.whole {
			return ns, true
		}
	}
	return namespace{}, false
}

// Storable tells the names of extended attributes an image can hold. Others are those of particular file systems
// (system.nfs4_acl, btrfs.compression, …), which say nothing to a container.
func Storable(name string) bool {
	_, ok := namespaceOf(name)
	return ok && len(name) <= maxXattrName && !strings.Contains(name, "\x00")
}

// check tells why an attribute can't stand in an image.
func (x *Xattr) check() string {
	_, ok := namespaceOf(x.Name)
	switch {
	case !ok || strings.Contains(x.Name, "\x00"):
		return fmt.Sprintf("extended attribute %.300q: only user.*, trusted.*, security.* and system.posix_acl_{access,default} are possible", x.Name)
	case len(x.Name) > maxXattrName:
		return fmt.Sprintf("extended attribute %.300q: the name has %d bytes, at most %d are possible", x.Name,
			len(x.Name), maxXattrName)
	case len(x.Value) > maxXattrValue:
		return fmt.Sprintf("extended attribute %q: the value has %d bytes, at most %d are possible", x.Name,
			len(x.Value), maxXattrValue)
	}
	return ""
}

// size is the number of bytes of the attribute's entry.
func (x *Xattr) size() int {
	ns, _ := namespaceOf(x.Name)
	return int(align(uint64(xattrEntrySize+len(x.Name)-len(ns.prefix)+len(x.Value)), 4))
}

// appendTo appends the attribute's entry.
func (x *Xattr) appendTo(b []byte) []byte {
	ns, _ := namespaceOf(x.Name)
	size := len(b) + x.size()
	b = append(b, byte(len(x.Name)-len(ns.prefix)), ns.index)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(x.Value)))
	b = append(b, x.Name[len(ns.prefix):]...)
	b = append(b, x.Value...)
	return append(b, make([]byte, size-len(b))...)
}

// sortedXattrs returns attributes in the order of their names.
func sortedXattrs(xs []Xattr) []Xattr {
	byName := func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(xs, byName) {
		xs = slices.Clone(xs)
		slices.SortFunc(xs, byName)
	}
	return xs
}

// checkXattrs tells why a node's attributes can't stand in an image.
func checkXattrs(xs []Xattr) string {
	xs = sortedXattrs(xs)
	for i := range xs {
		if reason := xs[i].check(); reason != "" {
			return reason
		}
		if i > 0 && xs[i-1].Name == xs[i].Name {
			return fmt.Sprintf("extended attribute %q is there twice", xs[i].Name)
		}
	}
	return ""
}

// shared are the attributes that stand on several inodes. Most attributes of a large tree stand on one only, so a
// filter of a few bits an attribute says which ones are worth being kept in a map.
type shared struct {
	seed        maphash.Seed
	seen, again bitset
	keys        []Xattr
	ids         map[Xattr]uint32 // offset in the area, in units of 4 bytes
	size        uint64           // of the area
}

// bitset is a power of two of bits.
type bitset []uint64

// set sets a bit, modulo the number of bits, and reports whether it was set.
func (b bitset) set(i uint32) bool {
	word, bit := &b[i/64%uint32(len(b))], uint64(1)<<(i%64)
	was := *word&bit != 0
	*word |= bit
	return was
}

func (b bitset) has(i uint32) bool { return b[i/64%uint32(len(b))]>>(i%64)&1 != 0 }

// filterKey puts equal attributes together. That unequal ones meet costs space in a map and nothing else.
func (s *shared) filterKey(x *Xattr) uint32 {
	return uint32(maphash.String(s.seed, x.Value)) + uint32(len(x.Name))*0x9e3779b1
}

// share finds the attributes that are to be shared and numbers them in the order in which they come first.
func (im *image) share() {
	s := &im.shared
	s.seed = maphash.MakeSeed()
	words := 1 << bits.Len(uint(im.xattrs/8))
	s.seen, s.again = make(bitset, words), make(bitset, words)
	for i := range im.inodes {
		for _, x := range im.inodes[i].node.Xattrs {
			if k := s.filterKey(&x); s.seen.set(k) {
				s.again.set(k)
			}
		}
	}
	counts := make(map[Xattr]int)
	for i := range im.inodes {
		for _, x := range im.inodes[i].node.Xattrs {
			if s.again.has(s.filterKey(&x)) {
				counts[x]++
			}
		}
	}
	s.ids = make(map[Xattr]uint32)
	for i := range im.inodes {
		for _, x := range sortedXattrs(im.inodes[i].node.Xattrs) {
			if s.again.has(s.filterKey(&x)) {
				s.number(&x, counts)
			}
		}
	}
}

// number returns an attribute a place in the area if it stands on several inodes and has none yet.
func (s *shared) number(x *Xattr, counts map[Xattr]int) {
	if _, done := s.ids[*x]; done || counts[*x] < 2 || s.size/4 > math.MaxUint32 {
		return
	}
	s.ids[*x] = uint32(s.size / 4)
	s.keys = append(s.keys, *x)
	s.size += uint64(x.size())
}

// id is the number of an attribute that is shared.
func (s *shared) id(x *Xattr) (uint32, bool) {
	if !s.again.has(s.filterKey(x)) {
		return 0, false
	}
	id, ok := s.ids[*x]
	return id, ok
}

// split divides an inode's attributes: numbers of shared ones, as many as it may have, and those that follow it.
func (s *shared) split(xs []Xattr, ids []uint32, own []Xattr) ([]uint32, []Xattr) {
	for _, x := range sortedXattrs(xs) {
		if id, ok := s.id(&x); ok && len(ids) < maxShared {
			ids = append(ids, id)
		} else {
			own = append(own, x)
		}
	}
	return ids, own
}

// xattrSize is the size of what follows an inode for its attributes, in bytes.
func xattrSize(ids []uint32, own []Xattr) int {
	if len(ids)+len(own) == 0 {
		return 0
	}
	n := xattrHeaderSize + 4*len(ids)
	for i := range own {
		n += own[i].size()
	}
	return n
}

// icount is a size of attributes as an inode says it. A whole header counts as one.
func icount(size int) int {
	if size == 0 {
		return 0
	}
	return (size-xattrHeaderSize)/4 + 1
}

// xattrBytes is the inverse of icount.
func (n *inode) xattrBytes() uint64 {
	if n.icount == 0 {
		return 0
	}
	return xattrHeaderSize + 4*uint64(n.icount-1)
}

// appendXattrs appends what follows an inode for its attributes.
func appendXattrs(b []byte, ids []uint32, own []Xattr) []byte {
	if len(ids)+len(own) == 0 {
		return b
	}
	b = append(b, 0, 0, 0, 0) // the name filter, which is a feature not used
	b = append(b, byte(len(ids)), 0, 0, 0, 0, 0, 0, 0)
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	for i := range own {
		b = own[i].appendTo(b)
	}
	return b
}
