package client

import (
	"context"
	"fmt"
	"os"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/objects"
)

// Tags returns the names that the publisher has given to revisions. A repository without any has an empty history.
// Errors wrap ErrIncomplete if the history is missing on all servers, and history.ErrInvalid if it is none.
func (v *Revision) Tags(ctx context.Context) (*history.History, error) {
	if v.History.IsZero() {
		return &history.History{FQRN: v.FQRN}, nil
	}
	h, err := v.tags(ctx)
	if err != nil {
		return nil, fmt.Errorf("tags of %s, revision %d: %w", v.FQRN, v.Number, err)
	}
	return h, nil
}

func (v *Revision) tags(ctx context.Context) (*history.History, error) {
	f, err := os.CreateTemp(v.repo.temporary(), "history-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // what remains is removed when it's old
	err = objects.Download(ctx, v.repo.cfg.Fetcher, v.History, hash.History, hash.Zlib, history.MaxSize,
		objects.File{File: f})
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return nil, fmt.Errorf("history %v: %w", v.History, missing(err))
	}
	h, err := history.Read(f.Name())
	if err == nil && h.FQRN != v.FQRN {
		err = fmt.Errorf("history %v: it is the one of %.80q: %w", v.History, h.FQRN, ErrInconsistent)
	}
	return h, err
}
