package objects

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
)

// Object is the recipe of a file's content: one stored object, or the chunks in order. Exactly one of Digest and Chunks
// is set. Where the bytes come from has no part in the name.
type Object struct {
	Digest      hash.Digest
	Compression hash.Compression // of the object, or of every chunk
	Size        int64            // plain bytes
	Chunks      []catalog.Chunk
	// External content is not in the object store but on the servers of external files, as File, chunks as parts of it.
	External bool
	File     string // path in the repository of a file with this content, as "/a/b"; "": not known
}

// FromEntry gives the content of the regular file at a path. It refuses what doesn't add up.
func FromEntry(e *catalog.Entry, path string) (Object, error) {
	o := Object{Digest: e.Digest, Compression: e.Compression, Size: e.Size}
	switch {
	case !e.IsRegular():
		return Object{}, fmt.Errorf("content of %q: not a regular file", e.Name)
	case e.Flags&catalog.Chunked != 0 || len(e.Chunks) > 0:
		// A digest beside chunks names a second copy, one object for the whole file, for clients that know no chunks.
		o.Digest, o.Chunks = hash.Digest{}, e.Chunks
		if len(e.Chunks) == 0 {
			return Object{}, fmt.Errorf("content of %q: chunked, but there are no chunks", e.Name)
		}
	}
	if e.Flags&catalog.External != 0 {
		o.External, o.File = true, path
	}
	if err := o.check(); err != nil {
		return Object{}, fmt.Errorf("content of %q: %w", e.Name, err)
	}
	return o, nil
}

// check reports what is wrong with a recipe.
func (o *Object) check() error {
	if o.Size < 0 {
		return fmt.Errorf("size %d", o.Size)
	}
	if !o.Compression.Valid() {
		return fmt.Errorf("unknown %v", o.Compression)
	}
	if err := o.checkPath(); err != nil {
		return err
	}
	if len(o.Chunks) == 0 {
		if !o.Digest.Algorithm.Valid() {
			return errors.New("no digest")
		}
		return nil
	}
	if !o.Digest.IsZero() {
		return errors.New("both a digest and chunks")
	}
	end := int64(0)
	for i, c := range o.Chunks {
		if c.Offset != end || c.Size <= 0 || c.Size > o.Size-end {
			return fmt.Errorf("chunk %d of %d: %d bytes at %d don't follow %d, file of %d bytes", i, len(o.Chunks),
				c.Size, c.Offset, end, o.Size)
		}
		if !c.Digest.Algorithm.Valid() {
			return fmt.Errorf("chunk %d of %d: no digest", i, len(o.Chunks))
		}
		end += c.Size
	}
	if end != o.Size {
		return fmt.Errorf("chunks end at %d, file of %d bytes", end, o.Size)
	}
	return nil
}

// maxPath is the longest path, in bytes: that of package client.
const maxPath = 16 << 10

func (o *Object) checkPath() error {
	switch {
	case o.File == "" && !o.External:
		return nil
	case len(o.File) < 2 || len(o.File) > maxPath || o.File[0] != '/':
		return fmt.Errorf("path %.100q", o.File)
	case o.External && len(o.Chunks) > 0 && o.Compression != hash.None:
		// Where a chunk lies among compressed bytes, nothing says.
		return errors.New("external, compressed and in chunks")
	}
	return nil
}

// Stored returns what is fetched for an object: it as a whole, or its chunks in order.
func (o *Object) Stored() []Stored {
	w := Stored{
		Digest: o.Digest, Suffix: hash.File, Compression: o.Compression, Size: o.Size,
		External: o.External, File: o.File,
	}
	if len(o.Chunks) == 0 {
		return []Stored{w}
	}
	all := make([]Stored, len(o.Chunks))
	w.Suffix = hash.Chunk
	for i, c := range o.Chunks {
		w.Digest, w.Offset, w.Size = c.Digest, c.Offset, c.Size
		all[i] = w
	}
	return all
}

// Name is the object's file name in the store, made from the content alone: the same in whatever image or repository it
// occurs.
func (o *Object) Name() string { return o.id().String() }

// Path is the file's place below the store's folder: the first two digits of the name, a slash, the name.
func (o *Object) Path() string { return place(o.Name()) }

// IsolatedPath is the place of an object that a repository shares with no other: its name ends in the repository's
// number.
func (o *Object) IsolatedPath(repo string) string {
	n := o.id()
	n.Owner = ownerOf(repo)
	return place(n.String())
}

