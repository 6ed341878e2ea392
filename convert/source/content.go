package source

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"cvmfs-graphdriver/internal/registry"
)

const (
	retryPause = 500 * time.Millisecond // before a blob is opened again; it doubles each time
	// bytes after which attempts count anew, so that a server can't make them endless
	progress = 1 << 20
)

// errEnd marks a blob that ended too early.
var errEnd = fmt.Errorf("%w: it ends too early", ErrDamaged)

// blobReader reads a blob, opens it again where the connection broke, and checks it at its end.
type blobReader struct {
	ctx    context.Context
	in     blobs
	d      v1.Descriptor
	r      io.ReadCloser
	sum    hash.Hash
	offset int64
	mark   int64 // where attempts were counted from
	failed int   // attempts since then
	done   bool
}

func newBlobReader(ctx context.Context, in blobs, d v1.Descriptor) *blobReader {
	return &blobReader{ctx: ctx, in: in, d: d, sum: sha256.New()}
}

// Read returns io.EOF only where the blob was found to be what it should be.
func (b *blobReader) Read(p []byte) (int, error) {
	for {
		n, err := b.read(p)
		b.sum.Write(p[:n])
		if b.offset += int64(n); b.offset-b.mark >= progress {
			b.mark, b.failed = b.offset, 0
		}
		switch {
		case b.offset > b.d.Size:
			return 0, fmt.Errorf("%w: longer than %d bytes", ErrDamaged, b.d.Size)
		case errors.Is(err, io.EOF) && b.offset == b.d.Size:
			return n, b.finish()
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("%w: %d of %d bytes", errEnd, b.offset, b.d.Size)
		}
		if err != nil {
			err = b.again(err)
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

func (b *blobReader) read(p []byte) (n int, err error) {
	if b.r == nil && b.offset == b.d.Size && b.offset > 0 {
		return 0, io.EOF
	}
	if b.r == nil {
		if b.r, err = b.in.blob(b.ctx, b.d, b.offset); err != nil {
			return 0, err
		}
	}
	return b.r.Read(p)
}

func (b *blobReader) finish() error {
	if got := hex.EncodeToString(b.sum.Sum(nil)); !b.done && got != b.d.Digest.Hex {
		return fmt.Errorf("%w: its digest is sha256:%s", ErrDamaged, got)
	}
	b.done = true
	return io.EOF
}

// again waits before the blob is opened anew; what can't get better is given back.
func (b *blobReader) again(cause error) error {
	if err := b.Close(); err != nil && cause == nil {
		cause = err
	}
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if errors.Is(cause, ErrCredentials) || errors.Is(cause, ErrNoImage) || errors.Is(cause, registry.ErrBusy) ||
		b.failed >= b.in.attempts() {
		return cause
	}
	pause := time.NewTimer(retryPause << b.failed)
	defer pause.Stop()
	b.failed++
	select {
	case <-pause.C:
		return nil
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
}

func (b *blobReader) Close() error {
	if b.r == nil {
		return nil
	}
	if left := b.d.Size - b.offset; left <= bufferSize { // read to its end, a connection serves what comes next
		io.CopyN(io.Discard, b.r, left+1) // best effort
	}
	err := b.r.Close()
	b.r = nil
	return err
}

// Blob reads the layer's blob as the source has it. It ends with io.EOF only if size and digest are right.
func (l *Layer) Blob(ctx context.Context) io.ReadCloser {
	return newBlobReader(ctx, l.in, l.descriptor())
}

func (l *Layer) descriptor() v1.Descriptor {
	return v1.Descriptor{Digest: l.Digest, Size: l.Size, MediaType: l.MediaType}
}

// Content is a layer's uncompressed archive while it is read. Close it after use.
type Content struct {
	layer       *Layer
	blob        *blobReader
	compressed  *bufio.Reader
	plain       io.Reader
	closePlain  func()
	sum         hash.Hash
	compression Compression
	size        int64 // bytes of the archive that were read
	progress    func(int)
	broke       error // what went wrong with the blob, if anything did
	err         error
}

// Content opens the layer's archive. progress, which may be nil, is told how many bytes of the blob were read.
func (l *Layer) Content(ctx context.Context, progress func(n int)) (*Content, error) {
	c := &Content{layer: l, blob: newBlobReader(ctx, l.in, l.descriptor()), sum: sha256.New(), progress: progress}
	if err := c.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("layer %s: %w", l.Digest, err), c.Close())
	}
	return c, nil
}

const bufferSize = 256 << 10 // bytes

func (c *Content) start() error {
	c.compressed = bufio.NewReaderSize(watched{c}, bufferSize)
	head, err := c.compressed.Peek(HeadSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if c.compression = Detect(head); c.compression == Unknown {
		form := errForm(head)
		if _, err := io.Copy(io.Discard, c.compressed); err != nil { // these may not be the layer's bytes
			return err
		}
		return form
	}
	if c.plain, c.closePlain, err = decompress(c.compressed, c.compression); err != nil {
		return c.explain(err)
	}
	return nil
}

// Compression reports how the blob is compressed.
func (c *Content) Compression() Compression { return c.compression }

// Size is how many bytes of the archive were read: after Finish, all.
func (c *Content) Size() int64 { return c.size }

// Read returns the archive's bytes. io.EOF says that the archive ended, not yet that it is the right one: see Finish.
func (c *Content) Read(p []byte) (int, error) {
	if ctx := c.blob.ctx; ctx.Err() != nil { // a few bytes of a blob may become any number of these
		c.err = context.Cause(ctx)
		return 0, c.err
	}
	n, err := c.plain.Read(p)
	c.sum.Write(p[:n])
	c.size += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = fmt.Errorf("layer %s: %w", c.layer.Digest, c.explain(err))
		err = c.err
	}
	return n, err
}

// explain finds out whose a fault is. What went wrong with the blob goes before what its decompressor made of that;
// what a decompressor doesn't like in a blob that came as it is, is damage.
func (c *Content) explain(err error) error {
	if c.broke != nil {
		return c.broke
	}
	return fmt.Errorf("%w: it can't be decompressed: %w", ErrDamaged, err)
}

// Finish reads what is left and checks that blob and archive are those the image names. What was read before counts
// only if it gives nil.
func (c *Content) Finish() error {
	if c.err == nil {
		_, c.err = io.Copy(io.Discard, struct{ io.Reader }{c})
	}
	if c.err != nil {
		return c.err
	}
	// A decompressor stops at the end of its data; the blob may go on.
	if _, err := io.Copy(io.Discard, c.compressed); err != nil {
		return fmt.Errorf("layer %s: %w", c.layer.Digest, err)
	}
	if got := hex.EncodeToString(c.sum.Sum(nil)); got != c.layer.DiffID.Hex {
		return fmt.Errorf("layer %s: %w: its archive's digest is sha256:%s, the configuration says %s", c.layer.Digest,
			ErrDamaged, got, c.layer.DiffID)
	}
	return nil
}

// Close ends reading, at whatever point.
func (c *Content) Close() error {
	if c.closePlain != nil {
		c.closePlain()
		c.closePlain = nil
	}
	return c.blob.Close()
}

// watched reads a content's blob and notes how that goes.
type watched struct{ c *Content }

func (w watched) Read(p []byte) (int, error) {
	n, err := w.c.blob.Read(p)
	if w.c.progress != nil && n > 0 {
		w.c.progress(n)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		w.c.broke = err
	}
	return n, err
}
