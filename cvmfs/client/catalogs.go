package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/objects"
)

// mount is a catalog and where it joins the tree.
type mount struct {
	path   string
	digest hash.Digest
	size   int64 // plain bytes; 0: unknown
}

// holds reports whether path lies in the mount's subtree, its root included.
func (m mount) holds(path string) bool {
	rest, ok := strings.CutPrefix(path, m.path)
	return ok && (rest == "" || rest[0] == '/')
}

// use opens a catalog, from disk or else from the servers, and hands it to fn. If fn finds a copy from disk damaged, it
// is called a second time with a fresh one.
func (r *Repository) use(ctx context.Context, m mount, fn func(*catalog.Catalog) error) error {
	c, cached, err := r.open(ctx, m)
	if err != nil {
		return err
	}
	err = errors.Join(fn(c), c.Close())
	if !cached || !errors.Is(err, catalog.ErrInvalid) {
		return err
	}
	r.drop(m, err)
	if c, _, err = r.open(ctx, m); err != nil {
		return err
	}
	return errors.Join(fn(c), c.Close())
}

// open returns an open catalog that is what the mount says, and reports whether it was on disk already.
func (r *Repository) open(ctx context.Context, m mount) (c *catalog.Catalog, cached bool, err error) {
	c, err = r.openFile(m)
	cached = err == nil
	if errors.Is(err, catalog.ErrInvalid) {
		r.drop(m, err)
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err = r.download(ctx, m); err == nil {
			c, err = r.openFile(m)
			err = missing(err)
		}
	}
	if err == nil && c.RootPrefix() != m.path {
		err = errors.Join(fmt.Errorf("its root is %q: %w", c.RootPrefix(), ErrInconsistent), c.Close())
	}
	if err != nil {
		return nil, false, fmt.Errorf("catalog %v of %q: %w", m.digest, m.path, err)
	}
	return c, cached, nil
}

func (r *Repository) file(m mount) string {
	return filepath.Join(r.catalogs(), m.digest.String()+string(hash.Catalog))
}

// bring makes sure that there is a copy on disk.
func (r *Repository) bring(ctx context.Context, m mount) error {
	err := r.touch(m)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrInvalid) {
		err = r.download(ctx, m)
	}
	if err != nil {
		return fmt.Errorf("catalog %v of %q: %w", m.digest, m.path, err)
	}
	return nil
}

// touch looks at the copy on disk and marks it as used.
func (r *Repository) touch(m mount) error {
	info, err := os.Lstat(r.file(m))
	if err != nil {
		return err
	}
	if m.size > 0 && info.Size() != m.size {
		return fmt.Errorf("%w: %d bytes, expected %d", catalog.ErrInvalid, info.Size(), m.size)
	}
	now := time.Now()
	return os.Chtimes(r.file(m), now, now)
}

// openFile opens the copy on disk.
func (r *Repository) openFile(m mount) (*catalog.Catalog, error) {
	if err := r.touch(m); err != nil {
		return nil, err
	}
	return catalog.Open(r.file(m))
}

// drop removes a copy found damaged.
func (r *Repository) drop(m mount, because error) {
	r.cfg.Log.Warn("catalog on disk is damaged, getting it anew", "catalog", m.digest.String(), "err", because)
	os.Remove(r.file(m)) // what can't be removed is replaced by rename
}

// download brings a catalog to disk. It gets its name when its digest has been checked and its content is on the
// medium.
func (r *Repository) download(ctx context.Context, m mount) error {
	if m.digest.IsZero() {
		return fmt.Errorf("the publisher has not finished it: %w", ErrInconsistent)
	}
	if m.size > catalog.MaxSize {
		return fmt.Errorf("%w: %d bytes, more than the limit of %d", catalog.ErrInvalid, m.size, int64(catalog.MaxSize))
	}
	f, err := os.CreateTemp(r.temporary(), "catalog-")
	if err != nil {
		return err
	}
	limit := cmp.Or(m.size, catalog.MaxSize)
	err = objects.Download(ctx, r.cfg.Fetcher, m.digest, hash.Catalog, hash.Zlib, limit, objects.File{File: f})
	if err := keep(f, r.file(m), missing(err)); err != nil {
		return err
	}
	return r.trim(r.file(m))
}

// missing turns "not found" into ErrIncomplete.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %v", ErrIncomplete, err) //nolint:errorlint // must not be fs.ErrNotExist any more
	}
	return err
}

// trim counts a new catalog and, where the limit is passed, removes those used least recently until three quarters of
// it are left. One that is open stays readable; one just got or used is left for whoever is about to open it.
func (r *Repository) trim(added string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := os.Stat(added)
	if err != nil {
		return err
	}
	if r.kept >= 0 && r.kept+info.Size() <= r.cfg.CatalogLimit {
		r.kept += info.Size()
		return nil
	}
	r.sweep()
	files, total, err := r.list()
	if err != nil {
		return err
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	enough := total
	if total > r.cfg.CatalogLimit {
		enough = r.cfg.CatalogLimit / 4 * 3
	}
	for _, f := range files {
		if total <= enough || time.Since(f.ModTime()) < inUse {
			break
		}
		if err := os.Remove(filepath.Join(r.catalogs(), f.Name())); err != nil {
			return err
		}
		total -= f.Size()
	}
	r.kept = total
	return nil
}

// list returns the catalogs on disk and their bytes.
func (r *Repository) list() (files []fs.FileInfo, total int64, err error) {
	entries, err := os.ReadDir(r.catalogs())
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		files = append(files, info)
		total += info.Size()
	}
	return files, total, nil
}

// inUse is how long after its last use a catalog isn't removed.
const inUse = time.Minute

// staleAfter is the age at which a temporary file can't be in use: no download takes as long.
const staleAfter = 24 * time.Hour

// sweep removes what former lives of the process left half done.
func (r *Repository) sweep() {
	entries, err := os.ReadDir(r.temporary())
	if err != nil {
		return // the folder is made by New; where it is gone, nothing is left over
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > staleAfter {
			os.Remove(filepath.Join(r.temporary(), e.Name())) // tried again next time
		}
	}
}
