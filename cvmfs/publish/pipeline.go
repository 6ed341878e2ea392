package publish

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/semaphore"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

// pipeline makes objects of plain bytes: several workers hash, compress and store what readers of archives hand them in
// buffers. The buffers are bounded in bytes, so a reader waits while the workers have enough to do.
type pipeline struct {
	storage   storage.Storage
	algorithm hash.Algorithm
	index     *contentIndex

	kind byte // of content, but for chunks

	room  *semaphore.Weighted // bytes of buffers
	sizes []int               // of buffers, growing
	pools []sync.Pool         // one for each size

	jobs    chan job
	workers sync.WaitGroup

	mu      sync.Mutex
	done    map[content]storedObject // stored, or found in the storage, by this pipeline
	flights map[content]*flight
}

// job is a piece of content on its way.
type job struct {
	ctx   context.Context
	buf   *buffer
	chunk bool
	done  func(object, error)
}

// object is what became of a piece of content.
type object struct {
	digest hash.Digest
	put    int64 // bytes stored for it; 0: it was there
	reused bool
}

// flight is an object in the making. Others with the same content wait for it.
type flight struct {
	done chan struct{}
	made storedObject
	err  error
}

// The bytes all buffers may have together, and sizes of buffers below the largest.
const (
	pipelineBudget = 48 << 20
	smallBuffer    = 128 << 10
	middleBuffer   = 2 << 20
)

// buffer is room for plain bytes; bytes are what it holds.
type buffer struct {
	room  []byte
	bytes []byte
	size  int // which of pipeline.sizes
}

// newPipeline starts the workers. Buffers hold up to largest bytes.
func newPipeline(
	s storage.Storage, a hash.Algorithm, c hash.Compression, x *contentIndex, largest, workers int,
) (*pipeline, error) {
	p := &pipeline{
		storage: s, algorithm: a, index: x, kind: kindOf(a, c),
		jobs: make(chan job), done: map[content]storedObject{}, flights: map[content]*flight{},
	}
	p.room = semaphore.NewWeighted(max(pipelineBudget, 2*int64(largest)))
	for _, size := range []int{smallBuffer, middleBuffer} {
		if size < largest {
			p.sizes = append(p.sizes, size)
		}
	}
	p.sizes = append(p.sizes, largest)
	p.pools = make([]sync.Pool, len(p.sizes))
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	for range workers {
		e, err := newEncoder(a, c)
		if err != nil {
			p.close()
			return nil, err
		}
		p.workers.Go(func() {
			for j := range p.jobs {
				o, err := p.make(j.ctx, e, p.content(j.buf.bytes, j.chunk), j.buf.bytes)
				p.release(j.buf)
				j.done(o, err)
			}
		})
	}
	return p, nil
}

// close ends the workers when they have done what they were given. No more may be given.
func (p *pipeline) close() {
	close(p.jobs)
	p.workers.Wait()
}

// content names plain bytes.
func (p *pipeline) content(plain []byte, chunk bool) content {
	c := content{sha256.Sum256(plain), p.kind}
	if chunk {
		c.kind |= chunkKind
	}
	return c
}

// buffer waits for room for size bytes, at most the largest of the sizes.
func (p *pipeline) buffer(ctx context.Context, size int64) (*buffer, error) {
	i := 0
	for i+1 < len(p.sizes) && int64(p.sizes[i]) < size {
		i++
	}
	if err := p.room.Acquire(ctx, int64(p.sizes[i])); err != nil {
		return nil, context.Cause(ctx)
	}
	if b, ok := p.pools[i].Get().(*buffer); ok {
		return b, nil
	}
	return &buffer{room: make([]byte, p.sizes[i]), size: i}, nil
}

func (p *pipeline) release(b *buffer) {
	b.bytes = nil
	p.pools[b.size].Put(b)
	p.room.Release(int64(len(b.room)))
}

// submit hands a buffer to the workers, who release it and call done. With an error neither is done.
func (p *pipeline) submit(ctx context.Context, b *buffer, chunk bool, done func(object, error)) error {
	select {
	case p.jobs <- job{ctx, b, chunk, done}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// make sees to it that the object of a content is in the storage. Of several callers with the same content one does the
// work.
func (p *pipeline) make(ctx context.Context, e *encoder, c content, plain []byte) (object, error) {
	for {
		p.mu.Lock()
		if m, ok := p.done[c]; ok {
			p.mu.Unlock()
			return p.object(m, 0), nil
		}
		f, ok := p.flights[c]
		if !ok {
			f = &flight{done: make(chan struct{})}
			p.flights[c] = f
		}
		p.mu.Unlock()
		if !ok {
			return p.fly(ctx, e, c, plain, f)
		}
		select {
		case <-f.done:
			if f.err == nil {
				return p.object(f.made, 0), nil
			}
			// The other's failure may be the end of its own context: try again.
		case <-ctx.Done():
			return object{}, context.Cause(ctx)
		}
	}
}

func (p *pipeline) object(m storedObject, put int64) object {
	return object{digest: hash.Digest{Algorithm: p.algorithm, Sum: m.sum}, put: put, reused: put == 0}
}

func (p *pipeline) fly(ctx context.Context, e *encoder, c content, plain []byte, f *flight) (object, error) {
	var put int64
	f.made, put, f.err = p.store(ctx, e, c, plain)
	p.mu.Lock()
	delete(p.flights, c)
	if f.err == nil {
		p.done[c] = f.made
	}
	p.mu.Unlock()
	close(f.done)
	if f.err != nil {
		return object{}, f.err
	}
	return p.object(f.made, put), nil
}

// store makes and stores an object, unless one made of the same content is there.
func (p *pipeline) store(
	ctx context.Context, e *encoder, c content, plain []byte,
) (m storedObject, put int64, err error) {
	if ctx.Err() != nil {
		return storedObject{}, 0, context.Cause(ctx)
	}
	if m, ok := p.index.find(c); ok {
		d := hash.Digest{Algorithm: p.algorithm, Sum: m.sum}
		switch has, err := stored(ctx, p.storage, d.Path(c.suffix()), int64(m.size)); {
		case err != nil:
			return storedObject{}, 0, err
		case has:
			return m, 0, nil
		}
	}
	b, d, err := e.encode(plain)
	if err != nil {
		return storedObject{}, 0, fmt.Errorf("compress: %w", err)
	}
	m = storedObject{d.Sum, uint32(len(b))}
	fresh, err := putOnce(ctx, p.storage, d.Path(c.suffix()), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return storedObject{}, 0, err
	}
	if fresh {
		put = int64(len(b))
	}
	return m, put, p.index.add(c, m)
}
