package catalog

import "cvmfs-graphdriver/cvmfs/hash"

// Entry is one row of a catalog: a file, folder, link or special file as stat(2) would show it.
type Entry struct {
	Name   string // last path component, any bytes but '/' and NUL; "" for the repository's root
	Mode   uint32 // st_mode: type and permission bits
	UID    uint32
	GID    uint32
	Size   int64  // plain size in bytes; 0 for devices
	Rdev   uint64 // device number in Linux' makedev encoding, block and character devices only
	Mtime  int64  // seconds since 1970
	MtimeN int32  // nanoseconds; 0 where the catalog has none
	Nlink  uint32 // ≥ 1
	Group  uint32 // hard-link group, numbered per catalog; 0: not in one
	Target string // symbolic link: the target as stored, not expanded
	Flags  Flags
	Xattrs []Xattr // sorted by name

	// Content of a regular file: a single object, or the chunks in order. Both are empty for other types.
	Digest      hash.Digest
	Compression hash.Compression
	Chunks      []Chunk
}

// Chunk is a piece of a file, an object of its own.
type Chunk struct {
	Offset int64 // in the plain file, bytes
	Size   int64 // plain bytes
	Digest hash.Digest
}

// Xattr is one extended attribute with its full name.
type Xattr struct {
	Name  string
	Value []byte
}

// Flags are what a row says beyond its mode.
type Flags uint32

// The flags a reader acts on; the file's type is in the mode.
const (
	Mountpoint  Flags = 0x2    // a nested catalog continues here (parent's row)
	NestedRoot  Flags = 0x20   // root of a nested catalog (child's row)
	Chunked     Flags = 0x40   // content is in chunks
	External    Flags = 0x80   // content is outside the object store
	BindMount   Flags = 0x4000 // another revision is attached here: not followed
	Hidden      Flags = 0x8000 // found by name, not listed
	DirectIO    Flags = 0x10000
	algorithmAt       = 8
	compressAt        = 11
)

// Type is the S_IFMT part of the mode.
func (e *Entry) Type() uint32 { return e.Mode & 0o170000 }

// IsDir reports whether it is a folder.
func (e *Entry) IsDir() bool { return e.Type() == 0o040000 }

// IsRegular reports whether it is a regular file.
func (e *Entry) IsRegular() bool { return e.Type() == 0o100000 }
