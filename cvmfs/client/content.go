package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
)

// maxInMemory is the largest object that is verified in memory, in plain bytes; larger ones go through a file.
const maxInMemory = 1 << 20

// Open reads a regular file. What it gives was verified: a whole object before its first byte is given, chunks one
// after the other. ctx governs reading, too. Errors wrap ErrIncomplete if an object is missing on all servers.
func (v *Revision) Open(ctx context.Context, e *catalog.Entry) (io.ReadCloser, error) {
	o, err := objects.FromEntry(e)
	if err != nil {
		return nil, err
	}
	c := &content{ctx: ctx, repo: v.repo, name: e.Name, compression: o.Compression, suffix: hash.Chunk, parts: o.Chunks}
	if len(o.Chunks) == 0 {
		c.suffix, c.parts = hash.File, []catalog.Chunk{{Size: o.Size, Digest: o.Digest}}
	}
	if err := c.next(); err != nil {
		c.Close() // the error that is told is the first one
		return nil, err
	}
	return c, nil
}

// content is an open file. Its objects are got one by one into a spool.
type content struct {
	ctx         context.Context
	repo        *Repository
	name        string
	compression hash.Compression
	suffix      hash.Suffix
	parts       []catalog.Chunk // still to come
	spool       spool
}

// next gets the next object.
func (c *content) next() error {
	part := c.parts[0]
	c.parts = c.parts[1:]
	c.spool.small, c.spool.dir = part.Size <= maxInMemory, c.repo.temporary()
	err := objects.Download(c.ctx, c.repo.cfg.Fetcher, part.Digest, c.suffix, c.compression, part.Size, &c.spool)
	switch {
	case err != nil:
		return fmt.Errorf("content of %q in %s: %w", c.name, c.repo.cfg.FQRN, missing(err))
	case c.spool.written != part.Size:
		return fmt.Errorf("content of %q in %s: object %v has %d plain bytes, the catalog says %d: %w",
			c.name, c.repo.cfg.FQRN, part.Digest, c.spool.written, part.Size, ErrInconsistent)
	}
	return c.spool.rewind()
}

func (c *content) Read(p []byte) (int, error) {
	for {
		n, err := c.spool.Read(p)
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

func (s *spool) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
