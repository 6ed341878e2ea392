package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/trust"
)

// The rules a repository is held to. Most are those of the reference's integrity check (CernVM-FS server,
// swissknife_check.cc); the others are what publishing and replicating rely on.
const (
	RuleSignature  = "signature"   // the manifest is there, and signed by who may publish
	RuleWhitelist  = "whitelist"   // the whitelist is not over
	RuleManifest   = "manifest"    // the manifest's other fields agree with the root catalog
	RuleMetainfo   = "metainfo"    // the metainfo object is there, and JSON
	RuleReflog     = "reflog"      // the reflog is the one of the manifest, and lists what the manifest names
	RuleHistory    = "history"     // the tags are in order; trunk is the newest revision
	RuleAltPaths   = "altpaths"    // the alternative names that the manifest promises are there
	RuleCatalog    = "catalog"     // a catalog is there, undamaged and readable
	RuleSize       = "size"        // a catalog has the size that is said of it
	RulePrefix     = "root prefix" // a catalog is that of the folder it hangs at
	RuleRoot       = "root row"    // the row of a catalog's root agrees with the parent's row of it
	RuleMounts     = "mounts"      // folders flagged as mounts and the lists of nested catalogs agree
	RuleTree       = "tree"        // each row is in a folder of its catalog, at the place its hash says
	RuleStatistics = "statistics"  // the counters are right
	RuleRow        = "row"         // a row has a name, a link count, a known type and flags to match
	RuleMarker     = "marker"      // .cvmfscatalog is in the roots of nested catalogs, and nowhere else
	RuleContent    = "content"     // files have content, and nothing else has
	RuleChunks     = "chunks"      // chunks cover their file
	RuleLinks      = "links"       // groups of hard links are whole, alike and within one folder
	RuleFolder     = "folder"      // folders count their subfolders
	RuleSpecial    = "special"     // special files have neither size nor target
	RuleObject     = "object"      // an object is there, and is what its name and its row say
)

// Problem is a fault of a repository.
type Problem struct {
	Rule string // one of the above
	At   string // the file of the repository or the path in its tree
	Text string
}

// String is the problem as one line.
func (p Problem) String() string { return fmt.Sprintf("%s: %.500q: %s", p.Rule, p.At, p.Text) }

// CheckOptions say what is checked, and against what.
type CheckOptions struct {
	FQRN      string
	Keys      trust.Keys  // of the masters
	Content   bool        // read every object and compare its digest and its plain size; else objects must be there
	ReflogSum hash.Digest // what the publisher noted of the reflog; zero: the manifest's word counts
	Dir       string      // for temporary files; "": the system's
	Workers   int         // that read; 0: four for each processor
	Now       time.Time   // what the whitelist's expiry is compared with; zero: now
}

// CheckSummary is what was looked at.
type CheckSummary struct {
	Revision uint64
	Roots    int // revisions: the newest and those with a tag
	Catalogs int
	Entries  int64 // rows
	Objects  int   // of files
	Bytes    int64 // plain bytes of these objects, each once
	Problems int
}

// Check holds the newest revision and all with a tag to every rule, and calls report, never twice at once, with what it
// finds. An error means that it could not go on.
func Check(ctx context.Context, from Served, o CheckOptions, report func(Problem)) (*CheckSummary, error) {
	s, err := check(ctx, from, o, report)
	if err != nil {
		return nil, fmt.Errorf("check %s in %v: %w", o.FQRN, from, err)
	}
	return s, nil
}

