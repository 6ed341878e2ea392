package publish

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
)

// ErrNotCollectable refuses to collect where the manifest says that nothing may be removed.
var ErrNotCollectable = errors.New("the repository is not garbage collectable")

// DefaultGrace is how old an object that no revision ever named must be to be removed: a publish that was cut off and
// is begun again finds it.
const DefaultGrace = 24 * time.Hour

const (
	statusFile = ".cvmfs_status.json"
	// doomedFile lists, in the publisher's folder, the files that a collection removes. It outlives a collection that
	// was killed: the reflog has forgotten by then what they were part of.
	doomedFile = "gc.doomed"
	maxStatus  = 64 << 10
	// gcReaders is how many catalogs are read at once. Each takes some memory while it is.
	gcReaders   = 4
	removeBatch = 1000 // files removed with one call, the most S3 takes
)

// GCOptions say what is kept besides the newest revision and those with a tag that isn't automatic.
type GCOptions struct {
	KeepRevisions int           // so many revisions before the newest
	KeepAge       time.Duration // those published within this time; 0: none for their age
	Grace         time.Duration // 0: DefaultGrace; negative: none
	DryRun        bool          // remove nothing, only tell
}

// GCSummary is what was kept and removed, or would be.
type GCSummary struct {
	Kept    int      // revisions
	Removed int      // revisions
	Tags    []string // automatic ones, of removed revisions
	Objects int      // removed files
	Bytes   int64    // their stored bytes
	Orphans int      // of the removed files, those that no known revision named
	Young   int      // orphans that were left for being younger than the grace
	Foreign int      // files below data/ that are no objects, which are left alone
}

// GC removes the revisions that nothing keeps, and every object that only they, or publishes that were cut off, need.
//
// Readers of the revisions kept notice nothing. What is removed is first forgotten: a new history, reflog and manifest
// of the same revision are published, then the files go, catalogs first, so that who finds a catalog finds what it
// names. Killed anywhere, the repository is whole, and the next collection finishes.
//
// Automatic tags (generic-…) don't keep their revisions, and go with them.
//
// Errors: ErrLocked, ErrNotCollectable, ErrReflog, ErrExpired. A catalog of a revision to keep that can't be read is an
// error, and nothing is removed.
func (r *Repository) GC(ctx context.Context, o GCOptions) (*GCSummary, error) {
	unlock, err := r.Lock(ctx)
	if err != nil {
		return nil, err
	}
	s, err := r.collect(ctx, o)
	if err = errors.Join(err, emptyFolder(filepath.Join(r.dir, tmpFolder)), unlock()); err != nil {
		return nil, fmt.Errorf("collect garbage of %s: %w", r.FQRN(), err)
	}
	return s, nil
}

