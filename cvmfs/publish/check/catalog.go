package check

import (
	"context"
	"database/sql/driver"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/cvmfs/sqlitefile"
)

// catalogCheck is a catalog to be looked at, and what its parent says of it.
type catalogCheck struct {
	digest hash.Digest
	path   string // "" for a root catalog
	size   int64  // plain bytes; 0: unknown
	parent *checkRow
}

// checkedCatalog is what others need to know of a catalog that was looked at.
type checkedCatalog struct {
	path     string
	size     int64
	root     *checkRow // nil: none
	revision uint64
	ttl      time.Duration
	total    catalog.Counters // its own and those of all below, counted
}

// catalog looks at a catalog and all below. It is nil, and the problem reported, if it can't be read.
func (c *checker) catalog(ctx context.Context, want catalogCheck, objects chan<- objectCheck) (*checkedCatalog, error) {
	c.mu.Lock()
	done := c.catalogs[want.digest]
	c.mu.Unlock()
	if done == nil {
		var err error
		if done, err = c.readCatalog(ctx, want, objects); done == nil || err != nil {
			return nil, err
		}
		c.mu.Lock()
		c.catalogs[want.digest] = done
		c.mu.Unlock()
	}
	c.compareMount(want, done)
	return done, nil
}

// compareMount compares a catalog with what its parent says of it.
func (c *checker) compareMount(want catalogCheck, got *checkedCatalog) {
	if got.path != want.path {
		c.problem(RulePrefix, want.path, "the catalog %v hangs at %.200q, too", want.digest, got.path)
		return
	}
	if want.size != 0 && got.size != want.size {
		c.problem(RuleSize, want.path, "the catalog %v has %d bytes instead of %d", want.digest, got.size, want.size)
	}
	if want.parent == nil || got.root == nil {
		return
	}
	if what := want.parent.differs(got.root); what != "" {
		c.problem(RuleRoot, want.path, "the rows in the catalog %v and in its parent differ in %s", want.digest, what)
	}
}

// readCatalog looks at a catalog's rows, then at those below it.
func (c *checker) readCatalog(ctx context.Context, want catalogCheck,
	objects chan<- objectCheck,
) (*checkedCatalog, error) {
	s, err := c.scan(ctx, want, objects)
	if s == nil || err != nil {
		return nil, err
	}
	below, err := c.children(ctx, s, objects)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.summary.Catalogs++
	c.summary.Entries += s.rows
	c.mu.Unlock()
	if below != nil {
		s.compareStatistics(*below)
		s.checked.total = s.counted.Add(*below)
	}
	return &s.checked, nil
}

