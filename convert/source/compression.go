package source

import (
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

// Compression is how an archive is compressed.
type Compression int

// The compressions layers come in, which are those that engines load.
const (
	Uncompressed Compression = iota
	Gzip
	Zstd
	XZ
	Bzip2
	Unknown // neither an archive nor compressed in one of these ways
)

// HeadSize is how many bytes, if there are that many, Detect needs: a block of an archive.
const HeadSize = 512

// window is the most memory of a decompressor, in bytes; what the reference implementation of zstd takes, twice that of
// xz -9.
const window = 128 << 20

// Detect reports how an archive is compressed by its first bytes. An archive is told before all: it begins with a
// file's name, which may be anything. A file of zstd may begin with a skippable frame (RFC 8878, 3.1.2), as pzstd and
// seekable zstd write it.
func Detect(head []byte) Compression {
	switch {
	case len(head) == 0, isArchive(head):
		return Uncompressed
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return Gzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return Zstd
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return XZ
	case bytes.HasPrefix(head, []byte("BZh")):
		return Bzip2
	default:
		return Unknown
	}
}

// isArchive reports whether it is a block that an archive begins with: its checksum is right, or it is the first of
// those that end an empty one.
func isArchive(head []byte) bool {
	const sumAt, sumEnd = 148, 156
	if len(head) < HeadSize {
		return false
	}
	head = head[:HeadSize]
	if len(bytes.Trim(head, "\x00")) == 0 {
		return true
	}
	// as package archive/tar reads it
	text, _, _ := strings.Cut(strings.Trim(string(head[sumAt:sumEnd]), " \x00"), "\x00")
	stored, err := strconv.ParseInt(text, 8, 64)
	if err != nil {
		return false
	}
	var unsigned, signed int64 // some writers take bytes for signed ones
	for i, b := range head {
		if i >= sumAt && i < sumEnd {
			b = ' '
		}
		unsigned += int64(b)
		signed += int64(int8(b))
	}
	return stored == unsigned || stored == signed
}

// others are compressions that no engine loads, by what their files begin with.
var others = []struct{ magic, name string }{
	{"\x04\x22\x4d\x18", "lz4"},
	{"LZIP", "lzip"},
	{"\x5d\x00\x00", "lzma"},
	{"\x1f\x9d", "compress"},
	{"\x89LZO", "lzop"},
	{"PK\x03\x04", "zip"},
	{"7z\xbc\xaf\x27\x1c", "7-Zip"},
}

// errForm says what bytes are that Detect doesn't know.
func errForm(head []byte) error {
	const read = "gzip, zstd, xz and bzip2 are read"
	for _, o := range others {
		if bytes.HasPrefix(head, []byte(o.magic)) {
			return fmt.Errorf("it is compressed with %s: %s", o.name, read)
		}
	}
	return errors.New("it is no archive (tar), nor compressed in a known way: " + read)
}

// decompress reads what is compressed. Call closePlain after use.
func decompress(r io.Reader, c Compression) (plain io.Reader, closePlain func(), err error) {
	switch c {
	case Gzip:
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	case Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case XZ:
		z, err := xz.NewReader(r, window)
		return z, func() {}, err
	case Bzip2:
		return bzip2.NewReader(r), func() {}, nil
	default:
		return r, func() {}, nil
	}
}
