package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/objects"
)

// maxInMemory is the largest object that is verified in memory, in plain bytes; larger ones go through a file.
const maxInMemory = 1 << 20

// Open reads the regular file at a path, whose entry is known. What it gives was verified: a whole object before its
// first byte is given, chunks one after the other. ctx governs reading, too. Errors wrap ErrIncomplete if an object is
// missing on all servers.
func (v *Revision) Open(ctx context.Context, path string, e *catalog.Entry) (io.ReadCloser, error) {
	return v.OpenRange(ctx, path, e, 0, e.Size)
}

// OpenRange is Open for length bytes from offset on, or as many as there are. Chunks outside of the range are not
// fetched; a file that is one object is fetched whole, as it can't be verified otherwise.
func (v *Revision) OpenRange(ctx context.Context, path string, e *catalog.Entry, offset, length int64) (
	io.ReadCloser, error,
) {
	o, err := objects.FromEntry(e, path)
	if err != nil {
		return nil, err
	}
	o.File = path
	if offset < 0 || length < 0 || offset > o.Size {
		return nil, fmt.Errorf("content of %q in %s: no %d bytes at %d: it has %d", e.Name, v.FQRN, length, offset, o.Size)
	}
	length = min(length, o.Size-offset)
	c := &content{ctx: ctx, repo: v.repo, name: e.Name, left: length}
	for _, part := range o.Stored() {
		if part.Offset < offset+length && part.Offset+part.Size > offset || o.Size == 0 {
			c.parts = append(c.parts, part)
		}
	}
	if len(c.parts) == 0 {
		return c, nil
	}
	c.skip = offset - c.parts[0].Offset
	if err := c.next(); err != nil {
		c.Close() // the error that is told is the first one
		return nil, err
	}
	return c, nil
}

// OpenPath is OpenRange for the regular file at a path. No symbolic link is followed.
func (v *Revision) OpenPath(ctx context.Context, path string, offset, length int64) (io.ReadCloser, error) {
	e, err := v.Lookup(ctx, path)
	if err != nil {
		return nil, err
	}
	if e.Target != "" {
		return nil, fmt.Errorf("%.200q in %s is a symbolic link to %.200q: name the file it leads to", path, v.FQRN,
			v.repo.Expand(e.Target))
	}
	return v.OpenRange(ctx, path, e, offset, length)
}

// content is an open file. Its objects are got one by one into a spool.
type content struct {
	ctx   context.Context
	repo  *Repository
	name  string
	parts []objects.Stored // still to come
	skip  int64            // bytes of the next part that are not wanted
	left  int64            // bytes that are wanted
	spool spool
}

// next gets the next object.
func (c *content) next() error {
	part := c.parts[0]
	c.parts = c.parts[1:]
	c.spool.small, c.spool.dir = part.Size <= maxInMemory, c.repo.temporary()
	err := part.Download(c.ctx, c.repo.cfg.Fetcher, &c.spool)
	if errors.Is(err, objects.ErrSize) {
		err = fmt.Errorf("%w: %w", ErrInconsistent, err)
	}
	if err != nil {
		return fmt.Errorf("content of %q in %s: %w", c.name, c.repo.cfg.FQRN, missing(err))
	}
	if err := c.spool.rewind(); err != nil {
		return err
	}
	skip := c.skip
	c.skip = 0
	return c.spool.discard(skip)
}

func (c *content) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), c.left)]
	for {
		n, err := c.spool.Read(p)
		c.left -= int64(n)
		if !errors.Is(err, io.EOF) || n > 0 {
			return n, err
		}
		if len(c.parts) == 0 {
			return 0, io.EOF
		}
		if err := c.next(); err != nil {
			return 0, err
		}
	}
}

func (c *content) Close() error { return c.spool.close() }

// spool holds the bytes of an object until they may be believed: small ones in memory, others in a file without a name.
type spool struct {
	dir     string
	small   bool
	memory  bytes.Buffer
	file    *os.File
	written int64
}

// Reset implements objects.Resetter.
func (s *spool) Reset() error {
	s.written = 0
	s.memory.Reset()
	if s.small || s.file != nil {
		return s.rewind()
	}
	f, err := os.CreateTemp(s.dir, "content-")
	if err != nil {
		return err
	}
	s.file = f
	return os.Remove(f.Name())
}

func (s *spool) Write(p []byte) (int, error) {
	s.written += int64(len(p))
	if s.small {
		return s.memory.Write(p)
	}
	return s.file.Write(p)
}

// rewind goes back to the first byte, for reading as for writing.
func (s *spool) rewind() error {
	if s.file == nil {
		return nil
	}
	_, err := s.file.Seek(0, io.SeekStart)
	return err
}

func (s *spool) Read(p []byte) (int, error) {
	if s.small {
		return s.memory.Read(p)
	}
	// The file may be longer: what an object before this one left.
	n, err := io.LimitReader(s.file, s.written).Read(p)
	s.written -= int64(n)
	return n, err
}

// discard passes over the next n bytes.
func (s *spool) discard(n int64) error {
	if s.small {
		s.memory.Next(int(n))
		return nil
	}
	s.written -= n
	_, err := s.file.Seek(n, io.SeekCurrent)
	return err
}

func (s *spool) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
