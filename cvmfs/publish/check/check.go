package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/cvmfs/trust"
)

// Options say what is checked, and against what.
type Options struct {
	FQRN      string
	Keys      trust.Keys  // of the masters
	Content   bool        // read every object and compare its digest and its plain size; else objects must be there
	ReflogSum hash.Digest // what the publisher noted of the reflog; zero: the manifest's word counts
	Dir       string      // for temporary files; "": the system's
	Workers   int         // that read; 0: four for each processor
	Now       time.Time   // what the whitelist's expiry is compared with; zero: now
}

// Summary is what was looked at.
type Summary struct {
	Revision uint64
	Roots    int // revisions: the newest and those with a tag
	Catalogs int
	Entries  int64 // rows
	Objects  int   // of files
	Bytes    int64 // plain bytes of these objects, each once
	Problems int

	Undescribed int // layers without an info: older versions wrote none
}

// Run holds the newest revision and all with a tag to every rule, and calls report, never twice at once, with what it
// finds. An error means that it could not go on.
func Run(ctx context.Context, from storage.Reader, o Options, report func(Problem)) (*Summary, error) {
	s, err := run(ctx, from, o, report)
	if err != nil {
		return nil, fmt.Errorf("check %s in %v: %w", o.FQRN, from, err)
	}
	return s, nil
}

func run(ctx context.Context, from storage.Reader, o Options, report func(Problem)) (_ *Summary, err error) {
	if o.Workers <= 0 {
		o.Workers = 4 * runtime.GOMAXPROCS(0)
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	c := &checker{
		from: from, o: o, report: report, catalogs: map[hash.Digest]*checkedCatalog{}, objects: map[objectName]int64{},
		readers: make(chan struct{}, o.Workers), layers: map[string]bool{}, described: map[string]bool{},
	}
	if c.dir, err = os.MkdirTemp(o.Dir, "check-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.dir)) }()
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	return &c.summary, nil
}

// checker is one check. What is below mu is shared by those who read.
type checker struct {
	from    storage.Reader
	o       Options
	report  func(Problem)
	dir     string
	readers chan struct{} // a place for each that may read at once

	mu       sync.Mutex
	summary  Summary
	files    int
	catalogs map[hash.Digest]*checkedCatalog
	objects  map[objectName]int64 // plain sizes

	layers    map[string]bool // folders that are called as layers are
	described map[string]bool // those with an info
	beside    []besideLayer
}

func (c *checker) problem(rule, at, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.summary.Problems++
	c.report(Problem{Rule: rule, At: at, Text: fmt.Sprintf(format, args...)})
}

// flaw reports an error that lies in what is checked; others are given back.
func (c *checker) flaw(rule, at string, err error) error {
	for _, flaw := range []error{
		fs.ErrNotExist, storage.ErrDamaged, catalog.ErrInvalid, history.ErrInvalid, trust.ErrInvalid,
	} {
		if errors.Is(err, flaw) {
			c.problem(rule, at, "%v", err)
			return nil
		}
	}
	return err
}

func (c *checker) temp() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files++
	return filepath.Join(c.dir, fmt.Sprint(c.files))
}

func (c *checker) run(ctx context.Context) error {
	m, err := c.manifest(ctx)
	if m == nil || err != nil {
		return err
	}
	c.summary.Revision = m.Revision
	for _, step := range []func(context.Context, *manifest.Manifest) error{c.metainfo, c.reflog, c.altPaths} {
		if err := step(ctx, m); err != nil {
			return err
		}
	}
	roots, err := c.history(ctx, m)
	if err != nil {
		return err
	}
	parent := ctx
	work, ctx := errgroup.WithContext(ctx)
	objects := make(chan objectCheck, 1024)
	work.Go(func() error {
		defer close(objects)
		for _, root := range roots {
			if err := c.root(ctx, root, objects); err != nil {
				return err
			}
		}
		return nil
	})
	for range c.o.Workers {
		work.Go(func() error { return c.checkObjects(ctx, objects) })
	}
	if err := work.Wait(); err != nil {
		return err
	}
	return c.checkLayers(parent)
}

// root walks a revision.
func (c *checker) root(ctx context.Context, r rootCheck, objects chan<- objectCheck) error {
	c.summary.Roots++
	top, err := c.catalog(ctx, catalogCheck{digest: r.digest, size: r.size}, objects)
	if top == nil || err != nil || r.head == nil {
		return err
	}
	if top.revision != r.head.Revision {
		c.problem(
			RuleManifest,
			manifest.FileName,
			"it says revision %d, the root catalog %d",
			r.head.Revision,
			top.revision,
		)
	}
	if top.ttl != r.head.TTL {
		c.problem(RuleManifest, manifest.FileName, "it says a TTL of %v, the root catalog %v", r.head.TTL, top.ttl)
	}
	return nil
}
