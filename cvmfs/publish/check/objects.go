package check

import (
	"context"
	"fmt"
	"io"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

// objectName tells objects of files apart, and how they are read.
type objectName struct {
	digest      hash.Digest
	chunk       bool
	compression hash.Compression
}

// objectCheck is an object to be looked at.
type objectCheck struct {
	objectName
	size int64  // plain bytes
	at   string // a path that refers to it
}

// object has an object looked at, once.
func (c *checker) object(ctx context.Context, to chan<- objectCheck, o objectCheck) error {
	c.mu.Lock()
	size, seen := c.objects[o.objectName]
	if !seen {
		c.objects[o.objectName] = o.size
		c.summary.Objects++
		c.summary.Bytes += o.size
	}
	c.mu.Unlock()
	if seen {
		if size != o.size {
			c.problem(RuleObject, o.at, "it has %d bytes, but its object %v has %d elsewhere", o.size, o.digest, size)
		}
		return nil
	}
	select {
	case to <- o:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *checker) checkObjects(ctx context.Context, objects <-chan objectCheck) error {
	for o := range objects {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := c.checkObject(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) checkObject(ctx context.Context, o objectCheck) error {
	suffix := hash.File
	if o.chunk {
		suffix = hash.Chunk
	}
	if !c.o.Content {
		size, err := c.from.Stat(ctx, o.digest.Path(suffix))
		if err != nil {
			return c.flaw(RuleObject, o.at, fmt.Errorf("object %s: %w", o.digest.Path(suffix), err))
		}
		if o.compression == hash.None && size != o.size {
			c.problem(RuleObject, o.at, "object %s has %d bytes instead of %d", o.digest.Path(suffix), size, o.size)
		}
		return nil
	}
	n, err := storage.CopyObject(ctx, io.Discard, c.from, o.digest, suffix, o.compression, o.size)
	if err != nil {
		return c.flaw(RuleObject, o.at, err)
	}
	if n != o.size {
		c.problem(RuleObject, o.at, "object %s has %d plain bytes instead of %d", o.digest.Path(suffix), n, o.size)
	}
	return nil
}