func check(ctx context.Context, from Served, o CheckOptions, report func(Problem)) (_ *CheckSummary, err error) {
	if o.Workers <= 0 {
		o.Workers = 4 * runtime.GOMAXPROCS(0)
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	c := &checker{
		from: from, o: o, report: report, catalogs: map[hash.Digest]*checkedCatalog{}, objects: map[objectName]int64{},
		readers: make(chan struct{}, o.Workers),
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
	from    Served
	o       CheckOptions
	report  func(Problem)
	dir     string
	readers chan struct{} // a place for each that may read at once

	mu       sync.Mutex
	summary  CheckSummary
	files    int
	catalogs map[hash.Digest]*checkedCatalog
	objects  map[objectName]int64 // plain sizes
}

// objectName tells objects of files apart, and how they are read.
type objectName struct {
	digest      hash.Digest
	chunk       bool
	compression hash.Compression
}

func (c *checker) problem(rule, at, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.summary.Problems++
	c.report(Problem{Rule: rule, At: at, Text: fmt.Sprintf(format, args...)})
}

// flaw reports an error that lies in what is checked; others are given back.
func (c *checker) flaw(rule, at string, err error) error {
	for _, flaw := range []error{fs.ErrNotExist, errDamaged, catalog.ErrInvalid, history.ErrInvalid, trust.ErrInvalid} {
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
	return work.Wait()
}

// manifest verifies it as clients do. It is nil, and the problem reported, if it can't be believed.
func (c *checker) manifest(ctx context.Context) (*manifest.Manifest, error) {
	letter, err := readStored(ctx, c.from, manifestFile, manifest.MaxSize)
	if err != nil {
		return nil, c.flaw(RuleSignature, manifestFile, err)
	}
	policy := trust.Policy{FQRN: c.o.FQRN, Keys: c.o.Keys, Now: c.o.Now}
	trusted, err := policy.Verify(ctx, letter, source{c.from})
	if errors.Is(err, trust.ErrExpired) {
		c.problem(RuleWhitelist, whitelistFile, "%v", err)
		policy.Now = time.Time{} // before all whitelists
		trusted, err = policy.Verify(ctx, letter, source{c.from})
	}
	switch {
	case errors.Is(err, trust.ErrSignature) || errors.Is(err, trust.ErrNotWhitelisted):
		c.problem(RuleSignature, manifestFile, "%v", err)
		return nil, nil
	case err != nil:
		return nil, c.flaw(RuleSignature, manifestFile, err)
	}
	return trusted.Manifest, nil
}

// maxMetainfo is the most plain bytes clients show of it.
const maxMetainfo = 64 << 10

func (c *checker) metainfo(ctx context.Context, m *manifest.Manifest) error {
	if m.Metainfo.IsZero() {
		return nil
	}
	at := m.Metainfo.Path(hash.Metainfo)
	text, err := readObject(ctx, c.from, m.Metainfo, hash.Metainfo, hash.Zlib, maxMetainfo)
	if err != nil {
		return c.flaw(RuleMetainfo, at, err)
	}
	if err := json.Unmarshal(text, new(map[string]any)); err != nil {
		c.problem(RuleMetainfo, at, "it is no JSON object: %v", err)
	}
	return nil
}

func (c *checker) reflog(ctx context.Context, m *manifest.Manifest) error {
	raw, err := readStored(ctx, c.from, reflogFile, history.MaxSize)
	if errors.Is(err, fs.ErrNotExist) && m.Reflog.IsZero() && c.o.ReflogSum.IsZero() {
		return nil // old repositories have none
	}
	if err != nil {
		return c.flaw(RuleReflog, reflogFile, err)
	}
	sums := []hash.Digest{m.Reflog, c.o.ReflogSum}
	if m.Reflog.IsZero() && c.o.ReflogSum.IsZero() {
		c.problem(RuleReflog, reflogFile, "nobody says what its digest must be")
	}
	for i, whose := range []string{"the manifest", "the publisher"} {
		if want := sums[i]; !want.IsZero() && want.Algorithm.Digest(raw) != want {
			c.problem(RuleReflog, reflogFile, "its digest is %v, %s says %v", want.Algorithm.Digest(raw), whose, want)
		}
	}
	path := c.temp()
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return err
	}
	log, err := history.ReadReflog(path)
	if err = errors.Join(err, os.Remove(path)); err != nil {
		return c.flaw(RuleReflog, reflogFile, err)
	}
	if log.FQRN != c.o.FQRN {
		c.problem(RuleReflog, reflogFile, "it is that of %.80q", log.FQRN)
	}
	for _, ref := range manifestRefs(m) {
		if !ref.Digest.IsZero() && !log.Has(ref.Digest, ref.Kind) {
			c.problem(RuleReflog, reflogFile, "it doesn't list the manifest's %v, %v", ref.Kind, ref.Digest)
		}
	}
	return nil
}

// manifestRefs are the objects a manifest names, as the reflog lists them.
func manifestRefs(m *manifest.Manifest) []history.Ref {
	return []history.Ref{
		{Digest: m.Root, Kind: history.Catalog, Time: m.Published},
		{Digest: m.Certificate, Kind: history.Certificate, Time: m.Published},
		{Digest: m.History, Kind: history.Tags, Time: m.Published},
		{Digest: m.Metainfo, Kind: history.Metainfo, Time: m.Published},
	}
}

// altPaths looks for the links that stand in for objects where those are only served to who is authorised.
func (c *checker) altPaths(ctx context.Context, m *manifest.Manifest) error {
	if !m.AltPaths {
		return nil
	}
	for _, name := range []string{
		m.Root.String() + string(hash.Catalog),
		m.Certificate.String() + string(hash.Certificate),
	} {
		name = ".cvmfsalt-" + name
		f, err := c.from.Get(ctx, name) // not Stat: it is a link
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			if err := c.flaw(RuleAltPaths, name, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// rootCheck is a revision to be walked.
type rootCheck struct {
	digest hash.Digest
	size   int64 // plain bytes; 0: unknown
	head   *manifest.Manifest
}

// history checks the tags and gives the root catalogs to walk, the newest first.
func (c *checker) history(ctx context.Context, m *manifest.Manifest) ([]rootCheck, error) {
	roots := []rootCheck{{m.Root, m.RootSize, m}}
	if m.History.IsZero() {
		return roots, nil
	}
	at := m.History.Path(hash.History)
	h, err := c.readHistory(ctx, m.History)
	if err != nil {
		return roots, c.flaw(RuleHistory, at, err)
	}
	if h.FQRN != c.o.FQRN {
		c.problem(RuleHistory, at, "it is that of %.80q", h.FQRN)
	}
	c.branches(at, h)
	if trunk, ok := h.Find(history.Trunk); ok && (trunk.Root != m.Root || trunk.Revision != m.Revision) {
		c.problem(RuleHistory, at, "trunk is revision %d, %v, and not the manifest's", trunk.Revision, trunk.Root)
	}
	sizes := map[hash.Digest]int64{m.Root: m.RootSize}
	for _, tag := range h.Tags {
		if err := history.CheckName(tag.Name); err != nil {
			c.problem(RuleHistory, at, "%v", err)
		}
		if tag.Revision > m.Revision {
			c.problem(RuleHistory, at, "tag %.80s is of revision %d, newer than the newest, %d", tag.Name, tag.Revision,
				m.Revision)
		}
		size, seen := sizes[tag.Root]
		if seen && size != 0 && tag.Size != 0 && size != tag.Size {
			c.problem(RuleSize, at, "tag %.80s says that %v has %d bytes, others say %d", tag.Name, tag.Root, tag.Size,
				size)
		}
		if !seen {
			sizes[tag.Root] = tag.Size
			roots = append(roots, rootCheck{tag.Root, tag.Size, nil})
		}
	}
	return roots, nil
}

func (c *checker) readHistory(ctx context.Context, d hash.Digest) (*history.History, error) {
	path := c.temp()
	defer os.Remove(path) // best effort: the folder goes at the end
	if err := c.fetch(ctx, d, hash.History, history.MaxSize, path); err != nil {
		return nil, err
	}
	return history.Read(path)
}

// branches checks what the reference asks of branches: each that is there has a tag, and reaches back to it.
func (c *checker) branches(at string, h *history.History) {
	first := map[string]uint64{}
	for _, b := range h.Branches {
		first[b.Name] = b.InitialRevision
		if strings.Trim(b.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@/") != "" {
			c.problem(RuleHistory, at, "%.80q is no branch's name", b.Name)
		}
	}
	used := map[string]bool{}
	for _, tag := range h.Tags {
		used[tag.Branch] = true
		initial, known := first[tag.Branch]
		if h.Branches != nil && (!known || tag.Revision < initial) {
			c.problem(RuleHistory, at, "tag %.80s of revision %d is on no branch %.80q that reaches back to it",
				tag.Name, tag.Revision, tag.Branch)
		}
	}
	if h.Branches != nil && len(used) != len(first) {
		c.problem(RuleHistory, at, "%d branches, of which %d have a tag", len(first), len(used))
	}
}

// fetch brings a database's plain file to path.
func (c *checker) fetch(ctx context.Context, d hash.Digest, s hash.Suffix, limit int64, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = copyObject(ctx, f, c.from, d, s, hash.Zlib, limit)
	return errors.Join(err, f.Close())
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
	n := &counter{to: io.Discard}
	if err := copyObject(ctx, n, c.from, o.digest, suffix, o.compression, o.size); err != nil {
		return c.flaw(RuleObject, o.at, err)
	}
	if n.n != o.size {
		c.problem(RuleObject, o.at, "object %s has %d plain bytes instead of %d", o.digest.Path(suffix), n.n, o.size)
	}
	return nil
}

// root walks a revision.
func (c *checker) root(ctx context.Context, r rootCheck, objects chan<- objectCheck) error {
	c.summary.Roots++
	top, err := c.catalog(ctx, catalogCheck{digest: r.digest, size: r.size}, objects)
	if top == nil || err != nil || r.head == nil {
		return err
	}
	if top.revision != r.head.Revision {
		c.problem(RuleManifest, manifestFile, "it says revision %d, the root catalog %d", r.head.Revision, top.revision)
	}
	if top.ttl != r.head.TTL {
		c.problem(RuleManifest, manifestFile, "it says a TTL of %v, the root catalog %v", r.head.TTL, top.ttl)
	}
	return nil
}
