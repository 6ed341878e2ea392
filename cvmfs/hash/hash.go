// Package hash names stored objects: which algorithm, which digest, under which path of a repository.
//
// The words used here and in every package above:
//
//   - A digest is 160 bits, made by SHA-1, RIPEMD-160 or SHAKE128 (cut at 160 bits). It is taken over the bytes as they
//     are stored under that name, that is after compression.
//   - The textual form is 40 lower-case hex digits followed by the algorithm's id: nothing for SHA-1, "-rmd160",
//     "-shake128".
//   - A suffix is one letter behind the name that tells what the object is (a catalog, a chunk, …). It is part of the
//     stored name, not of the digest.
//   - The compression says how the plain bytes relate to the stored ones. It is not part of the name either: whoever
//     refers to an object knows it.
//   - A path hash is the MD5 of a path inside the repository, by which catalogs find rows.
package hash

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha3"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	gohash "hash"
	"strings"

	//lint:ignore SA1019 the format allows it, and repositories of that kind are read as long as there are any
	"golang.org/x/crypto/ripemd160"
)

// Size is the length of a digest in bytes, the same for all algorithms.
const Size = 20

// Algorithm is a digest algorithm of the object store.
type Algorithm uint8

// The algorithms a repository may use. The zero value is none of them.
const (
	SHA1 Algorithm = 1 + iota
	RIPEMD160
	SHAKE128
)

// ids are what follows the hex digits in text.
var ids = [...]string{SHA1: "", RIPEMD160: "-rmd160", SHAKE128: "-shake128"}

// Valid reports whether a is one of the algorithms above.
func (a Algorithm) Valid() bool { return a >= SHA1 && a <= SHAKE128 }

// String is the algorithm's name as publishers write it: sha1, rmd160, shake128.
func (a Algorithm) String() string {
	switch a {
	case SHA1:
		return "sha1"
	case RIPEMD160, SHAKE128:
		return ids[a][1:]
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

// New returns a fresh hash whose Sum has 20 bytes. It panics on an invalid algorithm, as only Parse and FromRaw make
// them.
func (a Algorithm) New() gohash.Hash {
	switch a {
	case SHA1:
		return sha1.New()
	case RIPEMD160:
		return ripemd160.New()
	case SHAKE128:
		return &shake{sha3.NewSHAKE128()}
	}
	panic("hash: " + a.String() + " has no implementation")
}

// Digest takes the digest of b.
func (a Algorithm) Digest(b []byte) Digest {
	h := a.New()
	h.Write(b)
	return Of(a, h)
}

// shake is SHAKE128 with its output cut at 160 bits.
type shake struct{ *sha3.SHAKE }

func (s *shake) Size() int { return Size }

func (s *shake) Sum(b []byte) []byte {
	c := *s.SHAKE // reading squeezes the state: keep ours writable
	var sum [Size]byte
	c.Read(sum[:])
	return append(b, sum[:]...)
}

// Digest names an object's content. The zero value means "no digest"; values are comparable.
type Digest struct {
	Algorithm Algorithm
	Sum       [Size]byte
}

// Of is the digest of what was written to h, a hash made by a.New.
func Of(a Algorithm, h gohash.Hash) Digest {
	d := Digest{Algorithm: a}
	h.Sum(d.Sum[:0])
	return d
}

// FromRaw makes a digest of the 20 bytes a catalog stores.
func FromRaw(a Algorithm, raw []byte) (Digest, error) {
	if !a.Valid() {
		return Digest{}, fmt.Errorf("digest: unknown %v", a)
	}
	if len(raw) != Size {
		return Digest{}, fmt.Errorf("digest: %d bytes instead of %d", len(raw), Size)
	}
	return Digest{Algorithm: a, Sum: [Size]byte(raw)}, nil
}

// Parse reads the textual form: 40 lower-case hex digits and the algorithm's id.
func Parse(s string) (Digest, error) {
	digits, id := s, ""
	if i := strings.IndexByte(s, '-'); i >= 0 {
		digits, id = s[:i], s[i:]
	}
	d := Digest{}
	for a := SHA1; a.Valid(); a++ {
		if ids[a] == id {
			d.Algorithm = a
		}
	}
	if !d.Algorithm.Valid() {
		return Digest{}, fmt.Errorf("digest %.60q: unknown algorithm %.20q", s, id)
	}
	if len(digits) != 2*Size || strings.ToLower(digits) != digits {
		return Digest{}, fmt.Errorf("digest %.60q: want 40 lower-case hex digits", s)
	}
	if _, err := hex.Decode(d.Sum[:], []byte(digits)); err != nil {
		return Digest{}, fmt.Errorf("digest %.60q: want 40 lower-case hex digits", s)
	}
	return d, nil
}

// IsZero reports whether there is no digest.
func (d Digest) IsZero() bool { return d == Digest{} }

// Hex is the 40 hex digits alone.
func (d Digest) Hex() string { return hex.EncodeToString(d.Sum[:]) }

// String is the textual form Parse reads; "" for the zero value.
func (d Digest) String() string {
	if d.IsZero() {
		return ""
	}
	return d.Hex() + ids[d.Algorithm]
}

// Suffix reports what a stored object is.
type Suffix string

// The suffixes of today's repositories.
const (
	File        Suffix = ""
	Chunk       Suffix = "P"
	Catalog     Suffix = "C"
	History     Suffix = "H"
	Certificate Suffix = "X"
	Metainfo    Suffix = "M"
)

// Path is where the object lies below the repository's URL: data/3f/ab…-shake128C.
func (d Digest) Path(s Suffix) string {
	h := d.Hex()
	return "data/" + h[:2] + "/" + h[2:] + ids[d.Algorithm] + string(s)
}

// Compression says how stored bytes become plain ones.
type Compression uint8

// The compressions of the format.
const (
	Zlib Compression = iota // one RFC 1950 stream
	None                    // the stored bytes are the plain bytes
)

// ZlibLevel is the level by which our publisher compresses: ADR 5 decided it by measurement. Who has the plain bytes of
// an object can find its digest by it.
const ZlibLevel = 6

// Valid reports whether c is one of the compressions above.
func (c Compression) Valid() bool { return c <= None }

// String is the name publishers use: zlib, none.
func (c Compression) String() string {
	switch c {
	case Zlib:
		return "zlib"
	case None:
		return "none"
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

// PathHash finds rows in catalogs: the MD5 of a path as two little-endian signed halves.
type PathHash struct{ P1, P2 int64 }

// OfPath hashes a path inside a repository: "" for the root, else "/a/b" without a trailing slash.
func OfPath(path string) PathHash {
	sum := md5.Sum([]byte(path))
	return PathHash{
		P1: int64(binary.LittleEndian.Uint64(sum[:8])),
		P2: int64(binary.LittleEndian.Uint64(sum[8:])),
	}
}