func (r *Repository) collect(ctx context.Context, o GCOptions) (*GCSummary, error) {
	g, err := r.planCollection(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := g.mark(ctx); err != nil {
		return nil, err
	}
	files, err := g.sweep(ctx)
	if err != nil || o.DryRun {
		return &g.summary, err
	}
	if err := r.writeDoomed(files); err != nil {
		return nil, err
	}
	if err := g.forget(ctx); err != nil {
		return nil, err
	}
	if err := removeFiles(ctx, r.storage, g.spare(files)); err != nil {
		return nil, err
	}
	if err := r.noteCollection(ctx); err != nil {
		return nil, err
	}
	if err := r.storage.Sync(ctx); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(r.dir, doomedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &g.summary, syncFolder(r.dir)
}

// collection is one garbage collection: what is kept, what isn't, and what both consist of.
type collection struct {
	r *Repository
	o GCOptions
	revision
	tags    *history.History
	kept    []hash.Digest // root catalogs
	removed []hash.Digest // root catalogs
	keep    *reachable
	drop    *reachable
	pruned  bool // the reflog lost something
	summary GCSummary
}

// planCollection decides which revisions are kept.
func (r *Repository) planCollection(ctx context.Context, o GCOptions) (*collection, error) {
	if o.KeepRevisions < 0 || o.KeepAge < 0 {
		return nil, fmt.Errorf("keep %d revisions and those of %v: neither can be negative", o.KeepRevisions, o.KeepAge)
	}
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	v, err := r.revise(ctx)
	if err != nil {
		return nil, err
	}
	g := &collection{r: r, o: o, revision: *v}
	if !g.head.GarbageCollectable {
		return nil, fmt.Errorf("%w: set garbage_collectable in %s, and publish", ErrNotCollectable,
			filepath.Join(r.dir, settingsFile))
	}
	if g.tags, err = r.history(ctx, g.head); err != nil {
		return nil, err
	}
	g.choose()
	return g, nil
}

// automatic is the name of a tag that each revision gets by itself.
var automatic = regexp.MustCompile(`^generic-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`)

// choose sorts the root catalogs into kept and removed ones, and the tags with them.
func (g *collection) choose() {
	keep := map[hash.Digest]bool{g.head.Root: true}
	for _, tag := range g.tags.Tags {
		if !automatic.MatchString(tag.Name) {
			keep[tag.Root] = true
		}
	}
	var roots []history.Ref
	for _, ref := range g.reflog.Refs {
		if ref.Kind == history.Catalog {
			roots = append(roots, ref)
		}
	}
	slices.SortStableFunc(roots, func(a, b history.Ref) int { return b.Time.Compare(a.Time) })
	older := 0
	for _, ref := range roots {
		if ref.Digest != g.head.Root {
			older++
		}
		if older <= g.o.KeepRevisions || g.o.KeepAge > 0 && g.r.now().Sub(ref.Time) <= g.o.KeepAge {
			keep[ref.Digest] = true
		}
		if !keep[ref.Digest] {
			g.removed = append(g.removed, ref.Digest)
		}
	}
	for root := range keep {
		g.kept = append(g.kept, root)
	}
	g.summary.Kept, g.summary.Removed = len(g.kept), len(g.removed)
	for _, tag := range g.tags.Tags {
		if !keep[tag.Root] {
			g.summary.Tags = append(g.summary.Tags, tag.Name)
		}
	}
	g.prune(keep)
}

// prune takes out of the reflog what is removed, and what else is older than all that is kept.
func (g *collection) prune(keep map[hash.Digest]bool) {
	oldest := g.head.Published
	for _, ref := range g.reflog.Refs {
		if ref.Kind == history.Catalog && keep[ref.Digest] && ref.Time.Before(oldest) {
			oldest = ref.Time
		}
	}
	named := map[hash.Digest]bool{g.head.Certificate: true, g.head.History: true, g.head.Metainfo: true}
	g.keep, g.drop = newReachable(g.r), newReachable(g.r)
	g.reflog.Refs = slices.DeleteFunc(g.reflog.Refs, func(ref history.Ref) bool {
		gone := !named[ref.Digest] && ref.Time.Before(oldest)
		if ref.Kind == history.Catalog {
			gone = !keep[ref.Digest]
		}
		if gone {
			g.pruned = true
			g.drop.add(ref.Digest, ref.Kind.Suffix())
		} else {
			g.keep.add(ref.Digest, ref.Kind.Suffix())
		}
		return gone
	})
	for _, ref := range manifestRefs(g.head) { // they are in the reflog, but nothing must hang on that
		if !ref.Digest.IsZero() {
			g.keep.add(ref.Digest, ref.Kind.Suffix())
		}
	}
}

// mark finds what the revisions consist of.
func (g *collection) mark(ctx context.Context) error {
	if err := g.keep.walk(ctx, g.kept, nil); err != nil {
		return err
	}
	if err := g.drop.walk(ctx, g.removed, g.keep); err != nil {
		return err
	}
	return g.r.readDoomed(func(o objectKey) { g.drop.objects[o] = struct{}{} })
}

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
	rest, ok := strings.CutPrefix(name, dataFolder+"/")
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
	r       *Repository
	mu      sync.Mutex
	objects map[objectKey]struct{}
	files   int
}

func newReachable(r *Repository) *reachable {
	return &reachable{r: r, objects: map[objectKey]struct{}{}}
}

func (s *reachable) has(o objectKey) bool {
	_, ok := s.objects[o]
	return ok
}

// add reports whether the object is new.
func (s *reachable) add(d hash.Digest, suffix hash.Suffix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := objectNamed(d, suffix)
	if s.has(o) {
		return false
	}
	s.objects[o] = struct{}{}
	return true
}

// walk adds the catalogs and everything they lead to. Where another set is given, those that are in it are passed over,
// and so are those that can't be read: what hangs on them is orphaned.
func (s *reachable) walk(ctx context.Context, catalogs []hash.Digest, other *reachable) error {
	seen := map[hash.Digest]bool{}
	for len(catalogs) > 0 {
		var mu sync.Mutex
		var below []hash.Digest
		work, ctx := errgroup.WithContext(ctx)
		work.SetLimit(gcReaders)
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
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged) || errors.Is(err, catalog.ErrInvalid)
}

// read adds a catalog and what it names, and gives those nested in it.
func (s *reachable) read(ctx context.Context, d hash.Digest) ([]hash.Digest, error) {
	s.add(d, hash.Catalog)
	s.mu.Lock()
	s.files++
	path := filepath.Join(s.r.dir, tmpFolder, fmt.Sprintf("gc.%p.%d", s, s.files))
	s.mu.Unlock()
	if err := s.r.fetchCatalog(ctx, d, path); err != nil {
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

// doomed is a file to remove.
type doomed struct {
	objectKey
	name string
	size int64 // stored bytes
}

// sweep goes through all that is stored and finds what is to be removed: what only removed revisions need, and what
// none needs and is older than the grace. Catalogs come first.
func (g *collection) sweep(ctx context.Context) ([]doomed, error) {
	var files []doomed
	limit := g.r.now().Add(-max(g.o.Grace, 0))
	err := g.r.storage.List(ctx, dataFolder+"/", func(f Stored) error {
		o, ok := parseObject(f.Name)
		switch {
		case !ok:
			g.summary.Foreign++
			return nil
		case g.keep.has(o):
			return nil
		case g.drop.has(o):
		case g.o.Grace > 0 && f.Modified.After(limit):
			g.summary.Young++
			return nil
		default:
			g.summary.Orphans++
		}
		g.summary.Objects++
		g.summary.Bytes += f.Size
		files = append(files, doomed{o, f.Name, f.Size})
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(a, b doomed) int {
		if (a.suffix == 'C') != (b.suffix == 'C') {
			if a.suffix == 'C' {
				return -1
			}
			return 1
		}
		return strings.Compare(a.name, b.name)
	})
	return files, nil
}

// forget publishes the newest revision without what is removed, if anything named it.
func (g *collection) forget(ctx context.Context) error {
	if len(g.summary.Tags) == 0 && !g.pruned {
		return nil
	}
	for _, name := range g.summary.Tags {
		g.tags.Remove(name)
	}
	m := *g.head
	m.Published = g.now
	if err := g.r.publish(ctx, &m, g.tags, g.reflog, g.certificate, g.key); err != nil {
		return err
	}
	for _, ref := range manifestRefs(&m) {
		if !ref.Digest.IsZero() {
			g.keep.add(ref.Digest, ref.Kind.Suffix())
		}
	}
	return nil
}

// spare takes out of the files to remove what forget published. The sweep found it where a collection that was cut off
// had stored the same history, which then was nobody's, or where the publisher went back to a certificate of before.
func (g *collection) spare(files []doomed) []doomed {
	return slices.DeleteFunc(files, func(f doomed) bool {
		if !g.keep.has(f.objectKey) {
			return false
		}
		g.summary.Objects--
		g.summary.Bytes -= f.size
		if !g.drop.has(f.objectKey) {
			g.summary.Orphans--
		}
		return true
	})
}

// writeDoomed notes what will be removed. It must be on the disk before anything forgets what the files were.
func (r *Repository) writeDoomed(files []doomed) error {
	var b bytes.Buffer
	for _, f := range files {
		fmt.Fprintln(&b, f.name)
	}
	return r.note(doomedFile, b.Bytes())
}

// readDoomed calls fn for what a collection that was killed meant to remove.
func (r *Repository) readDoomed(fn func(objectKey)) error {
	f, err := os.Open(filepath.Join(r.dir, doomedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() // only read
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if o, ok := parseObject(lines.Text()); ok {
			fn(o)
		}
	}
	return lines.Err()
}

func removeFiles(ctx context.Context, from Storage, files []doomed) error {
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.name
	}
	for batch := range slices.Chunk(names, removeBatch) {
		if err := from.Remove(ctx, batch...); err != nil {
			return err
		}
	}
	return nil
}

// noteCollection tells readers when this was, in the words of the reference's servers.
func (r *Repository) noteCollection(ctx context.Context) error {
	status := map[string]any{}
	text, err := readStored(ctx, r.storage, statusFile, maxStatus)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if json.Unmarshal(text, &status) != nil || status == nil {
			status = map[string]any{} // nobody can have read it
		}
	}
	status["last_gc"] = r.now().Format("Mon Jan _2 15:04:05 UTC 2006")
	if text, err = json.Marshal(status); err != nil {
		return err
	}
	return putBytes(ctx, r.storage, statusFile, append(text, '\n'))
}
