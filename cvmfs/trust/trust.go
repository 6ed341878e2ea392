// Package trust decides whether what a server says of a repository may be believed, and signs what is to be believed.
//
// The words used here:
//
//   - A letter is a signed text: the text, a line "--", the text's digest, and a signature of that digest. Manifest and
//     whitelist are letters, signed in two different ways.
//   - A master key is the public RSA key of those who run a repository's servers. Hosts have it in a file; nothing else
//     is believed from the start. Several may be good for one repository.
//   - The whitelist is a letter signed by a master key. It lists, until it expires, the certificates that may publish.
//   - The certificate is a publisher's; its key signs the manifest. Its own dates and issuer mean nothing: repositories
//     run on self-signed certificates that ran out long ago, and it is the whitelist that expires.
//   - A fingerprint is the digest of a certificate's DER bytes, written as "93:AB:…:15", with "-RMD160" or "-SHAKE128"
//     behind it where the digest isn't SHA-1.
//   - The blacklist is a file of the host. It takes trust away from certificates and from old revisions, whatever the
//     whitelist says.
//
// The chain is always walked from end to end, by Policy.Verify: master key, whitelist, certificate, manifest. The
// reference client leaves it out when the root catalog is unchanged; here the other fields of a manifest count as well.
// What hangs below the manifest is verified by digests alone. There is no way to a text of a letter but through its
// verification.
//
// The formats are those of the CernVM-FS client, crypto/signature.cc, whitelist.cc and manifest_fetch.cc. Whitelists
// that want a PKCS#7 signature (Vpkcs7) or a certificate chain (Wcachain) are refused: the reference client never loads
// the authorities these would be judged by, so no such list can be verified by anyone.
package trust

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/manifest"
)

// What can be wrong with a chain. ErrNotWhitelisted and ErrBlacklisted are verdicts that another server can't change;
// with the others it may be just this server's copy that is bad or old.
var (
	ErrInvalid        = errors.New("not in the format")
	ErrSignature      = errors.New("signature does not match")
	ErrExpired        = errors.New("whitelist expired")
	ErrNotWhitelisted = errors.New("certificate is not on the whitelist")
	ErrBlacklisted    = errors.New("on this host's blacklist")
)

// Policy is what a host believes of one repository.
type Policy struct {
	FQRN      string
	Keys      Keys
	Blacklist *Blacklist // nil: nothing is blacklisted
	Now       time.Time  // what the whitelist's expiry is compared with
}

// Source gets what belongs to a manifest. What it returns is not believed. Its methods are called concurrently.
type Source interface {
	// Certificate returns the plain bytes (PEM) of the certificate object d.
	Certificate(ctx context.Context, d hash.Digest) ([]byte, error)
	// Whitelist returns .cvmfswhitelist.
	Whitelist(ctx context.Context) ([]byte, error)
}

// Trusted is a manifest that may be believed, and why.
type Trusted struct {
	Manifest    *manifest.Manifest
	Certificate *Certificate // who signed the manifest
	Expires     time.Time    // when the whitelist stops vouching for that
}

// Verify judges published, the content of .cvmfspublished. It doesn't know what the host saw before: that a revision
// isn't older than one seen is for the caller to see to.
func (p *Policy) Verify(ctx context.Context, published []byte, from Source) (*Trusted, error) {
	t, err := p.verify(ctx, published, from)
	if err != nil {
		return nil, fmt.Errorf("verify manifest of %s: %w", p.FQRN, err)
	}
	return t, nil
}

func (p *Policy) verify(ctx context.Context, published []byte, from Source) (*Trusted, error) {
	letter, err := parseLetter(published)
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(p.FQRN, letter.text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var raw []byte
	listed := make(chan error, 1)
	go func() { // one round trip less
		var err error
		raw, err = from.Whitelist(ctx)
		listed <- err
	}()
	pem, err := from.Certificate(ctx, m.Certificate)
	unlisted := <-listed
	if err != nil {
		return nil, fmt.Errorf("certificate %v: %w", m.Certificate, err)
	}
	certificate, err := ParseCertificate(pem)
	if err != nil {
		return nil, fmt.Errorf("certificate %v: %w", m.Certificate, err)
	}
	if err := unlisted; err != nil {
		return nil, fmt.Errorf("whitelist: %w", err)
	}
	whitelist, err := VerifyWhitelist(p.FQRN, raw, p.Keys, p.Now)
	if err != nil {
		return nil, err
	}
	switch name := certificate.Fingerprint(hash.SHA1); {
	case p.Blacklist.Certificate(certificate):
		return nil, fmt.Errorf("certificate %s: %w", FormatFingerprint(name), ErrBlacklisted)
	case !whitelist.Lists(certificate):
		return nil, fmt.Errorf("certificate %s: %w", FormatFingerprint(name), ErrNotWhitelisted)
	}
	if err := verifyManifest(letter, certificate); err != nil {
		return nil, err
	}
	if least := p.Blacklist.MinRevision(p.FQRN); m.Revision < least {
		return nil, fmt.Errorf("revision %d, older than %d: %w", m.Revision, least, ErrBlacklisted)
	}
	return &Trusted{Manifest: m, Certificate: certificate, Expires: whitelist.Expires}, nil
}

// permitted reports whether this process may use the digests of the format at all. Under GODEBUG=fips140=only the
// standard library panics on SHA-1; that is a setting of whoever runs the process, so it isn't worked around.
func permitted() error {
	if fips140.Enforced() {
		return errors.New("CernVM-FS rests on SHA-1, which GODEBUG=fips140=only forbids: run without that setting, or with fips140=on")
	}
	return nil
}
