package publish

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/trust"
)

// ErrExpired refuses to publish what no client would believe: the whitelist is over, or doesn't list the publisher's
// certificate.
var ErrExpired = errors.New("clients would not believe a new revision")

// The mutable files of a repository.
const (
	manifestFile  = ".cvmfspublished"
	whitelistFile = ".cvmfswhitelist"
	reflogFile    = ".cvmfsreflog"
	replicaFile   = ".cvmfs_master_replica"
)

const (
	wwwFolder  = "www/cvmfs" // in a publisher's folder; the repository is below it
	keysFolder = "keys"
	tmpFolder  = "tmp"

	maxCertificate = 64 << 10 // plain bytes
	maxDatabase    = 1 << 30  // plain bytes of a tag database or reflog
)

// Options are what a publisher's folder doesn't say.
type Options struct {
	Storage Storage          // nil: the folder DIR/www; required where Settings.Storage names another
	Workers int              // that make objects; 0: one for each processor
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger     // nil: slog.Default
}

// Repository is a publisher's folder. It is safe for concurrent use.
type Repository struct {
	dir         string
	settings    Settings
	algorithm   hash.Algorithm
	compression hash.Compression
	storage     Storage
	options     Options
}

// Open opens a publisher's folder that Create made.
func Open(dir string, o Options) (*Repository, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	s, err := ReadSettings(dir)
	if err != nil {
		return nil, err
	}
	if o.Storage == nil {
		if s.Storage != "" {
			return nil, fmt.Errorf("open repository %s: its storage is %s, which isn't open", dir, s.Storage)
		}
		if o.Storage, err = OpenLocal(filepath.Join(dir, wwwFolder, s.FQRN)); err != nil {
			return nil, err
		}
	}
	return newRepository(dir, s, o)
}

func newRepository(dir string, s Settings, o Options) (*Repository, error) {
	r := &Repository{dir: dir, settings: s, storage: o.Storage, options: o}
	var err error
	if r.algorithm, err = s.algorithm(); err != nil {
		return nil, err
	}
	if r.compression, err = s.compression(); err != nil {
		return nil, err
	}
	if o.Now == nil {
		r.options.Now = time.Now
	}
	if o.Log == nil {
		r.options.Log = slog.Default()
	}
	return r, nil
}

// Settings are those of DIR/publisher.json, with defaults in place.
func (r *Repository) Settings() Settings { return r.settings }

// Storage is where readers find the repository.
func (r *Repository) Storage() Storage { return r.storage }

// FQRN is the repository's name.
func (r *Repository) FQRN() string { return r.settings.FQRN }

// Dir is the publisher's folder.
func (r *Repository) Dir() string { return r.dir }

func (r *Repository) now() time.Time { return r.options.Now().UTC() }

// key returns the path of one of the files with keys: FQRN.masterkey, .pub, .key or .crt.
func (r *Repository) key(ending string) string { return keyPath(r.dir, r.settings, ending) }

func keyPath(dir string, s Settings, ending string) string {
	keys := s.Keys
	if keys == "" {
		keys = filepath.Join(dir, keysFolder)
	} else if !filepath.IsAbs(keys) {
		keys = filepath.Join(dir, keys)
	}
	return filepath.Join(keys, s.FQRN+ending)
}

// MasterKeys are the public keys by which clients know the repository.
func (r *Repository) MasterKeys() (trust.Keys, error) { return trust.LoadKeys(r.key(".pub")) }

