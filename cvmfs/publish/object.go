package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	gohash "hash"
	"io"
	"os"

	"github.com/klauspost/compress/zlib"

	"cvmfs-graphdriver/cvmfs/hash"
)

// errDamaged says that a stored object isn't what its name says.
var errDamaged = errors.New("stored object is damaged")

// compressionLevel is what ADR 5 decided by measurement.
const compressionLevel = 6

// encoder turns plain bytes into stored ones, one object after the other.
type encoder struct {
	algorithm   hash.Algorithm
	compression hash.Compression
	sum         gohash.Hash
	stored      bytes.Buffer
	zlib        *zlib.Writer
}

func newEncoder(a hash.Algorithm, c hash.Compression) (*encoder, error) {
	e := &encoder{algorithm: a, compression: c, sum: a.New()}
	if c == hash.None {
		return e, nil
	}
	var err error
	e.zlib, err = zlib.NewWriterLevel(&e.stored, compressionLevel)
	return e, err
}

// maxRetained is the most bytes an encoder keeps for its next object.
const maxRetained = 20 << 20

// encode returns the stored form, which is good until the next call, and its digest.
func (e *encoder) encode(plain []byte) ([]byte, hash.Digest, error) {
	stored := plain
	if e.compression == hash.Zlib {
		if e.stored.Cap() > maxRetained {
			e.stored = bytes.Buffer{}
		}
		e.stored.Reset()
		e.zlib.Reset(&e.stored)
		if _, err := e.zlib.Write(plain); err != nil {
			return nil, hash.Digest{}, err
		}
		if err := e.zlib.Close(); err != nil {
			return nil, hash.Digest{}, err
		}
		stored = e.stored.Bytes()
	}
	e.sum.Reset()
	e.sum.Write(stored)
	return stored, hash.Of(e.algorithm, e.sum), nil
}

// compressFile writes the stored form of a file, as catalogs and tag databases have it, and gives its digest and size.
func compressFile(from, to string, algorithm hash.Algorithm) (d hash.Digest, size int64, err error) {
	in, err := os.Open(from)
	if err != nil {
		return d, 0, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return d, 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := algorithm.New()
	counted := &counter{to: io.MultiWriter(out, sum)}
	z, err := zlib.NewWriterLevel(counted, compressionLevel)
	if err != nil {
		return d, 0, err
	}
	if _, err := io.Copy(z, in); err != nil {
		return d, 0, err
	}
	if err := z.Close(); err != nil {
		return d, 0, err
	}
	return hash.Of(algorithm, sum), counted.n, nil
}

// counter counts what is written through it.
type counter struct {
	to io.Writer
	n  int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.n += int64(n)
	return n, err
}

// copyObject writes an object's plain bytes, at most limit, and checks the digest of the stored ones.
func copyObject(
	ctx context.Context, to io.Writer, from Served, d hash.Digest, s hash.Suffix, c hash.Compression, limit int64,
) error {
	if err := copyPlain(ctx, to, from, d, s, c, limit); err != nil {
		return fmt.Errorf("read %s in %v: %w", d.Path(s), from, err)
	}
	return nil
}

func copyPlain(ctx context.Context, to io.Writer, from Served, d hash.Digest, s hash.Suffix, c hash.Compression,
	limit int64,
) error {
	stored, err := from.Get(ctx, d.Path(s))
	if err != nil {
		return err
	}
	defer stored.Close()
	sum := d.Algorithm.New()
	raw := &watched{Reader: stored}
	hashed := io.TeeReader(raw, sum)
	plain := hashed
	if c == hash.Zlib {
		z, err := zlib.NewReader(hashed)
		if err != nil {
			return raw.blame(err)
		}
		defer z.Close()
		plain = z
	}
	decoded := &watched{Reader: io.LimitReader(plain, limit+1)}
	n, err := io.Copy(to, decoded)
	switch {
	case decoded.err != nil:
		return raw.blame(decoded.err)
	case err != nil:
		return err
	case n > limit:
		return fmt.Errorf("%w: more than %d bytes", errDamaged, limit)
	}
	if _, err := io.Copy(io.Discard, hashed); err != nil { // what the decompressor had no need of
		return err
	}
	if got := hash.Of(d.Algorithm, sum); got != d {
		return fmt.Errorf("%w: its digest is %v", errDamaged, got)
	}
	return nil
}

// watched remembers what kept a reader from going on.
type watched struct {
	io.Reader
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	return n, err
}

// blame tells an object whose bytes can't be decoded from one whose bytes can't be had.
func (w *watched) blame(err error) error {
	if w.err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errDamaged, err)
}

// readObject returns the plain bytes of a small object.
func readObject(ctx context.Context, from Served, d hash.Digest, s hash.Suffix, c hash.Compression,
	limit int64,
) ([]byte, error) {
	var b bytes.Buffer
	err := copyObject(ctx, &b, from, d, s, c, limit)
	return b.Bytes(), err
}

// readStored returns a small file of the storage.
func readStored(ctx context.Context, from Served, name string, limit int64) ([]byte, error) {
	f, err := from.Get(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read %s in %v: %w", name, from, err)
	}
	defer f.Close()
	b, err := readBounded(f, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s in %v: %w", name, from, err)
	}
	return b, nil
}

// readBounded reads everything, at most limit bytes.
func readBounded(from io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(from, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return b, nil
}

// putObject stores a small object, compressed as catalogs and certificates always are, unless it is there.
func putObject(ctx context.Context, to Storage, a hash.Algorithm, s hash.Suffix, plain []byte) (hash.Digest, error) {
	e, err := newEncoder(a, hash.Zlib)
	if err != nil {
		return hash.Digest{}, err
	}
	stored, d, err := e.encode(plain)
	if err != nil {
		return hash.Digest{}, err
	}
	_, err = putOnce(ctx, to, d.Path(s), bytes.NewReader(stored), int64(len(stored)))
	return d, err
}

// putOnce stores an object unless it is there already, whole. One of another size is what a loss of power left of it.
func putOnce(ctx context.Context, to Storage, name string, content io.Reader, size int64) (put bool, err error) {
	has, err := stored(ctx, to, name, size)
	if err != nil || has {
		return false, err
	}
	return true, to.Put(ctx, name, content, size)
}

// stored reports whether the storage has an object of that size.
func stored(ctx context.Context, in Storage, name string, size int64) (bool, error) {
	n, err := in.Stat(ctx, name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && n == size, err
}
