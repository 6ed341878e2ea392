package publish

import (
	"bytes"
	"context"
	"errors"
	gohash "hash"
	"io"
	"os"

	"github.com/klauspost/compress/zlib"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

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
	e.zlib, err = zlib.NewWriterLevel(&e.stored, hash.ZlibLevel)
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
	z, err := zlib.NewWriterLevel(io.MultiWriter(out, sum), hash.ZlibLevel)
	if err != nil {
		return d, 0, err
	}
	if _, err := io.Copy(z, in); err != nil {
		return d, 0, err
	}
	if err := z.Close(); err != nil {
		return d, 0, err
	}
	size, err = out.Seek(0, io.SeekCurrent)
	return hash.Of(algorithm, sum), size, err
}

// putObject stores a small object, compressed as catalogs and certificates always are, unless it is there.
func putObject(
	ctx context.Context, to storage.Storage, a hash.Algorithm, s hash.Suffix, plain []byte,
) (hash.Digest, error) {
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
func putOnce(
	ctx context.Context,
	to storage.Storage,
	name string,
	content io.Reader,
	size int64,
) (put bool, err error) {
	has, err := stored(ctx, to, name, size)
	if err != nil || has {
		return false, err
	}
	return true, to.Put(ctx, name, content, size)
}

// stored reports whether the storage has an object of that size.
func stored(ctx context.Context, in storage.Storage, name string, size int64) (bool, error) {
	n, err := in.Stat(ctx, name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && n == size, err
}

// putFile stores a file of size bytes as an object, unless it is there.
func putFile(ctx context.Context, to storage.Storage, name, path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = putOnce(ctx, to, name, f, size)
	return errors.Join(err, f.Close())
}

// putDatabase stores the plain file of a catalog or tag database and removes it. It uses the file path + ".stored".
func putDatabase(ctx context.Context, to storage.Storage, a hash.Algorithm, s hash.Suffix,
	path string,
) (d hash.Digest, err error) {
	stored := path + ".stored"
	d, size, err := compressFile(path, stored, a)
	if err != nil {
		return d, err
	}
	err = putFile(ctx, to, d.Path(s), stored, size)
	return d, errors.Join(err, os.Remove(path), os.Remove(stored))
}
