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
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/cvmfs/trust"
)

// Draft is a manifest in the making: what it starts from, and what to sign it with.
type Draft struct {
	Head   *manifest.Manifest // the newest one
	Reflog *history.Reflog    // that goes with it; Publish adds to it
	Now    time.Time          // when the new one is published: later than Head, to the second

	repo        *Repository
	key         *rsa.PrivateKey
	certificate []byte // PEM
}

// Draft makes ready for a new manifest: it removes what was left half done and refuses where clients wouldn't believe
// it. The caller holds the lock, and goes on to do so until the draft is published or given up.
//
// Errors: ErrExpired if clients would not believe the new manifest; ErrReflog; those of Head.
func (r *Repository) Draft(ctx context.Context) (*Draft, error) {
	if err := r.clear(); err != nil {
		return nil, err
	}
	key, certificate, pem, err := r.signer()
	if err != nil {
		return nil, err
	}
	if err := r.believed(ctx, certificate); err != nil {
		return nil, err
	}
	head, err := r.Head(ctx)
	if err != nil {
		return nil, err
	}
	d := &Draft{Head: head.Manifest, Now: r.Now().Truncate(time.Second), repo: r, key: key, certificate: pem}
	if !d.Now.After(d.Head.Published) {
		d.Now = d.Head.Published.Add(time.Second) // two manifests never have the same time, and none an earlier one
	}
	d.Reflog, err = r.reflog(ctx, d.Head.Reflog)
	return d, err
}

// Tags returns the tags of the newest revision.
func (d *Draft) Tags(ctx context.Context) (*history.History, error) {
	return d.repo.history(ctx, d.Head, filepath.Join(d.repo.Temp(), "history"))
}

// history reads the tags of a revision by way of a temporary file.
func (r *Repository) history(ctx context.Context, m *manifest.Manifest, path string) (*history.History, error) {
	if m.History.IsZero() {
		return &history.History{FQRN: r.FQRN()}, nil
	}
	h, err := storage.ReadHistory(ctx, r.storage, m.History, path)
	if err == nil && h.FQRN != r.FQRN() {
		err = fmt.Errorf("history %v is that of %.80q", m.History, h.FQRN)
	}
	return h, err
}

// Publish makes a manifest the newest: it stores tags and certificate, enters everything in the reflog, and replaces
// the manifest, in this order. What m.Root leads to must be stored. The manifest's other digests are set here. The
// caller holds the lock.
func (d *Draft) Publish(ctx context.Context, m *manifest.Manifest, tags *history.History) error {
	r := d.repo
	var err error
	if m.Certificate, err = putObject(ctx, r.storage, r.algorithm, hash.Certificate, d.certificate); err != nil {
		return err
	}
	tags.Previous = m.History
	if m.History, err = r.putHistory(ctx, tags); err != nil {
		return err
	}
	for _, ref := range history.Named(m) {
		if !d.Reflog.Has(ref.Digest, ref.Kind) {
			d.Reflog.Set(ref)
		}
	}
	// Everything the reflog and the manifest lead to.
	if err := r.storage.Sync(ctx); err != nil {
		return err
	}
	if m.Reflog, err = r.putReflog(ctx, d.Reflog); err != nil {
		return err
	}
	return r.putManifest(ctx, m, d.key)
}

// putHistory stores a tag database.
func (r *Repository) putHistory(ctx context.Context, tags *history.History) (hash.Digest, error) {
	path := filepath.Join(r.Temp(), "history.new")
	if err := tags.Write(path); err != nil {
		return hash.Digest{}, err
	}
	return putDatabase(ctx, r.storage, r.algorithm, hash.History, path)
}

// putManifest signs a manifest and makes it the repository's newest. What it leads to must have been synced. With it a
// new reflog counts. The caller holds the lock.
func (r *Repository) putManifest(ctx context.Context, m *manifest.Manifest, key *rsa.PrivateKey) error {
	text, err := m.Text()
	if err != nil {
		return err
	}
	letter, err := trust.SignManifest(text, m.Root.Algorithm, key)
	if err != nil {
		return err
	}
	if err := putBytes(ctx, r.storage, manifest.FileName, letter); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(r.dir, reflogBefore)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
