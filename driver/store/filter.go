package store

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"cvmfs-graphdriver/thin"
)

const (
	blockSize = 512
	copySize  = 256 << 10 // bytes moved at once
)

// ErrTruncated tells that an archive ends before its end marker, two blocks of zeros.
var ErrTruncated = errors.New("the archive is cut short: its end marker is missing")

// contents is what a filter has seen of an archive.
type contents struct {
	entries    int  // but for the root folder
	descriptor bool // a regular file with the name of a thin image descriptor was among them
}

// filter copies an archive from r to w without the extended attributes that instruct overlayfs, and reads r to its end.
//
// The archive is written anew rather than patched: what unpacks it then sees exactly what was checked here, whatever way there
// may be of hiding a record from one reader and not from the other.
func filter(w io.Writer, r io.Reader) (contents, error) {
	var c contents
	in := &tailReader{r: r}
	tr, tw := tar.NewReader(in), tar.NewWriter(w)
	buf := make([]byte, copySize)
	for {
		end := in.n // of the last entry's data
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			if !in.endsWithMarker(end) {
				return c, ErrTruncated
			}
			break
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return c, fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		if err != nil {
			return c, fmt.Errorf("read archive: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue // no reader of layers heeds it
		}
		c.note(h)
		if err := tw.WriteHeader(clean(h)); err != nil {
			return c, fmt.Errorf("archive entry %q: %w", h.Name, err)
		}
		if _, err := io.CopyBuffer(tw, struct{ io.Reader }{tr}, buf); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return c, fmt.Errorf("%w: in %q", ErrTruncated, h.Name)
			}
			return c, fmt.Errorf("archive entry %q: %w", h.Name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return c, err
	}
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, buf); err != nil {
		return c, fmt.Errorf("read archive: %w", err)
	}
	return c, nil
}

func (c *contents) note(h *tar.Header) {
	name := path.Clean(strings.TrimLeft(h.Name, "/"))
	if name == "." {
		return
	}
	c.entries++
	if name == thin.FileName && h.Typeflag == tar.TypeReg {
		c.descriptor = true
	}
}

// clean gives the header of the archive written.
func clean(h *tar.Header) *tar.Header {
	h.Format = tar.FormatPAX
	h.Mode &= 0o7777 // the type is in Typeflag
	if h.Typeflag == tar.TypeGNUSparse {
		h.Typeflag = tar.TypeReg // the reader has filled the holes
	}
	//lint:ignore SA1019 the reader fills the old field too, and the writer would take the attributes from there
	h.Xattrs = nil
	for key := range h.PAXRecords {
		if instructs(key) {
			delete(h.PAXRecords, key)
		}
	}
	return h
}

// instructs tells a PAX record of an extended attribute by which overlayfs is told what to do; see "Whiteouts and opaque
// directories" and "Metadata only copy up" in the kernel's documentation of overlayfs.
func instructs(key string) bool {
	for _, vendor := range []string{"SCHILY.xattr.", "LIBARCHIVE.xattr."} {
		if name, ok := strings.CutPrefix(key, vendor); ok {
			return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
		}
	}
	return false
}

// tailReader counts what is read through it, and of that the zeros at the end.
type tailReader struct {
	r        io.Reader
	n, zeros int64
}

func (t *tailReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.n += int64(n)
	for i := n - 1; i >= 0; i-- {
		if p[i] != 0 {
			t.zeros = int64(n - 1 - i)
			return n, err
		}
	}
	t.zeros += int64(n)
	return n, err
}

// endsWithMarker tells whether what was read since an entry's data ended at offset end is padding and two blocks of zeros. A
// tar.Reader reads no further than that, and says io.EOF also where an archive just stops.
func (t *tailReader) endsWithMarker(end int64) bool {
	start := (end + blockSize - 1) / blockSize * blockSize
	return t.n-start == 2*blockSize && t.zeros >= 2*blockSize
}
