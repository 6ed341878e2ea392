package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/cvmfs/trust"
	"cvmfs-graphdriver/internal/durable"
)

// ResignOptions say how the whitelist is renewed.
type ResignOptions struct {
	Days   int  // the new list is good for; 0: Settings.WhitelistDays
	NewKey bool // publish with a new key and certificate from now on; the former certificate stays on the list
}

// Resign signs the whitelist anew with the master key, which must be in the folder of keys. Certificates that are
// listed stay listed, and the publisher's own is added. It gives the moment the new list expires. Where an earlier one
// was cut off, it goes on.
func (r *Repository) Resign(ctx context.Context, o ResignOptions) (expires time.Time, err error) {
	if o.Days == 0 {
		o.Days = r.settings.WhitelistDays
	}
	if o.Days < 1 || o.Days > maxDays {
		return expires, fmt.Errorf("resign whitelist of %s: %d days: want 1 to %d", r.FQRN(), o.Days, maxDays)
	}
	unlock, err := r.Lock(ctx)
	if err == nil {
		expires, err = r.resign(ctx, o)
		err = errors.Join(err, unlock())
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("resign whitelist of %s: %w", r.FQRN(), err)
	}
	return expires, nil
}

func (r *Repository) resign(ctx context.Context, o ResignOptions) (time.Time, error) {
	master, err := trust.LoadPrivateKey(r.key(".masterkey"))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: bring the master key from where it is kept", err)
	}
	if err != nil {
		return time.Time{}, err
	}
	keys, err := r.MasterKeys()
	if err != nil {
		return time.Time{}, err
	}
	if !keys[0].Equal(&master.PublicKey) {
		return time.Time{}, fmt.Errorf("%s is not the public key of %s: clients would refuse the list", r.key(".pub"),
			r.key(".masterkey"))
	}
	listed, err := r.listed(ctx, keys)
	if err != nil {
		return time.Time{}, err
	}
	certificate, err := r.settleCertificate(o.NewKey)
	if err != nil {
		return time.Time{}, err
	}
	w := &trust.WhitelistText{
		FQRN: r.FQRN(), Created: r.Now(), Expires: r.Now().Add(time.Duration(o.Days) * 24 * time.Hour),
		Certificates: []*trust.Certificate{certificate}, Fingerprints: listed,
	}
	letter, err := trust.SignWhitelist(w, r.algorithm, master)
	if err != nil {
		return time.Time{}, err
	}
	if err := putBytes(ctx, r.storage, trust.WhitelistFile, letter); err != nil {
		return time.Time{}, err
	}
	return w.Expires.Truncate(time.Hour), r.storage.Sync(ctx) // readers look at the hour alone
}

// listed are the fingerprints on the whitelist of now, whether it expired or not; none if there is no list. One that
// the master key didn't sign is refused: whoever wrote it would be signed for.
func (r *Repository) listed(ctx context.Context, keys trust.Keys) ([]hash.Digest, error) {
	raw, err := storage.ReadWhitelist(ctx, r.storage)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := trust.VerifyWhitelist(r.FQRN(), raw, keys, time.Time{})
	if err != nil {
		return nil, fmt.Errorf("%w: remove %s from %v, and the new list holds the publisher's certificate alone", err,
			trust.WhitelistFile, r.storage)
	}
	return list.Fingerprints(), nil
}

// settleCertificate returns the publisher's certificate, and makes a new key if asked. A certificate that isn't the
// key's is what a change of keys that was cut off left: the key counts, as each certificate can be made again from it.
func (r *Repository) settleCertificate(newKey bool) (*trust.Certificate, error) {
	if newKey {
		if err := r.replaceKey(); err != nil {
			return nil, err
		}
	} else if _, certificate, _, err := r.signer(); !errors.Is(err, errOtherKey) && !errors.Is(err, fs.ErrNotExist) {
		return certificate, err
	}
	key, err := trust.LoadPrivateKey(r.key(".key"))
	if err != nil {
		return nil, err
	}
	pem, err := trust.NewCertificate(r.FQRN(), key, r.Now())
	if err != nil {
		return nil, err
	}
	if err := durable.Replace(r.key(".crt"), 0o644, pem); err != nil {
		return nil, err
	}
	return trust.ParseCertificate(pem)
}

// replaceKey puts a new publisher's key in the place of the former.
func (r *Repository) replaceKey() error {
	key, err := trust.GenerateKey()
	if err != nil {
		return err
	}
	next := r.key(".key.next")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := trust.SavePrivateKey(next, key); err != nil {
		return err
	}
	if err := os.Rename(next, r.key(".key")); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(next))
}
