package publish

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"syscall"
	"time"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish/s3"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/cvmfs/trust"
	"cvmfs-graphdriver/internal/durable"
)

// ErrExpired refuses to publish what no client would believe: the whitelist is over, or doesn't list the publisher's
// certificate.
var ErrExpired = errors.New("clients would not believe a new revision")

// replicaFile marks a repository that may be replicated.
const replicaFile = ".cvmfs_master_replica"

const (
	wwwFolder  = "www/cvmfs" // in a publisher's folder; the repository is below it
	keysFolder = "keys"
	tmpFolder  = "tmp"
)

// Options are what a publisher's folder doesn't say.
type Options struct {
	Storage storage.Storage // nil: the one that Settings.Storage names, with the credentials of the environment
	Workers int             // that make objects; 0: one for each processor
	// Chunk is the average of the chunks that files are cut into, in bytes, of half to twice that; 0: the settings say.
	Chunk int
	Now   func() time.Time // nil: time.Now
	Log   *slog.Logger     // nil: slog.Default
}

// Repository is a publisher's folder. It is safe for concurrent use.
type Repository struct {
	dir         string
	settings    Settings
	algorithm   hash.Algorithm
	compression hash.Compression
	storage     storage.Storage
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
	s = s.withChunks(o.Chunk)
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", s.FQRN, err)
	}
	switch {
	case o.Storage != nil:
	case s.Storage != "":
		err = o.openRemote(s.Storage)
	default:
		o.Storage, err = storage.OpenLocal(filepath.Join(dir, wwwFolder, s.FQRN))
	}
	if err != nil {
		return nil, err
	}
	return newRepository(dir, s, o)
}

// remoteWorkers is how many objects are stored at once where each takes requests to a server.
const remoteWorkers = 16

// openRemote opens the storage at an address.
func (o *Options) openRemote(address string) error {
	remote, err := s3.Open(address, s3.Options{})
	if err != nil {
		return err
	}
	o.Storage = remote
	set(&o.Workers, remoteWorkers)
	return nil
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
func (r *Repository) Storage() storage.Storage { return r.storage }

// FQRN is the repository's name.
func (r *Repository) FQRN() string { return r.settings.FQRN }

// Algorithm makes the digests of new objects.
func (r *Repository) Algorithm() hash.Algorithm { return r.algorithm }

// Dir is the publisher's folder.
func (r *Repository) Dir() string { return r.dir }

// Now is the time by the publisher's clock, UTC.
func (r *Repository) Now() time.Time { return r.options.Now().UTC() }

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

// Temp is the folder for what is being made. Who holds the lock may use it, and empties it.
func (r *Repository) Temp() string { return filepath.Join(r.dir, tmpFolder) }

// MasterKeyFile is the file with the public key by which clients know the repository.
func (r *Repository) MasterKeyFile() string { return r.key(".pub") }

// MasterKeys are the public keys in MasterKeyFile.
func (r *Repository) MasterKeys() (trust.Keys, error) { return trust.LoadKeys(r.MasterKeyFile()) }

// Head returns the newest revision's manifest, verified as clients do it, with the folder's own master key. Where all
// that is amiss is that the whitelist expired, it gives the manifest and the error, trust.ErrExpired.
func (r *Repository) Head(ctx context.Context) (*trust.Trusted, error) {
	keys, err := r.MasterKeys()
	if err != nil {
		return nil, fmt.Errorf("head of %s: %w", r.FQRN(), err)
	}
	head, err := storage.ReadHead(ctx, r.storage, trust.Policy{FQRN: r.FQRN(), Keys: keys, Now: r.Now()})
	if err != nil && !errors.Is(err, trust.ErrExpired) {
		return nil, fmt.Errorf("head of %s: %w", r.FQRN(), err)
	}
	return head, err
}

// errOtherKey says that key and certificate don't belong together.
var errOtherKey = errors.New("is not one of the key")

// signer returns the key and the certificate new manifests are signed with.
func (r *Repository) signer() (*rsa.PrivateKey, *trust.Certificate, []byte, error) {
	key, err := trust.LoadPrivateKey(r.key(".key"))
	if err != nil {
		return nil, nil, nil, err
	}
	pem, err := readSmall(r.key(".crt"), storage.MaxCertificate)
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
	raw, err := storage.ReadWhitelist(ctx, r.storage)
	if err != nil {
		return err
	}
	keys, err := r.MasterKeys()
	if err != nil {
		return err
	}
	list, err := trust.VerifyWhitelist(r.FQRN(), raw, keys, r.Now())
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

// fetchCatalog brings a stored catalog's plain file to path.
func (r *Repository) fetchCatalog(ctx context.Context, d hash.Digest, path string) error {
	return storage.FetchDatabase(ctx, r.storage, d, hash.Catalog, catalog.MaxSize, path)
}

// clear removes what earlier processes left half done. The caller holds the lock.
func (r *Repository) clear() error {
	if err := errors.Join(storage.EmptyFolder(r.Temp()), durable.Sweep(r.dir)); err != nil {
		return readOnly(err)
	}
	if l, ok := r.storage.(*storage.Local); ok {
		return readOnly(l.Clear())
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
