package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/cvmfs/trust"
)

// fixed is the revision that a host's configuration holds on to, instead of the newest. The zero value: none. The
// newest manifest is verified and remembered all the same: tags are believed because it names them, and an older one is
// still refused.
type fixed struct {
	root hash.Digest
	tag  string
	date time.Time
}

// dateForm is how CVMFS_REPOSITORY_DATE is written.
const dateForm = "2006-01-02T15:04:05Z"

// parseFixed reads what is configured; of several the first one counts, as in the reference client.
func parseFixed(c config.Fixed) (f fixed, err error) {
	switch {
	case c.RootHash != "":
		if f.root, err = hash.Parse(c.RootHash); err != nil {
			err = fmt.Errorf("CVMFS_ROOT_HASH: %w", err)
		}
	case c.Tag != "":
		f.tag = c.Tag
		if err = history.CheckName(c.Tag); err != nil {
			err = fmt.Errorf("CVMFS_REPOSITORY_TAG: %w", err)
		}
	case c.Date != "":
		if f.date, err = time.Parse(dateForm, c.Date); err != nil {
			err = fmt.Errorf("CVMFS_REPOSITORY_DATE: %.40q isn't a time in UTC such as 2026-01-31T12:00:00Z", c.Date)
		}
	}
	return f, err
}

// chosen is a root catalog and what is known of it before it is opened.
type chosen struct {
	mount
	revision uint64 // 0: not known
}

// choose returns the root catalog to use where a manifest is the newest.
func (r *Repository) choose(ctx context.Context, m *manifest.Manifest) (chosen, error) {
	switch f := r.cfg.Fixed; {
	case f == fixed{}:
		return chosen{mount{digest: m.Root, size: m.RootSize}, m.Revision}, nil
	case !f.root.IsZero():
		return chosen{mount: mount{digest: f.root}}, nil
	}
	if r.tagged.history != m.History || m.History.IsZero() {
		tag, err := r.tag(ctx, m.History)
		if err != nil {
			return chosen{}, err
		}
		r.tagged.history, r.tagged.tag = m.History, tag
	}
	t := r.tagged.tag
	return chosen{mount{digest: t.Root, size: t.Size}, t.Revision}, nil
}

// tag looks the configured tag or date up in a history.
func (r *Repository) tag(ctx context.Context, d hash.Digest) (history.Tag, error) {
	f := r.cfg.Fixed
	if d.IsZero() {
		return history.Tag{}, errors.New("CVMFS_REPOSITORY_TAG or CVMFS_REPOSITORY_DATE is set, and the repository has no tags")
	}
	h, err := r.history(ctx, d)
	if err != nil {
		return history.Tag{}, err
	}
	if f.tag != "" {
		if t, ok := h.Find(f.tag); ok {
			return t, nil
		}
		return history.Tag{}, fmt.Errorf("CVMFS_REPOSITORY_TAG: the repository has no tag %q", f.tag)
	}
	if t, ok := h.At(f.date); ok {
		return t, nil
	}
	return history.Tag{}, fmt.Errorf("CVMFS_REPOSITORY_DATE: no revision was tagged on %s or before",
		f.date.Format(dateForm))
}

// history gets a history.
func (r *Repository) history(ctx context.Context, d hash.Digest) (*history.History, error) {
	f, err := os.CreateTemp(r.temporary(), "history-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // what remains is swept
	err = objects.Download(ctx, r.cfg.Fetcher, d, hash.History, hash.Zlib, history.MaxSize, objects.File{File: f})
	if err := errors.Join(missing(err), f.Close()); err != nil {
		return nil, fmt.Errorf("tags %v: %w", d, err)
	}
	h, err := history.Read(f.Name())
	if err != nil {
		return nil, fmt.Errorf("tags %v: %w", d, err)
	}
	if h.FQRN != r.cfg.FQRN {
		return nil, fmt.Errorf("tags %v are of %.80q: %w", d, h.FQRN, ErrInconsistent)
	}
	return h, nil
}

// holdsTo completes a revision from its root catalog, if it is one that may be used.
func (v *Revision) holdsTo(c *catalog.Catalog, want chosen, b *trust.Blacklist) error {
	switch v.Number = c.Revision(); {
	case v.Number != want.revision && want.revision > 0:
		return fmt.Errorf("root catalog %v is of revision %d, what names it says %d: %w", v.Root, v.Number, want.revision,
			ErrInconsistent)
	case v.Number < b.MinRevision(v.FQRN):
		return fmt.Errorf("revision %d, older than %d: %w", v.Number, b.MinRevision(v.FQRN), trust.ErrBlacklisted)
	}
	if v.Published.IsZero() {
		v.Published = c.Modified()
	}
	return nil
}

// unnamed makes an error of a root catalog that no server has one that says where its name comes from.
func (f fixed) unnamed(err error) error {
	if err == nil || f == (fixed{}) || !errors.Is(err, ErrIncomplete) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w (the configuration holds on to this revision: CVMFS_ROOT_HASH, _REPOSITORY_TAG or _DATE)", err)
}
