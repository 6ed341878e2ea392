package objects

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	gohash "hash"
	"io"
	"math"
	"os"
	"strings"
	"sync"

	"github.com/klauspost/compress/zlib"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/hash"
)

// Resetter is where a download's plain bytes go. Reset takes back all that was written: an attempt that fails half-way
// is followed by another.
type Resetter interface {
	io.Writer
	Reset() error
}

// Buffer is a Resetter in memory.
type Buffer struct{ bytes.Buffer }

// Reset empties the buffer.
func (b *Buffer) Reset() error {
	b.Buffer.Reset()
	return nil
}

// File is a Resetter on a file opened for writing.
type File struct{ *os.File }

// Reset empties the file.
func (f File) Reset() error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// Stored is what servers hold of a file's content: a stored object, or an external file or a chunk of one.
type Stored struct {
	Digest      hash.Digest
	Suffix      hash.Suffix // Chunk: it begins at Offset of the file
	Compression hash.Compression
	Offset      int64
	Size        int64  // plain bytes
	External    bool   // it lies on the servers of external files, as File or as bytes of that
	File        string // path in the repository; may be "" where it isn't external
}

// request is how servers are asked for it.
func (s *Stored) request() fetch.Request {
	r := fetch.Request{Path: s.Digest.Path(s.Suffix), Info: s.File}
	if s.External {
		r.Path = strings.TrimPrefix(s.File, "/")
		if s.Suffix == hash.Chunk {
			r.Offset, r.Length = s.Offset, s.Size
		}
	}
	return r
}

// Download fetches what a repository's servers hold, or those of external files, as the package's Download does, and
// checks its size, too.
func (s *Stored) Download(ctx context.Context, f *fetch.Fetcher, w Resetter) error {
	if s.External {
		var err error
		if f, err = f.External(); err != nil {
			return fmt.Errorf("%s: %w", s.File, err)
		}
	}
	return s.sized(w, func(w Resetter) error {
		return download(ctx, f, s.request(), s.Digest, s.Compression, s.Size, w)
	})
}

// sized has get write the plain bytes, and checks how many they are.
func (s *Stored) sized(w Resetter, get func(w Resetter) error) error {
	n := counted{Resetter: w}
	err := get(&n)
	if err == nil && n.n != s.Size {
		err = fmt.Errorf("%v has %d plain bytes, the catalog says %d: %w", s.Digest, n.n, s.Size, ErrSize)
	}
	return err
}

// ErrSize means that trusted catalogs give an object another size than it has.
var ErrSize = errors.New("the catalog is wrong")

// counted counts the bytes written to a Resetter.
type counted struct {
	Resetter
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Resetter.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *counted) Reset() error {
	c.n = 0
	return c.Resetter.Reset()
}

// Download fetches a stored object, checks its digest, and writes the plain bytes to w. More than limit plain bytes
// (limit < 0: any number) are an error. Nothing written to w may be used before Download has returned nil.
//
// A body that isn't the object (wrong digest, not one zlib stream, too long) is asked for again as fetch.Fetcher.Get
// says, and if nobody has better the error wraps fetch.ErrBadData. Errors of w end the download and are returned as
// they are.
func Download(ctx context.Context, f *fetch.Fetcher, d hash.Digest, s hash.Suffix, c hash.Compression, limit int64,
	w Resetter,
) error {
	return download(ctx, f, fetch.Request{Path: d.Path(s)}, d, c, limit, w)
}

func download(ctx context.Context, f *fetch.Fetcher, r fetch.Request, d hash.Digest, c hash.Compression, limit int64,
	w Resetter,
) error {
	if !d.Algorithm.Valid() || !c.Valid() {
		return fmt.Errorf("download %v: unknown %v or %v", d, d.Algorithm, c)
	}
	return f.Do(ctx, r, func(body io.Reader) error {
		if err := w.Reset(); err != nil {
			return err
		}
		return unpack(body, d, c, limit, w)
	})
}

// unpacker is what it takes to read one object, kept for the next.
type unpacker struct {
	stored  hashed
	in      *bufio.Reader
	inflate io.ReadCloser // nil before the first zlib object
	buf     []byte
}

// hashed takes the digest of what is read, and reads no more than left bytes.
type hashed struct {
	r    io.Reader
	h    gohash.Hash
	left int64
}

func (s *hashed) Read(p []byte) (int, error) {
	if int64(len(p)) > s.left {
		p = p[:s.left]
	}
	if len(p) == 0 {
		return 0, fmt.Errorf("%w: too many stored bytes", fetch.ErrBadData)
	}
	n, err := s.r.Read(p)
	s.left -= int64(n)
	s.h.Write(p[:n])
	return n, err
}

const bufferSize = 32 << 10

var unpackers = sync.Pool{New: func() any {
	return &unpacker{in: bufio.NewReaderSize(nil, bufferSize), buf: make([]byte, bufferSize)}
}}

// unpack reads one stored object to the end of body.
func unpack(body io.Reader, d hash.Digest, c hash.Compression, limit int64, w io.Writer) error {
	u := unpackers.Get().(*unpacker)
	defer unpackers.Put(u)
	defer func() { u.stored = hashed{}; u.in.Reset(nil) }()
	u.stored = hashed{r: body, h: d.Algorithm.New(), left: storedLimit(limit)}
	u.in.Reset(&u.stored)
	if limit < 0 {
		limit = math.MaxInt64
	}
	plain, err := u.plain(c)
	if err == nil {
		err = u.copy(w, plain, limit)
	}
	if err != nil {
		return err
	}
	if _, err := u.in.ReadByte(); err == nil {
		return fmt.Errorf("%w: bytes after the end of the zlib stream", fetch.ErrBadData)
	} else if err != io.EOF {
		return err
	}
	if got := hash.Of(d.Algorithm, u.stored.h); got != d {
		return fmt.Errorf("%w: digest is %v", fetch.ErrBadData, got)
	}
	return nil
}

// storedLimit is how many stored bytes can reasonably make up so many plain ones: a stream of empty blocks never ends.
func storedLimit(limit int64) int64 {
	if limit < 0 || limit > math.MaxInt64/4 {
		return math.MaxInt64
	}
	return 2*limit + 64<<10
}

// plain returns the reader of plain bytes.
func (u *unpacker) plain(c hash.Compression) (io.Reader, error) {
	if c == hash.None {
		return u.in, nil
	}
	var err error
	if u.inflate == nil {
		u.inflate, err = zlib.NewReader(u.in)
	} else {
		err = u.inflate.(zlib.Resetter).Reset(u.in, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: inflate: %w", fetch.ErrBadData, err)
	}
	return u.inflate, nil
}

// copy writes what plain gives, keeping apart whose fault an error is.
func (u *unpacker) copy(w io.Writer, plain io.Reader, limit int64) error {
	for total := int64(0); ; {
		n, err := plain.Read(u.buf)
		if total += int64(n); total > limit {
			return fmt.Errorf("%w: more than %d plain bytes", fetch.ErrBadData, limit)
		}
		if n > 0 {
			if _, err := w.Write(u.buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil && !errors.Is(err, fetch.ErrBadData):
			return fmt.Errorf("%w: inflate: %w", fetch.ErrBadData, err)
		case err != nil:
			return err
		}
	}
}
