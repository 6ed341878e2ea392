package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/internal/durable"
)

// ErrReflog says that the reflog is not the one the publisher last wrote: to go on would lose track of objects.
var ErrReflog = errors.New("the reflog is not the one last published")

// The publisher's own note of the reflog's digest, and the reflog before the one noted. Both are written before the
// reflog is, and the second is removed after the manifest. So a reflog that is not what the note says is either that of
// a publish that was cut off, or the storage went back behind the publisher's back.
const (
	reflogSum    = "reflog.chksum"
	reflogBefore = "reflog.before"
)

// reflog returns the reflog that the manifest names by its digest. If a publish was cut off between reflog and
// manifest, the former one is put back. The caller holds the lock.
func (r *Repository) reflog(ctx context.Context, named hash.Digest) (*history.Reflog, error) {
	raw, err := storage.ReadFile(ctx, r.storage, history.ReflogFile, history.MaxSize)
	if err == nil {
		raw, err = r.settleReflog(ctx, raw, named)
	}
	if err != nil {
		return nil, err
	}
	path := filepath.Join(r.Temp(), "reflog")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(path) // best effort: the folder is emptied with the next transaction
	log, err := history.ReadReflog(path)
	if err == nil && log.FQRN != r.FQRN() {
		err = fmt.Errorf("reflog is that of %.80q", log.FQRN)
	}
	return log, err
}

// settleReflog returns the reflog the manifest names if that is the one found, or the one before a publish that was cut
// off.
func (r *Repository) settleReflog(ctx context.Context, found []byte, named hash.Digest) ([]byte, error) {
	if named.IsZero() {
		return nil, fmt.Errorf("%w: the manifest names none", ErrReflog)
	}
	refusal := fmt.Errorf("%w: the manifest names %v: bring back, as from a replica, %s in %v as the publisher left it",
		ErrReflog, named, history.ReflogFile, r.storage)
	text, err := readSmall(filepath.Join(r.dir, reflogSum), 1<<10)
	if err != nil {
		return nil, errors.Join(refusal, err)
	}
	noted, err := hash.Parse(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, errors.Join(refusal, err)
	}
	is := func(raw []byte, d hash.Digest) bool { return d.Algorithm.Digest(raw) == d }
	if noted == named && is(found, named) {
		return found, nil
	}
	before, err := readSmall(filepath.Join(r.dir, reflogBefore), history.MaxSize)
	if err != nil || !is(before, named) || !is(found, named) && !is(found, noted) {
		return nil, refusal
	}
	r.options.Log.Info("the last publish was cut off before its manifest: the reflog before it counts", "repo",
		r.FQRN())
	if !is(found, named) {
		if err := putBytes(ctx, r.storage, history.ReflogFile, before); err != nil {
			return nil, err
		}
	}
	return before, r.note(reflogSum, []byte(named.String()+"\n"))
}

// putReflog replaces the reflog and gives its digest, which the next manifest must name. The caller holds the lock.
func (r *Repository) putReflog(ctx context.Context, log *history.Reflog) (hash.Digest, error) {
	path := filepath.Join(r.Temp(), "reflog.new")
	if err := log.Write(path); err != nil {
		return hash.Digest{}, err
	}
	raw, err := readSmall(path, history.MaxSize)
	if err = errors.Join(err, os.Remove(path)); err != nil {
		return hash.Digest{}, err
	}
	before, err := storage.ReadFile(ctx, r.storage, history.ReflogFile, history.MaxSize)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return hash.Digest{}, err
	}
	d := r.algorithm.Digest(raw)
	if err := r.note(reflogBefore, before); err != nil {
		return hash.Digest{}, err
	}
	if err := r.note(reflogSum, []byte(d.String()+"\n")); err != nil {
		return hash.Digest{}, err
	}
	return d, putBytes(ctx, r.storage, history.ReflogFile, raw)
}

// note replaces a file in the publisher's folder.
func (r *Repository) note(name string, content []byte) error {
	return durable.Replace(filepath.Join(r.dir, name), 0o644, content)
}

// putBytes stores a small file.
func putBytes(ctx context.Context, to storage.Storage, name string, content []byte) error {
	return to.Put(ctx, name, bytes.NewReader(content), int64(len(content)))
}
