package gc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

// ErrNotCollectable refuses to collect where the manifest says that nothing may be removed.
var ErrNotCollectable = errors.New("the repository is not garbage collectable")

// DefaultGrace is how old an object that no revision ever named must be to be removed: a publish that was cut off and
// is begun again finds it.
const DefaultGrace = 24 * time.Hour

const (
	statusFile  = ".cvmfs_status.json"
	maxStatus   = 64 << 10
	removeBatch = 1000 // files removed with one call, the most S3 takes
)

// Options say what is kept besides the newest revision and those with a tag that isn't automatic.
type Options struct {
	KeepRevisions int           // so many revisions before the newest
	KeepAge       time.Duration // those published within this time; 0: none for their age
	Grace         time.Duration // 0: DefaultGrace; negative: none
	DryRun        bool          // remove nothing, only tell
}

// Summary is what was kept and removed, or would be.
type Summary struct {
	Kept    int      // revisions
	Removed int      // revisions
	Tags    []string // automatic ones, of removed revisions
	Objects int      // removed files
	Bytes   int64    // their stored bytes
	Orphans int      // of the removed files, those that no known revision named
	Young   int      // orphans that were left for being younger than the grace
	Foreign int      // files below data/ that are no objects, which are left alone
}

// Run removes the revisions that nothing keeps, and every object that only they, or publishes that were cut off, need.
//
// Errors: publish.ErrLocked, ErrNotCollectable, publish.ErrReflog, publish.ErrExpired. A catalog of a revision to keep
// that can't be read is an error, and nothing is removed.
func Run(ctx context.Context, r *publish.Repository, o Options) (*Summary, error) {
	unlock, err := r.Lock(ctx)
	if err != nil {
		return nil, err
	}
	s, err := run(ctx, r, o)
	if err = errors.Join(err, storage.EmptyFolder(r.Temp()), unlock()); err != nil {
		return nil, fmt.Errorf("collect garbage of %s: %w", r.FQRN(), err)
	}
	return s, nil
}

func run(ctx context.Context, r *publish.Repository, o Options) (*Summary, error) {
	g, err := plan(ctx, r, o)
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
	if err := writeDoomed(r.Dir(), files); err != nil {
		return nil, err
	}
	if err := g.forget(ctx); err != nil {
		return nil, err
	}
	if err := removeFiles(ctx, r.Storage(), g.spare(files)); err != nil {
		return nil, err
	}
	if err := g.noteCollection(ctx); err != nil {
		return nil, err
	}
	if err := r.Storage().Sync(ctx); err != nil {
		return nil, err
	}
	return &g.summary, forgetDoomed(r.Dir())
}

// collection is one garbage collection: what is kept, what isn't, and what both consist of.
type collection struct {
	r *publish.Repository
	o Options
	*publish.Draft
	tags    *history.History
	kept    []hash.Digest // root catalogs
	removed []hash.Digest // root catalogs
	keep    *reachable
	drop    *reachable
	pruned  bool // the reflog lost something
	summary Summary
}

// plan decides which revisions are kept.
func plan(ctx context.Context, r *publish.Repository, o Options) (*collection, error) {
	if o.KeepRevisions < 0 || o.KeepAge < 0 {
		return nil, fmt.Errorf("keep %d revisions and those of %v: neither can be negative", o.KeepRevisions, o.KeepAge)
	}
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	draft, err := r.Draft(ctx)
	if err != nil {
		return nil, err
	}
	if !draft.Head.GarbageCollectable {
		return nil, fmt.Errorf("%w: set garbage_collectable in %s, and publish", ErrNotCollectable,
			filepath.Join(r.Dir(), publish.SettingsFile))
	}
	tags, err := draft.Tags(ctx)
	if err != nil {
		return nil, err
	}
	g := &collection{r: r, o: o, Draft: draft, tags: tags}
	g.choose()
	return g, nil
}

// automatic is the name of a tag that each revision gets by itself.
var automatic = regexp.MustCompile(`^generic-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`)

// choose sorts the root catalogs into kept and removed ones, and the tags with them.
func (g *collection) choose() {
	keep := map[hash.Digest]bool{g.Head.Root: true}
	for _, tag := range g.tags.Tags {
		if !automatic.MatchString(tag.Name) {
			keep[tag.Root] = true
		}
	}
	var roots []history.Ref
	for _, ref := range g.Reflog.Refs {
		if ref.Kind == history.Catalog {
			roots = append(roots, ref)
		}
	}
	slices.SortStableFunc(roots, func(a, b history.Ref) int { return b.Time.Compare(a.Time) })
	older := 0
	for _, ref := range roots {
		if ref.Digest != g.Head.Root {
			older++
		}
		if older <= g.o.KeepRevisions || g.o.KeepAge > 0 && g.r.Now().Sub(ref.Time) <= g.o.KeepAge {
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
	oldest := g.Head.Published
	for _, ref := range g.Reflog.Refs {
		if ref.Kind == history.Catalog && keep[ref.Digest] && ref.Time.Before(oldest) {
			oldest = ref.Time
		}
	}
	named := map[hash.Digest]bool{g.Head.Certificate: true, g.Head.History: true, g.Head.Metainfo: true}
	g.keep, g.drop = newReachable(g.r), newReachable(g.r)
	g.Reflog.Refs = slices.DeleteFunc(g.Reflog.Refs, func(ref history.Ref) bool {
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
	for _, ref := range history.Named(g.Head) { // they are in the reflog, but nothing must hang on that
		g.keep.add(ref.Digest, ref.Kind.Suffix())
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
	return readDoomed(g.r.Dir(), func(o objectKey) { g.drop.objects[o] = struct{}{} })
}

// sweep goes through all that is stored and finds what is to be removed: what only removed revisions need, and what
// none needs and is older than the grace. Catalogs come first.
func (g *collection) sweep(ctx context.Context) ([]doomed, error) {
	var files []doomed
	limit := g.r.Now().Add(-max(g.o.Grace, 0))
	err := g.r.Storage().List(ctx, storage.DataFolder+"/", func(f storage.File) error {
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
	m := *g.Head
	m.Published = g.Now
	if err := g.Publish(ctx, &m, g.tags); err != nil {
		return err
	}
	for _, ref := range history.Named(&m) {
		g.keep.add(ref.Digest, ref.Kind.Suffix())
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

func removeFiles(ctx context.Context, from storage.Storage, files []doomed) error {
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
func (g *collection) noteCollection(ctx context.Context) error {
	status := map[string]any{}
	text, err := storage.ReadFile(ctx, g.r.Storage(), statusFile, maxStatus)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if json.Unmarshal(text, &status) != nil || status == nil {
			status = map[string]any{} // nobody can have read it
		}
	}
	status["last_gc"] = g.r.Now().Format("Mon Jan _2 15:04:05 UTC 2006")
	if text, err = json.Marshal(status); err != nil {
		return err
	}
	text = append(text, '\n')
	return g.r.Storage().Put(ctx, statusFile, bytes.NewReader(text), int64(len(text)))
}
