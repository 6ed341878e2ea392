package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"

	"cvmfs-graphdriver/cvmfs/hash"
)

// ErrOther means that content isn't that of an object, or that it can't be told: another program has compressed it.
var ErrOther = errors.New("the content isn't known to be that of the object")

// Put makes an object be here whose content the caller has, unless it is here. The content is verified as that of a
// download is, by the digest of what is stored: it is compressed as our publisher does that. path is the object's
// place, o.Path() or o.IsolatedPath().
//
// Errors: ErrOther; ErrLimit and syscall.ENOSPC as of Fetch. The object can be fetched after any.
func (s *Store) Put(ctx context.Context, o *Object, path string, plain io.Reader) error {
	if s.Holds(path, o.Size) {
		return nil
	}
	if err := s.put(ctx, o, path, plain); err != nil {
		return fmt.Errorf("take in object %s: %w", o.Name(), err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, o *Object, path string, plain io.Reader) error {
	if o.External { // what servers of external files have is nobody's digest of a stored object
		return ErrOther
	}
	if err := s.reserve(ctx, o.Size); err != nil {
		return err
	}
	defer func() { s.admission.landed(o.Size, 0) }()
	t, err := s.newTemp()
	if err != nil {
		return err
	}
	defer t.discard()
	w := &part{file: t.File, size: o.Size, sum: sums.Get().(sum)}
	defer sums.Put(w.sum)
	w.sum.Reset()
	for _, stored := range o.Stored() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := verifyPlain(&stored, plain, w); err != nil {
			return err
		}
	}
	return s.publish(t, path, o.Size, w.sum.Sum(nil))
}

// packers are compressors: one has tables of a megabyte, and many files are small.
var packers = sync.Pool{New: func() any {
	z, err := zlib.NewWriterLevel(io.Discard, hash.ZlibLevel)
	if err != nil {
		panic(err) // there is no such level
	}
	return z
}}

// verifyPlain copies the plain bytes of a stored object, as many as it has, which must be what its digest says.
func verifyPlain(stored *Stored, plain io.Reader, w io.Writer) error {
	sum := stored.Digest.Algorithm.New()
	var to io.Writer = sum
	end := func() error { return nil }
	if stored.Compression == hash.Zlib {
		z := packers.Get().(*zlib.Writer)
		defer packers.Put(z)
		z.Reset(sum)
		to, end = z, z.Close
	}
	n, err := io.CopyN(io.MultiWriter(w, to), plain, stored.Size)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it has %d bytes in place of %d", ErrOther, n, stored.Size)
	}
	if err = errors.Join(err, end()); err != nil {
		return err
	}
	if hash.Of(stored.Digest.Algorithm, sum) != stored.Digest {
		return ErrOther
	}
	return nil
}