// PlaceIn is Path, or IsolatedPath where a repository's objects are isolated.
func (o *Object) PlaceIn(repo string, isolated bool) string {
	if isolated {
		return o.IsolatedPath(repo)
	}
	return o.Path()
}

// ownerOf is a repository's number in names: the first 64 bits of the SHA-256 of its fqrn. Never 0: the bit that would
// be missing is worth nothing.
func ownerOf(repo string) uint64 {
	sum := sha256.Sum256([]byte(repo))
	return binary.BigEndian.Uint64(sum[:]) | 1
}

func place(name string) string { return name[:2] + "/" + name }

func nameAt(place string) string { return place[3:] }

// id makes the name's parts.
func (o *Object) id() Name {
	n := Name{Digest: o.Digest, Compression: o.Compression, Size: o.Size}
	if len(o.Chunks) > 0 {
		n.Chunked = true
		n.Digest = o.recipe()
	}
	return n
}

// recipe is the first 160 bits of the SHA-256 over algorithm, digest and size of each chunk. Its Algorithm is left
// empty.
func (o *Object) recipe() hash.Digest {
	h := sha256.New()
	var b [1 + hash.Size + 8]byte
	for _, c := range o.Chunks {
		b[0] = byte(c.Digest.Algorithm)
		copy(b[1:], c.Digest.Sum[:])
		binary.LittleEndian.PutUint64(b[1+hash.Size:], uint64(c.Size))
		h.Write(b[:])
	}
	var sum [sha256.Size]byte
	return hash.Digest{Sum: [hash.Size]byte(h.Sum(sum[:0]))}
}

// Name is a file name of the store, taken apart. Values are comparable.
//
//	5798f7f4ca7585d850eea64610a1f73d8f8de7a3.z.6                whole, zlib, 6 plain bytes
//	28d94b83b7229b331fc601362b8e272e02665122-shake128.r.0       whole, stored raw
//	0f1e….zc.70000000                                           chunks, each zlib; the digits are the recipe's
//	5798f7f4ca7585d850eea64610a1f73d8f8de7a3.z.6.0123456789abcdef    of one repository, isolated from the others
type Name struct {
	Digest      hash.Digest // chunked: the digest of the recipe, its Algorithm is 0
	Compression hash.Compression
	Chunked     bool
	Size        int64
	Owner       uint64 // number of the repository that shares it with no other; 0: all share it
}

// kinds are the middle parts of names.
var kinds = [2][2]string{{"z", "zc"}, {"r", "rc"}}

// String is the file name.
func (n Name) String() string {
	text := n.Digest.String()
	chunked := 0
	if n.Chunked {
		text, chunked = hex.EncodeToString(n.Digest.Sum[:]), 1
	}
	text += "." + kinds[n.Compression][chunked] + "." + strconv.FormatInt(n.Size, 10)
	if n.Owner != 0 {
		text += fmt.Sprintf(".%016x", n.Owner)
	}
	return text
}

// ParseName takes a file name apart. It accepts exactly what String makes.
func ParseName(s string) (Name, error) {
	parts := strings.SplitN(s, ".", 4)
	if len(parts) < 3 || len(s) > 100 {
		return Name{}, fmt.Errorf("object name %.100q: want DIGEST.KIND.SIZE", s)
	}
	var n Name
	var err error
	if len(parts) == 4 {
		if n.Owner, err = strconv.ParseUint(parts[3], 16, 64); err != nil {
			return Name{}, fmt.Errorf("object name %.100q: bad repository", s)
		}
	}
	switch parts[1] {
	case "z":
	case "r":
		n.Compression = hash.None
	case "zc":
		n.Chunked = true
	case "rc":
		n.Compression, n.Chunked = hash.None, true
	default:
		return Name{}, fmt.Errorf("object name %.100q: unknown kind %q", s, parts[1])
	}
	if n.Digest, err = hash.Parse(parts[0]); err != nil {
		return Name{}, fmt.Errorf("object name %.100q: %w", s, err)
	}
	if n.Size, err = strconv.ParseInt(parts[2], 10, 64); err != nil || n.Size < 0 {
		return Name{}, fmt.Errorf("object name %.100q: bad size", s)
	}
	if n.Chunked {
		if n.Digest.Algorithm != hash.SHA1 {
			return Name{}, fmt.Errorf("object name %.100q: a recipe has no algorithm", s)
		}
		n.Digest.Algorithm = 0
	}
	if n.String() != s {
		return Name{}, fmt.Errorf("object name %.100q: not in its normal form", s)
	}
	return n, nil
}
