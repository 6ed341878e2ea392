package publish

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	s := &Summary{Revision: t.head.Revision, Root: t.head.Root, Published: t.head.Published}
	if !t.changed {
		return s, nil
	}
	tags, err := t.repo.history(ctx, t.head)
	if err != nil {
		return nil, err
	}
	if err := newTag(tags, o.Tag); err != nil {
		return nil, err
	}
	if err := t.writeCatalogs(ctx, t.root, ""); err != nil {
		return nil, err
	}
	m := *t.head
	m.Root, m.RootSize, m.Revision = t.root.mount.digest, t.root.mount.size, t.root.mount.revision+1
	m.Published, m.TTL, m.GarbageCollectable = t.now, t.repo.settings.ttl(), *t.repo.settings.GarbageCollectable
	// What catalogs refer to must survive a loss of power before they do: a later publish takes a catalog that is there
	// for one whose objects are.
	if err := t.repo.storage.Sync(ctx); err != nil {
		return nil, err
	}
	if s.Catalogs, err = t.putCatalogs(ctx); err != nil {
		return nil, err
	}
	s.Tags = t.tag(tags, &m, o)
	if err := t.repo.publish(ctx, &m, tags, t.reflog, t.certificate, t.key); err != nil {
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
		f, err := os.Open(p.stored)
		if err != nil {
			return 0, err
		}
		_, err = putOnce(ctx, t.repo.storage, p.digest.Path(hash.Catalog), f, p.size)
		if err = errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// history reads the tags of a revision. The caller holds the lock.
func (r *Repository) history(ctx context.Context, m *manifest.Manifest) (*history.History, error) {
	return r.historyBy(ctx, m, filepath.Join(r.dir, tmpFolder, "history"))
}

// historyBy reads the tags of a revision by way of a temporary file.
func (r *Repository) historyBy(ctx context.Context, m *manifest.Manifest, path string) (*history.History, error) {
	if m.History.IsZero() {
		return &history.History{FQRN: r.FQRN()}, nil
	}
	if err := r.fetchDatabase(ctx, m.History, hash.History, maxDatabase, path); err != nil {
		return nil, err
	}
	defer os.Remove(path) // best effort: the folder is emptied with the next transaction
	h, err := history.Read(path)
	if err == nil && h.FQRN != r.FQRN() {
		err = fmt.Errorf("history %v is that of %.80q", m.History, h.FQRN)
	}
	return h, err
}

// publish makes a revision the newest: it stores tags and certificate, enters everything in the reflog, and replaces
// the manifest, in this order. What m.Root leads to must be stored. The manifest's other digests are set here. The
// caller holds the lock.
func (r *Repository) publish(
	ctx context.Context, m *manifest.Manifest, tags *history.History, log *history.Reflog, certificate []byte,
	key *rsa.PrivateKey,
) error {
	var err error
	if m.Certificate, err = putObject(ctx, r.storage, r.algorithm, hash.Certificate, certificate); err != nil {
		return err
	}
	tags.Previous = m.History
	if m.History, err = r.putHistory(ctx, tags); err != nil {
		return err
	}
	for _, ref := range manifestRefs(m) {
		if !ref.Digest.IsZero() && !log.Has(ref.Digest, ref.Kind) {
			log.Set(ref)
		}
	}
	// Everything the reflog and the manifest lead to.
	if err := r.storage.Sync(ctx); err != nil {
		return err
	}
	if m.Reflog, err = r.putReflog(ctx, log); err != nil {
		return err
	}
	return r.putManifest(ctx, m, key)
}

// putHistory stores a tag database.
func (r *Repository) putHistory(ctx context.Context, tags *history.History) (d hash.Digest, err error) {
	plain, stored := filepath.Join(r.dir, tmpFolder, "history.new"), filepath.Join(r.dir, tmpFolder, "history.stored")
	if err := tags.Write(plain); err != nil {
		return d, err
	}
	d, size, err := compressFile(plain, stored, r.algorithm)
	if err != nil {
		return d, err
	}
	f, err := os.Open(stored)
	if err != nil {
		return d, err
	}
	_, err = putOnce(ctx, r.storage, d.Path(hash.History), f, size)
	return d, errors.Join(err, f.Close(), os.Remove(plain), os.Remove(stored))
}