// Head returns the newest revision's manifest, verified as clients do it, with the folder's own master key. Where all
// that is amiss is that the whitelist expired, it gives the manifest and the error, trust.ErrExpired.
func (r *Repository) Head(ctx context.Context) (*trust.Trusted, error) {
	keys, err := r.MasterKeys()
	if err != nil {
		return nil, fmt.Errorf("head of %s: %w", r.FQRN(), err)
	}
	letter, err := readStored(ctx, r.storage, manifestFile, manifest.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("head of %s: %w", r.FQRN(), err)
	}
	policy := trust.Policy{FQRN: r.FQRN(), Keys: keys, Now: r.now()}
	head, err := policy.Verify(ctx, letter, source{r.storage})
	if errors.Is(err, trust.ErrExpired) {
		expired := err
		policy.Now = time.Time{} // before all whitelists
		if head, err = policy.Verify(ctx, letter, source{r.storage}); err == nil {
			return head, expired
		}
	}
	if err != nil {
		return nil, fmt.Errorf("head of %s: %w", r.FQRN(), err)
	}
	return head, nil
}

// source gets what belongs to a manifest.
type source struct{ from Served }

func (s source) Certificate(ctx context.Context, d hash.Digest) ([]byte, error) {
	return readObject(ctx, s.from, d, hash.Certificate, hash.Zlib, maxCertificate)
}

func (s source) Whitelist(ctx context.Context) ([]byte, error) {
	return readStored(ctx, s.from, whitelistFile, trust.MaxLetter)
}

// errOtherKey says that key and certificate don't belong together.
var errOtherKey = errors.New("is not one of the key")

// signer returns the key and the certificate new manifests are signed with.
func (r *Repository) signer() (*rsa.PrivateKey, *trust.Certificate, []byte, error) {
	key, err := trust.LoadPrivateKey(r.key(".key"))
	if err != nil {
		return nil, nil, nil, err
	}
	pem, err := readSmall(r.key(".crt"), maxCertificate)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("certificate: %w", err)
	}
	certificate, err := trust.ParseCertificate(pem)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("certificate %s: %w", r.key(".crt"), err)
	}
	if !certificate.Holds(key) {
		return nil, nil, nil, fmt.Errorf("certificate %s %w %s: make one with publish resign", r.key(".crt"),
			errOtherKey, r.key(".key"))
	}
	return key, certificate, pem, nil
}

// believed refuses to publish with a certificate that clients don't believe.
func (r *Repository) believed(ctx context.Context, c *trust.Certificate) error {
	raw, err := source{r.storage}.Whitelist(ctx)
	if err != nil {
		return err
	}
	keys, err := r.MasterKeys()
	if err != nil {
		return err
	}
	list, err := trust.VerifyWhitelist(r.FQRN(), raw, keys, r.now())
	switch {
	case errors.Is(err, trust.ErrExpired):
		return fmt.Errorf("%w: the whitelist expired (%w): sign it anew with publish resign", ErrExpired,
			trust.ErrExpired)
	case err != nil:
		return err
	case !list.Lists(c):
		return fmt.Errorf("%w: certificate %v is not on the whitelist: put it there with publish resign: %w",
			ErrExpired, c, trust.ErrNotWhitelisted)
	}
	return nil
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
	if err := putBytes(ctx, r.storage, manifestFile, letter); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(r.dir, reflogBefore)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// fetchCatalog brings a stored catalog's plain file to path.
func (r *Repository) fetchCatalog(ctx context.Context, d hash.Digest, path string) error {
	return r.fetchDatabase(ctx, d, hash.Catalog, catalog.MaxSize, path)
}

// fetchDatabase brings the plain file of a catalog or tag database to path.
func (r *Repository) fetchDatabase(ctx context.Context, d hash.Digest, s hash.Suffix, limit int64,
	path string,
) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = copyObject(ctx, f, r.storage, d, s, hash.Zlib, limit)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path) // best effort: the folder is emptied with the next transaction
	}
	return err
}

// clear removes what earlier processes left half done. The caller holds the lock.
func (r *Repository) clear() error {
	if err := emptyFolder(filepath.Join(r.dir, tmpFolder)); err != nil {
		return readOnly(err)
	}
	if l, ok := r.storage.(*Local); ok {
		return readOnly(l.clear())
	}
	return nil
}

// readOnly adds the remedy where a folder can't be written.
func readOnly(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("%w: run as the user the folder belongs to, on a file system that may be written", err)
	}
	return err
}
