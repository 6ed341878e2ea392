package publish

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/cvmfs/trust"
	"cvmfs-graphdriver/internal/durable"
)

// Create makes a publisher's folder with keys and an empty repository, revision 0. The folder must be missing or empty;
// it is there complete, or not at all. Keys that are in Settings.Keys already are taken.
func Create(ctx context.Context, dir string, s Settings, o Options) error {
	s = s.complete()
	err := s.check()
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err == nil {
		err = create(ctx, dir, s, o)
	}
	if err != nil {
		return fmt.Errorf("create repository %.80q in %s: %w", s.FQRN, dir, err)
	}
	return nil
}

func create(ctx context.Context, dir string, s Settings, o Options) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%w, and not empty: take another folder, or remove this one", fs.ErrExist)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return readOnly(err)
	}
	made, err := durable.CreateFolder(parent)
	if err != nil {
		return readOnly(err)
	}
	err = createIn(ctx, made.Path(), s, o)
	if err == nil {
		err = made.New(filepath.Base(dir))
	}
	return errors.Join(err, made.Close())
}

// createIn makes the folder's content.
func createIn(ctx context.Context, dir string, s Settings, o Options) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, tmpFolder), 0o700); err != nil {
		return err
	}
	var err error
	switch {
	case o.Storage != nil:
	case s.Storage != "":
		err = o.openRemote(s.Storage)
	default:
		o.Storage, err = storage.MakeLocal(filepath.Join(dir, wwwFolder, s.FQRN))
	}
	if err != nil {
		return err
	}
	if _, err := o.Storage.Stat(ctx, manifest.FileName); err == nil {
		return fmt.Errorf("%v holds a repository: %w", o.Storage, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r, err := newRepository(dir, s, o)
	if err != nil {
		return err
	}
	if err := r.createKeys(ctx); err != nil {
		return err
	}
	if err := r.createRevision(ctx); err != nil {
		return err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, SettingsFile), append(text, '\n'), 0o644)
}

// createKeys makes what keys are missing, and the whitelist.
func (r *Repository) createKeys(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(r.key("")), 0o700); err != nil {
		return err
	}
	master, err := loadOrMakeKey(r.key(".masterkey"))
	if err != nil {
		return err
	}
	if err := trust.SavePublicKey(r.key(".pub"), &master.PublicKey); errors.Is(err, fs.ErrExist) {
		keys, err := r.MasterKeys()
		if err != nil {
			return err
		}
		if !keys[0].Equal(&master.PublicKey) {
			return fmt.Errorf("%s is not the public key of %s", r.key(".pub"), r.key(".masterkey"))
		}
	} else if err != nil {
		return err
	}
	key, err := loadOrMakeKey(r.key(".key"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(r.key(".crt")); errors.Is(err, fs.ErrNotExist) {
		pem, err := trust.NewCertificate(r.FQRN(), key, r.Now())
		if err != nil {
			return err
		}
		if err := durable.Replace(r.key(".crt"), 0o644, pem); err != nil {
			return err
		}
	}
	_, certificate, _, err := r.signer()
	if err != nil {
		return err
	}
	list, err := trust.SignWhitelist(&trust.WhitelistText{
		FQRN: r.FQRN(), Created: r.Now(),
		Expires:      r.Now().Add(time.Duration(r.settings.WhitelistDays) * 24 * time.Hour),
		Certificates: []*trust.Certificate{certificate},
	}, r.algorithm, master)
	if err != nil {
		return err
	}
	return putBytes(ctx, r.storage, trust.WhitelistFile, list)
}

func loadOrMakeKey(path string) (*rsa.PrivateKey, error) {
	key, err := trust.LoadPrivateKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = trust.GenerateKey(); err != nil {
		return nil, err
	}
	return key, trust.SavePrivateKey(path, key)
}

// createRevision publishes revision 0: an empty root folder.
func (r *Repository) createRevision(ctx context.Context) error {
	key, _, pem, err := r.signer()
	if err != nil {
		return err
	}
	m := &manifest.Manifest{
		TTL: r.settings.ttl(), FQRN: r.FQRN(), Published: r.Now().Truncate(time.Second),
		GarbageCollectable: *r.settings.GarbageCollectable,
	}
	if m.Root, m.RootSize, err = r.createRoot(ctx, m.Published); err != nil {
		return err
	}
	if m.Metainfo, err = putObject(ctx, r.storage, r.algorithm, hash.Metainfo, []byte("{}")); err != nil {
		return err
	}
	if err := putBytes(ctx, r.storage, replicaFile,
		[]byte("This file marks the repository as one that may be replicated.\n")); err != nil {
		return err
	}
	tags := &history.History{FQRN: r.FQRN()}
	tags.Set(history.Tag{
		Name: history.Trunk, Root: m.Root, Revision: 0, Time: m.Published, Description: history.EmptyRepository,
		Size: m.RootSize,
	})
	d := &Draft{Reflog: &history.Reflog{FQRN: r.FQRN()}, repo: r, key: key, certificate: pem}
	return d.Publish(ctx, m, tags)
}

// createRoot stores the root catalog of an empty repository, and returns its digest and its plain size.
func (r *Repository) createRoot(ctx context.Context, now time.Time) (d hash.Digest, size int64, err error) {
	path := filepath.Join(r.Temp(), "catalog")
	w, err := catalog.Create(path, catalog.Properties{LastModified: now, TTL: r.settings.ttl()})
	if err != nil {
		return d, 0, err
	}
	root := &catalog.Entry{Mode: typeDir | 0o755, Size: folderSize, Nlink: 2, Mtime: now.Unix()}
	if err := w.Add("", root); err != nil {
		return d, 0, errors.Join(err, w.Abort())
	}
	if _, err := w.Finish(catalog.Counters{}); err != nil {
		return d, 0, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return d, 0, err
	}
	d, err = putDatabase(ctx, r.storage, r.algorithm, hash.Catalog, path)
	return d, info.Size(), err
}
