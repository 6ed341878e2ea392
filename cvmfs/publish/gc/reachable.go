package gc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

// catalogReaders is how many catalogs are read at once. Each takes some memory while it is.
const catalogReaders = 4

// objectKey is an object's name, small enough to have millions of them.
type objectKey struct {
	sum       [hash.Size]byte
	algorithm hash.Algorithm
	suffix    byte // 0: none
}

func objectNamed(d hash.Digest, s hash.Suffix) objectKey {
	o := objectKey{sum: d.Sum, algorithm: d.Algorithm}
	if s != hash.File {
		o.suffix = s[0]
	}
	return o
}

// parseObject reads the name of a file below data/.
func parseObject(name string) (objectKey, bool) {
	rest, ok := strings.CutPrefix(name, storage.DataFolder+"/")
	folder, rest, slash := strings.Cut(rest, "/")
	if !ok || !slash || len(folder) != 2 || rest == "" {
		return objectKey{}, false
	}
	suffix := hash.File
	if last := rest[len(rest)-1:]; strings.Contains("CHXMP", last) {
		suffix, rest = hash.Suffix(last), rest[:len(rest)-1]
	}
	d, err := hash.Parse(folder + rest)
	return objectNamed(d, suffix), err == nil
}

// reachable is a set of objects: what catalogs lead to.
type reachable struct {
	r       *publish.Repository
	mu      sync.Mutex
	objects map[objectKey]struct{}
	files   int
}

func newReachable(r *publish.Repository) *reachable {
	return &reachable{r: r, objects: map[objectKey]struct{}{}}
}

func (s *reachable) has(o objectKey) bool {
	_, ok := s.objects[o]
	return ok
}

func (s *reachable) add(d hash.Digest, suffix hash.Suffix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[objectNamed(d, suffix)] = struct{}{}
}

// walk adds the catalogs and everything they lead to. Where another set is given, those that are in it are passed over,
// and so are those that can't be read: what hangs on them is orphaned.
func (s *reachable) walk(ctx context.Context, catalogs []hash.Digest, other *reachable) error {
	seen := map[hash.Digest]bool{}
	for len(catalogs) > 0 {
		var mu sync.Mutex
		var below []hash.Digest
		work, ctx := errgroup.WithContext(ctx)
		work.SetLimit(catalogReaders)
		for _, d := range catalogs {
			if seen[d] || other != nil && other.has(objectNamed(d, hash.Catalog)) {
				continue
			}
			seen[d] = true
			work.Go(func() error {
				nested, err := s.read(ctx, d)
				if other != nil && unreadable(err) {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				below = append(below, nested...)
				return err
			})
		}
		if err := work.Wait(); err != nil {
			return err
		}
		catalogs = below
	}
	return nil
}

// unreadable reports whether a catalog is missing or broken, be it by a collection that was killed.
func unreadable(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, storage.ErrDamaged) || errors.Is(err, catalog.ErrInvalid)
}

// read adds a catalog and what it names, and gives those nested in it.
func (s *reachable) read(ctx context.Context, d hash.Digest) ([]hash.Digest, error) {
	s.add(d, hash.Catalog)
	s.mu.Lock()
	s.files++
	path := filepath.Join(s.r.Temp(), fmt.Sprintf("gc.%p.%d", s, s.files))
	s.mu.Unlock()
	if err := storage.FetchDatabase(ctx, s.r.Storage(), d, hash.Catalog, catalog.MaxSize, path); err != nil {
		return nil, err
	}
	defer os.Remove(path) // best effort: the folder is emptied at the end
	c, err := catalog.Open(path)
	if err != nil {
		return nil, err
	}
	defer c.Close() // only read
	err = c.Rows(ctx, func(_, _ hash.PathHash, e *catalog.Entry) error {
		if !e.Digest.IsZero() {
			s.add(e.Digest, hash.File)
		}
		for _, chunk := range e.Chunks {
			s.add(chunk.Digest, hash.Chunk)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	nested, err := c.Nested()
	var digests []hash.Digest
	for _, n := range nested {
		if !n.Digest.IsZero() {
			digests = append(digests, n.Digest)
		}
	}
	return digests, err
}