// children looks at the catalogs that hang below one, and gives the sum of their counters; nil if one of them can't be
// read.
func (c *checker) children(ctx context.Context, s *catalogScan, objects chan<- objectCheck) (*catalog.Counters, error) {
	totals := make([]*checkedCatalog, len(s.nested))
	work, ctx := errgroup.WithContext(ctx)
	for i, n := range s.nested {
		if n.Digest.IsZero() {
			c.problem(RuleMounts, n.Path, "no catalog is named")
			continue
		}
		work.Go(func() (err error) {
			totals[i], err = c.catalog(ctx, catalogCheck{
				digest: n.Digest, path: n.Path, size: n.Size,
				parent: s.mounts[n.Path],
			}, objects)
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	var sum catalog.Counters
	for _, t := range totals {
		if t == nil {
			return nil, nil
		}
		sum = sum.Add(t.total)
	}
	return &sum, nil
}

// catalogScan is one catalog being looked at.
type catalogScan struct {
	c       *checker
	want    catalogCheck
	checked checkedCatalog
	file    *sqlitefile.File
	nested  []catalog.Nested
	schema  string
	columns string

	rows     int64
	counted  catalog.Counters
	counters map[string]int64 // as the catalog has them
	folders  map[hash.PathHash]*folderScan
	groups   map[uint32]*groupScan
	mounts   map[string]*checkRow // rows of nested catalogs' folders, by path
	chunks   []chunkRow           // sorted
	marker   bool
}

// folderScan is a folder of the catalog.
type folderScan struct {
	name    string
	parent  hash.PathHash
	path    string
	state   folderState
	mount   bool // another catalog continues here
	links   int64
	folders int64 // directly below
}

type folderState uint8

const (
	unplaced folderState = iota
	placing
	placed
	lost
)

// groupScan is a group of hard links.
type groupScan struct {
	first  string // what all must have in common
	name   string
	parent hash.PathHash
	links  int64
	rows   int64
}

// scan reads one catalog. It is nil, and the problem reported, if it can't be read.
func (c *checker) scan(ctx context.Context, want catalogCheck, objects chan<- objectCheck) (*catalogScan, error) {
	select {
	case c.readers <- struct{}{}:
		defer func() { <-c.readers }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	path := c.temp()
	defer os.Remove(path) // best effort: the folder goes at the end
	at := want.path
	if at == "" {
		at = want.digest.Path(hash.Catalog)
	}
	if err := storage.FetchDatabase(ctx, c.from, want.digest, hash.Catalog, catalog.MaxSize, path); err != nil {
		return nil, c.flaw(RuleCatalog, at, err)
	}
	s := &catalogScan{
		c: c, want: want, folders: map[hash.PathHash]*folderScan{}, groups: map[uint32]*groupScan{},
		mounts: map[string]*checkRow{}, counters: map[string]int64{},
	}
	if err := s.open(path); err != nil {
		return nil, c.flaw(RuleCatalog, at, err)
	}
	defer s.file.Close() // only read
	for _, step := range []func() error{
		s.readStatistics, s.readFolders, s.readMounts, s.readChunks,
		func() error { return s.readRows(ctx, objects) },
	} {
		if err := step(); err != nil {
			return nil, c.flaw(RuleCatalog, at, err)
		}
	}
	s.counted.Nested, s.counted.Chunks = int64(len(s.nested)), int64(len(s.chunks))
	s.finish()
	return s, nil
}

// open reads what the catalog says of itself.
func (s *catalogScan) open(path string) error {
	opened, err := catalog.Open(path)
	if err != nil {
		return err
	}
	defer opened.Close() // only read
	s.checked = checkedCatalog{path: s.want.path, revision: opened.Revision(), ttl: opened.TTL()}
	if opened.RootPrefix() != s.want.path {
		s.c.problem(RulePrefix, s.want.path, "the catalog %v says it is that of %.200q", s.want.digest,
			opened.RootPrefix())
	}
	if s.nested, err = opened.Nested(); err != nil {
		s.c.problem(RuleMounts, s.want.path, "%v", err)
	}
	if s.file, err = sqlitefile.Open(path, catalog.MaxSize, catalog.ErrInvalid); err != nil {
		return err
	}
	s.checked.size = s.file.Size()
	if s.columns, err = s.file.Columns("catalog", checkColumns, optionalCheckColumns); err != nil {
		return err
	}
	return s.file.Query("SELECT value FROM properties WHERE key = 'schema_revision'", nil,
		func(row []driver.Value) error {
			s.schema = fmt.Sprint(row[0])
			return nil
		})
}

// readStatistics reads the counters; since the fifth revision of the schema all must be there.
func (s *catalogScan) readStatistics() error {
	if err := s.file.CheckTables("statistics"); err != nil {
		return err
	}
	return s.file.Query("SELECT counter, value FROM statistics", nil, func(row []driver.Value) error {
		name, _ := row[0].(string)
		value, ok := row[1].(int64)
		if !ok || len(s.counters) > 1000 {
			return fmt.Errorf("%w: counter %.40q is %.40q", catalog.ErrInvalid, name, fmt.Sprint(row[1]))
		}
		s.counters[name] = value
		return nil
	})
}

func (s *catalogScan) compareStatistics(subtree catalog.Counters) {
	complete := s.schema >= "5"
	for _, part := range []struct {
		prefix string
		want   catalog.Counters
	}{{"self_", s.counted}, {"subtree_", subtree}} {
		part.want.Each(func(name string, want int64) {
			name = part.prefix + name
			if got, ok := s.counters[name]; got != want || !ok && complete {
				s.c.problem(RuleStatistics, s.want.path, "counter %s is %d, there are %d (counter there: %t)", name,
					got, want, ok)
			}
		})
	}
}

// readFolders finds the folders and their places.
func (s *catalogScan) readFolders() error {
	err := s.eachRow(func(r *checkRow) error {
		if r.isDir() {
			mount := r.flags&int64(catalog.Mountpoint|catalog.BindMount) != 0
			s.folders[r.path] = &folderScan{name: r.name, parent: r.parent, links: r.links(), mount: mount}
		}
		return nil
	})
	if err != nil {
		return err
	}
	root := hash.OfPath(s.checked.path)
	top := s.folders[root]
	if top == nil {
		s.c.problem(RuleRoot, s.want.path, "the catalog has no row for its root, or one that is no folder")
		s.folders[root] = &folderScan{path: s.checked.path, state: placed}
	} else {
		top.path, top.state, top.mount = s.checked.path, placed, false
	}
	for self := range s.folders {
		s.place(self)
	}
	for self, f := range s.folders {
		if self == root {
			continue
		}
		if parent := s.folders[f.parent]; parent != nil {
			parent.folders++
		}
	}
	return nil
}

// place finds a folder's path by going up, and reports whether it has one. It doesn't recurse: a file's rows could go
// down without end.
func (s *catalogScan) place(self hash.PathHash) {
	var chain []*folderScan
	at := self
	f := s.folders[at]
	for f != nil && f.state == unplaced {
		f.state = placing
		chain = append(chain, f)
		at = f.parent
		f = s.folders[at]
	}
	good := f != nil && f.state == placed
	path := ""
	if good {
		path = f.path
		good = !f.mount
	}
	for _, f := range slices.Backward(chain) {
		path += "/" + f.name
		f.state = lost
		if good {
			f.state, f.path = placed, path
		}
		good = good && !f.mount
	}
}

// readMounts compares the folders flagged as mounts with the lists of them.
func (s *catalogScan) readMounts() error {
	listed := map[hash.PathHash]string{}
	for _, n := range s.nested {
		listed[hash.OfPath(n.Path)] = n.Path
	}
	if err := s.readBinds(listed); err != nil {
		return err
	}
	for path, name := range listed {
		if f := s.folders[path]; f == nil || !f.mount {
			s.c.problem(RuleMounts, name, "a catalog is listed, but there is no folder flagged as its mount")
		}
	}
	for path, f := range s.folders {
		if _, ok := listed[path]; f.mount && !ok {
			s.c.problem(RuleMounts, f.path, "the folder is flagged as a mount, but no catalog is listed")
		}
	}
	return nil
}

func (s *catalogScan) readBinds(listed map[hash.PathHash]string) error {
	has := false
	const find = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'bind_mountpoints'"
	if err := s.file.Query(find, nil, func([]driver.Value) error { has = true; return nil }); err != nil || !has {
		return err
	}
	if err := s.file.CheckTables("bind_mountpoints"); err != nil {
		return err
	}
	return s.file.Query("SELECT path FROM bind_mountpoints", nil, func(row []driver.Value) error {
		path, _ := row[0].(string)
		if _, twice := listed[hash.OfPath(path)]; twice {
			s.c.problem(RuleMounts, path, "it is listed twice")
		}
		listed[hash.OfPath(path)] = path
		return nil
	})
}

// readRows looks at each row.
func (s *catalogScan) readRows(ctx context.Context, objects chan<- objectCheck) error {
	return s.eachRow(func(r *checkRow) error {
		s.rows++
		if s.rows%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if r.chunked() {
			r.chunks = s.chunksOf(r.path)
		}
		s.count(r)
		at := s.locate(r)
		s.checkRow(r, at)
		s.noteLayer(r, at)
		return s.content(ctx, r, at, objects)
	})
}

// locate returns the path of a row, or its name where it is in no folder.
func (s *catalogScan) locate(r *checkRow) string {
	if r.path == hash.OfPath(s.checked.path) {
		s.checkRoot(r)
		return s.checked.path
	}
	folder := s.folders[r.parent]
	switch {
	case folder == nil || folder.state != placed:
		s.c.problem(RuleTree, r.name, "the row is in no folder of the catalog of %.200q", s.checked.path)
		return r.name
	case folder.mount:
		s.c.problem(RuleMounts, folder.path+"/"+r.name, "the row is below a folder that another catalog continues")
	}
	at := folder.path + "/" + r.name
	if hash.OfPath(at) != r.path {
		s.c.problem(RuleTree, at, "the row's hash is that of another path")
	}
	if r.isDir() && r.flags&int64(catalog.Mountpoint) != 0 {
		kept := *r
		s.mounts[at] = &kept
	}
	return at
}

// checkRoot looks at the row of the catalog's root.
func (s *catalogScan) checkRoot(r *checkRow) {
	kept := *r
	s.checked.root = &kept
	path := s.checked.path
	cut := strings.LastIndexByte(path, '/')
	parent, name := hash.PathHash{}, ""
	if cut >= 0 {
		parent, name = hash.OfPath(path[:cut]), path[cut+1:]
	}
	if r.parent != parent {
		s.c.problem(RuleRoot, path, "the root's row is not in the folder above")
	}
	if r.name != name {
		s.c.problem(RuleRoot, path, "the root's row has the name %.80q", r.name)
	}
	if nested := r.flags&int64(catalog.NestedRoot) != 0; nested != (path != "") {
		s.c.problem(RuleRoot, path, "the root's row has the flags %#x", r.flags)
	}
}

// finish looks at what is only known after the last row.
func (s *catalogScan) finish() {
	for id, g := range s.groups {
		if g.rows != g.links {
			s.c.problem(RuleLinks, g.name, "group %d of hard links has %d rows, each says %d", id, g.rows, g.links)
		}
	}
	for _, f := range s.folders {
		if f.state == placed && !f.mount && f.links != 2+f.folders {
			s.c.problem(RuleFolder, f.path, "the folder has %d subfolders and a link count of %d", f.folders, f.links)
		}
	}
	if s.checked.path != "" && !s.marker {
		s.c.problem(RuleMarker, s.checked.path, "a nested catalog's root without %s", catalog.Marker)
	}
	for _, left := range s.chunks {
		if !left.used {
			s.c.problem(RuleChunks, s.checked.path, "a chunk of %d bytes at %d belongs to no chunked file", left.size,
				left.offset)
		}
	}
}
