package publish

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/trust"
)

// Info is what there is to say of a repository.
type Info struct {
	FQRN        string    `json:"fqrn"`
	Storage     string    `json:"storage"`
	Algorithm   string    `json:"algorithm"`
	Compression string    `json:"compression"`
	Revision    uint64    `json:"revision"`
	Root        string    `json:"root"` // digest of the root catalog
	Published   time.Time `json:"published"`
	Expires     time.Time `json:"whitelist_expires"`
	Expired     bool      `json:"whitelist_expired"`
	// fingerprint of the one the newest revision is signed with
	Certificate        string           `json:"certificate"`
	TTL                int              `json:"ttl"` // seconds
	GarbageCollectable bool             `json:"garbage_collectable"`
	Tags               int              `json:"tags"`
	Counters           catalog.Counters `json:"counters"` // of the whole tree
}

// Info reads it from the storage. It needs no lock and writes nothing in the publisher's folder.
func (r *Repository) Info(ctx context.Context) (*Info, error) {
	head, err := r.Head(ctx)
	expired := errors.Is(err, trust.ErrExpired)
	if err != nil && !expired {
		return nil, err
	}
	i := &Info{
		FQRN: r.FQRN(), Storage: r.storage.String(), Algorithm: r.algorithm.String(),
		Compression: r.compression.String(),
		Revision:    head.Manifest.Revision, Root: head.Manifest.Root.String(), Published: head.Manifest.Published,
		Expires: head.Expires, Expired: expired, Certificate: head.Certificate.String(),
		TTL: int(head.Manifest.TTL / time.Second), GarbageCollectable: head.Manifest.GarbageCollectable,
	}
	tags, err := r.readTags(ctx, head)
	if err == nil {
		i.Tags = len(tags)
		i.Counters, err = r.count(ctx, head)
	}
	if err != nil {
		return nil, fmt.Errorf("info of %s: %w", r.FQRN(), err)
	}
	return i, nil
}

// count returns the counters of a revision's tree.
func (r *Repository) count(ctx context.Context, head *trust.Trusted) (total catalog.Counters, err error) {
	dir, err := os.MkdirTemp("", "cvmfs-info-")
	if err != nil {
		return total, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "catalog")
	if err := r.fetchCatalog(ctx, head.Manifest.Root, path); err != nil {
		return total, err
	}
	c, err := catalog.Open(path)
	if err != nil {
		return total, err
	}
	s, err := c.Statistics()
	return s.Total(), errors.Join(err, c.Close())
}
