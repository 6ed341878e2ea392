package publish

import (
	"context"
	"path/filepath"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
)

// What tests do step by step, to stop in between, and what they look into.

const WWWFolder = wwwFolder

var ErrOtherKey = errOtherKey

func (r *Repository) Key(ending string) string { return r.key(ending) }

func (r *Repository) PutReflog(ctx context.Context, log *history.Reflog) error {
	_, err := r.putReflog(ctx, log)
	return err
}

func (r *Repository) ReadReflog(ctx context.Context, named hash.Digest) (*history.Reflog, error) {
	return r.reflog(ctx, named)
}

func (r *Repository) ReadHistory(ctx context.Context, m *manifest.Manifest) (*history.History, error) {
	return r.history(ctx, m, filepath.Join(r.Temp(), "history"))
}

func (r *Repository) FetchCatalog(ctx context.Context, d hash.Digest, path string) error {
	return r.fetchCatalog(ctx, d, path)
}

func (r *Repository) ReplaceKey() error { return r.replaceKey() }

func (r *Repository) SettleCertificate() error {
	_, err := r.settleCertificate(false)
	return err
}
