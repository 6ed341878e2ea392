package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
)

// CommitOptions say what the new revision is called.
type CommitOptions struct {
	Tag         string // "": none of its own, besides those kept automatically
	Description string
}

// Summary is what a commit published.
type Summary struct {
	Changed    bool // false: there was nothing to publish, and the newest revision is still the former one
	Revision   uint64
	Root       hash.Digest
	Published  time.Time
	Tags       []string // that name the revision
	Catalogs   int      // written anew
	NewObjects int      // that WriteFile stored; those of layers are in their Stats
	NewBytes   int64
}

// Commit publishes the transaction as the next revision and ends it, as Abort does where it fails. Killed or failing
// anywhere, the former revision stays the newest. A transaction without changes publishes nothing.
func (t *Transaction) Commit(ctx context.Context, o CommitOptions) (*Summary, error) {
	if t.closed {
		return nil, fmt.Errorf("commit to %s: %w", t.repo.FQRN(), errClosed)
	}
	s, err := t.commit(ctx, o)
	if err = errors.Join(err, t.end()); err != nil {
		return nil, fmt.Errorf("commit to %s: %w", t.repo.FQRN(), err)
	}
	return s, nil
}

func (t *Transaction) commit(ctx context.Context, o CommitOptions) (*Summary, error) {
	if len(t.reserved) > 0 {
		return nil, errors.New("a layer is still being ingested")
	}
	s := &Summary{Revision: t.draft.Head.Revision, Root: t.draft.Head.Root, Published: t.draft.Head.Published}
	if !t.changed {
		return s, nil
	}
	tags, err := t.draft.Tags(ctx)
	if err != nil {
		return nil, err
	}
	if err := newTag(tags, o.Tag); err != nil {
		return nil, err
	}
	if err := t.writeCatalogs(ctx, t.root, ""); err != nil {
		return nil, err
	}
	m := *t.draft.Head
	m.Root, m.RootSize, m.Revision = t.root.mount.digest, t.root.mount.size, t.root.mount.revision+1
	m.Published, m.TTL, m.GarbageCollectable = t.draft.Now, t.repo.settings.ttl(), *t.repo.settings.GarbageCollectable
	// What catalogs refer to must survive a loss of power before they do: a later publish takes a catalog that is there
	// for one whose objects are.
	if err := t.repo.storage.Sync(ctx); err != nil {
		return nil, err
	}
	if s.Catalogs, err = t.putCatalogs(ctx); err != nil {
		return nil, err
	}
	s.Tags = t.tag(tags, &m, o)
	if err := t.draft.Publish(ctx, &m, tags); err != nil {
		return nil, err
	}
	s.Changed, s.Revision, s.Root, s.Published = true, m.Revision, m.Root, m.Published
	s.NewObjects, s.NewBytes = t.stats.NewObjects, t.stats.NewBytes
	return s, nil
}

// newTag refuses a name that is no tag's or that another revision has: a tag doesn't move.
func newTag(tags *history.History, name string) error {
	if name == "" {
		return nil
	}
	if err := history.CheckName(name); err != nil {
		return err
	}
	if have, ok := tags.Find(name); ok {
		return fmt.Errorf("tag %s is that of revision %d: remove it first, or take another name: %w", name,
			have.Revision, fs.ErrExist)
	}
	return nil
}

// tag names the new revision.
func (t *Transaction) tag(tags *history.History, m *manifest.Manifest, o CommitOptions) (names []string) {
	if trunk, ok := tags.Find(history.Trunk); ok {
		trunk.Name, trunk.Description = history.TrunkPrevious, history.PreviousText
		tags.Set(trunk)
	}
	add := func(name, description string) {
		tags.Set(history.Tag{
			Name: name, Root: m.Root, Revision: m.Revision, Time: m.Published, Description: description,
			Size: m.RootSize,
		})
		names = append(names, name)
	}
	add(history.Trunk, history.TrunkText)
	if *t.repo.settings.AutoTag {
		add("generic-"+m.Published.Format("2006-01-02T15:04:05Z"), o.Description)
	}
	if o.Tag != "" {
		add(o.Tag, o.Description)
	}
	return names
}

// putCatalogs stores the catalogs that were written, children first.
func (t *Transaction) putCatalogs(ctx context.Context) (n int, err error) {
	for _, p := range t.order {
		if p.obsolete {
			continue
		}
		n++
		if err := putFile(ctx, t.repo.storage, p.digest.Path(hash.Catalog), p.stored, p.size); err != nil {
			return 0, err
		}
	}
	return n, nil
}
