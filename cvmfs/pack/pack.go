// Package pack is the format of packs: files of a repository that have many small stored objects one after the other,
// so that they take one request instead of one each. The objects are those of the repository, byte by byte, and each is
// to be checked by its own digest as if a server had been asked for it: a pack need not be trusted.
//
// A pack is, for each object, a line with its path below the repository and its size in bytes, and then these bytes:
//
//	data/57/98f7f4ca7585d850eea64610a1f73d8f8de7a3 14
//	<14 bytes>data/0f/1e…P 20017
//	<20017 bytes>
package pack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// MaxObject is the largest object that belongs in a pack, in plain bytes: a request of its own costs a larger one
// little.
const MaxObject = 256 << 10

// maxLine bounds a line: paths of objects are no longer than 70 bytes.
const maxLine = 128

// prefix begins the names of packs.
const prefix = "pack-"

// Name returns the name of the n-th of some packs' files.
func Name(n int) string { return prefix + strconv.Itoa(n) }

// Number returns the number in a name that Name gives; false for other names.
func Number(name string) (n int, ok bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n >= 0 && Name(n) == name
}

// Append appends an object to a pack.
func Append(to []byte, path string, stored []byte) []byte {
	to = append(to, path...)
	to = append(to, ' ')
	to = strconv.AppendInt(to, int64(len(stored)), 10)
	to = append(to, '\n')
	return append(to, stored...)
}

// ErrFormat means that a file is no pack.
var ErrFormat = errors.New("not a pack")

// Reader reads a pack as it comes. It is itself the reader of the object that Next has come to.
type Reader struct {
	in   *bufio.Reader
	left int64 // bytes of the object
}

// NewReader returns a reader at the beginning of a pack. in is where the pack comes from, which is read through it from
// then on.
func NewReader(in *bufio.Reader) *Reader { return &Reader{in: in} }

// Next passes over what is left of an object and comes to the next. It returns the object's path and its size in bytes;
// io.EOF at the end of the pack. Paths are not checked: what isn't wanted is to be passed over.
func (r *Reader) Next() (path string, size int64, err error) {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return "", 0, err
	}
	line, err := r.line()
	if err != nil {
		return "", 0, err
	}
	path, digits, _ := strings.Cut(line, " ")
	size, err = strconv.ParseInt(digits, 10, 64)
	if err != nil || size < 0 {
		return "", 0, fmt.Errorf("%w: %.60q", ErrFormat, line)
	}
	r.left = size
	return path, size, nil
}

// line reads a line, without its end.
func (r *Reader) line() (string, error) {
	var line [maxLine]byte
	for n := range line {
		c, err := r.in.ReadByte()
		switch {
		case err == io.EOF && n > 0:
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		case c == '\n':
			return string(line[:n]), nil
		}
		line[n] = c
	}
	return "", fmt.Errorf("%w: %.60q is no line of one", ErrFormat, line)
}

// Read reads the object; io.ErrUnexpectedEOF if the pack ends in it.
func (r *Reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.in.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if err == io.EOF && r.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
