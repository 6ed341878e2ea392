package publish

import (
	"context"
	"crypto/rsa"
	"time"

	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
)

// revision is what a new manifest is made from: the newest one, its reflog, and what to sign with.
type revision struct {
	head        *manifest.Manifest
	reflog      *history.Reflog
	key         *rsa.PrivateKey
	certificate []byte    // PEM
	now         time.Time // of the new manifest
}

// revise makes ready for a new manifest: it removes what was left half done and refuses where clients wouldn't believe
// it. The caller holds the lock.
func (r *Repository) revise(ctx context.Context) (*revision, error) {
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
	v := &revision{head: head.Manifest, key: key, certificate: pem, now: r.now().Truncate(time.Second)}
	if !v.now.After(v.head.Published) {
		v.now = v.head.Published.Add(time.Second) // two manifests never have the same time, and none an earlier one
	}
	v.reflog, err = r.reflog(ctx, v.head.Reflog)
	return v, err
}
