package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zlib"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
)

// ErrDamaged says that a stored object isn't what its name says.
var ErrDamaged = errors.New("stored object is damaged")

// CopyObject writes an object's plain bytes, at most limit, and checks the digest of the stored ones. It returns the
// number of plain bytes. The error is [ErrDamaged] if the object isn't what its name says.
func CopyObject(
	ctx context.Context, to io.Writer, from Reader, d hash.Digest, s hash.Suffix, c hash.Compression, limit int64,
) (int64, error) {
	n, err := copyPlain(ctx, to, from, d, s, c, limit)
	if err != nil {
		return n, fmt.Errorf("read %s in %v: %w", d.Path(s), from, err)
	}
	return n, nil
}

func copyPlain(ctx context.Context, to io.Writer, from Reader, d hash.Digest, s hash.Suffix, c hash.Compression,
	limit int64,
) (int64, error) {
	stored, err := from.Get(ctx, d.Path(s))
	if err != nil {
		return 0, err
	}
	defer stored.Close()
	sum := d.Algorithm.New()
	raw := &watched{Reader: stored}
	hashed := io.TeeReader(raw, sum)
	plain := hashed
	if c == hash.Zlib {
		z, err := zlib.NewReader(hashed)
		if err != nil {
			return 0, raw.blame(err)
		}
		defer z.Close()
		plain = z
	}
	decoded := &watched{Reader: io.LimitReader(plain, limit+1)}
	n, err := io.Copy(to, decoded)
	switch {
	case decoded.err != nil:
		return 0, raw.blame(decoded.err)
	case err != nil:
		return 0, err
	case n > limit:
		return 0, fmt.Errorf("%w: more than %d bytes", ErrDamaged, limit)
	}
	if _, err := io.Copy(io.Discard, hashed); err != nil { // what the decompressor had no need of
		return 0, err
	}
	if got := hash.Of(d.Algorithm, sum); got != d {
		return 0, fmt.Errorf("%w: its digest is %v", ErrDamaged, got)
	}
	return n, nil
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
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// ReadObject returns the plain bytes of a small object.
func ReadObject(ctx context.Context, from Reader, d hash.Digest, s hash.Suffix, c hash.Compression,
	limit int64,
) ([]byte, error) {
	var b bytes.Buffer
	_, err := CopyObject(ctx, &b, from, d, s, c, limit)
	return b.Bytes(), err
}

// ReadFile returns a small file, of at most limit bytes.
func ReadFile(ctx context.Context, from Reader, name string, limit int64) ([]byte, error) {
	f, err := from.Get(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read %s in %v: %w", name, from, err)
	}
	defer f.Close()
	b, err := ReadBounded(f, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s in %v: %w", name, from, err)
	}
	return b, nil
}

// FetchDatabase brings the plain file of a catalog or tag database, of at most limit bytes, to path, where nothing may
// be.
func FetchDatabase(ctx context.Context, from Reader, d hash.Digest, s hash.Suffix, limit int64, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = CopyObject(ctx, f, from, d, s, hash.Zlib, limit)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path) // best effort: the folder is one of temporary files
	}
	return err
}

// ReadHistory reads a tag database by way of a temporary file at path.
func ReadHistory(ctx context.Context, from Reader, d hash.Digest, path string) (*history.History, error) {
	if err := FetchDatabase(ctx, from, d, hash.History, history.MaxSize, path); err != nil {
		return nil, err
	}
	defer os.Remove(path) // best effort: the folder is one of temporary files
	return history.Read(path)
}

// ReadBounded reads everything, at most limit bytes.
func ReadBounded(from io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(from, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return b, nil
}
