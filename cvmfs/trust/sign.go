package trust

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/manifest"
)

const (
	// certificateLife is how long a new certificate says it is good for, as the reference's servers have it. Nobody
	// looks.
	certificateLife = 365 * 24 * time.Hour
	// maxCommonName is X.520's limit (RFC 5280, appendix A.1), which OpenSSL insists on.
	maxCommonName = 64
	stampLayout   = "20060102150405"
)

// NewCertificate makes a publisher's certificate for fqrn, self-signed with key, as PEM.
func NewCertificate(fqrn string, key *rsa.PrivateKey, now time.Time) ([]byte, error) {
	name := fqrn + " CernVM-FS Release Managers"
	if len(name) > maxCommonName {
		name = fqrn
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a certificate for %s: %w", fqrn, err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)), // must not be 0
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now,
		NotAfter:              now.Add(certificateLife),
		SignatureAlgorithm:    x509.SHA256WithRSA,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate for %s: %w", fqrn, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// Holds reports whether key is the one the certificate is of.
func (c *Certificate) Holds(key *rsa.PrivateKey) bool { return key.PublicKey.Equal(c.key) }

// SignManifest makes the letter to publish of a manifest's text, with a's digest of it and the signature of a
// publisher's key.
func SignManifest(text []byte, a hash.Algorithm, key *rsa.PrivateKey) ([]byte, error) {
	letter, err := seal(text, a, func(hashText []byte) ([]byte, error) {
		sum := sha1.Sum(hashText)
		return rsa.SignPKCS1v15(nil, key, crypto.SHA1, sum[:])
	})
	if err == nil && len(letter) > manifest.MaxSize {
		err = fmt.Errorf("%w: %d bytes, more than %d", ErrInvalid, len(letter), manifest.MaxSize)
	}
	if err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	return letter, nil
}

// WhitelistText is what a whitelist says.
type WhitelistText struct {
	FQRN    string
	Created time.Time
	// Expires is written to the second, but readers look at the hour alone: the list is over at its start.
	Expires time.Time
	// Certificates may publish, and those with one of the Fingerprints.
	Certificates []*Certificate
	Fingerprints []hash.Digest
}

// SignWhitelist makes the letter of a whitelist, with a's digest of the text and of the certificates.
func SignWhitelist(w *WhitelistText, a hash.Algorithm, master *rsa.PrivateKey) ([]byte, error) {
	text, err := w.text(a)
	if err != nil {
		return nil, fmt.Errorf("sign whitelist of %s: %w", w.FQRN, err)
	}
	letter, err := seal(text, a, func(hashText []byte) ([]byte, error) {
		return rsa.SignPKCS1v15(nil, master, crypto.Hash(0), hashText)
	})
	if err != nil {
		return nil, fmt.Errorf("sign whitelist of %s: %w", w.FQRN, err)
	}
	return letter, nil
}

func (w *WhitelistText) text(a hash.Algorithm) ([]byte, error) {
	switch {
	case w.FQRN == "" || strings.ContainsAny(w.FQRN, "\n\x00"):
		return nil, fmt.Errorf("%w: %.80q is not a repository's name", ErrInvalid, w.FQRN)
	case w.Created.UTC().Year() > 9999 || w.Expires.UTC().Year() > 9999 || w.Created.IsZero():
		return nil, fmt.Errorf("%w: from %v to %v is not a time to write", ErrInvalid, w.Created, w.Expires)
	case !w.Created.UTC().Truncate(time.Hour).Before(w.Expires.UTC().Truncate(time.Hour)):
		return nil, fmt.Errorf("%w: it would expire at %v, when it is made", ErrInvalid, w.Expires)
	}
	if !a.Valid() {
		return nil, fmt.Errorf("%w: no digest %v", ErrInvalid, a)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", w.Created.UTC().Format(stampLayout))
	fmt.Fprintf(&b, "E%s\n", w.Expires.UTC().Format(stampLayout))
	fmt.Fprintf(&b, "N%s\n", w.FQRN)
	for _, d := range w.listed(a) {
		fmt.Fprintf(&b, "%s\n", FormatFingerprint(d))
	}
	return []byte(b.String()), nil
}

// listed are the fingerprints to write, each once.
func (w *WhitelistText) listed(a hash.Algorithm) []hash.Digest {
	var all []hash.Digest
	seen := make(map[hash.Digest]bool)
	add := func(d hash.Digest) {
		if !seen[d] {
			seen[d] = true
			all = append(all, d)
		}
	}
	for _, c := range w.Certificates {
		add(c.Fingerprint(a))
	}
	for _, d := range w.Fingerprints {
		add(d)
	}
	return all
}

// seal makes a letter of a text and takes it apart again as a reader would.
func seal(text []byte, a hash.Algorithm, sign func(hashText []byte) ([]byte, error)) ([]byte, error) {
	if err := permitted(); err != nil {
		return nil, err
	}
	if !a.Valid() {
		return nil, fmt.Errorf("%w: no digest %v", ErrInvalid, a)
	}
	hashText := []byte(a.Digest(text).String())
	signature, err := sign(hashText)
	if err != nil {
		return nil, err
	}
	sealed := fmt.Appendf(nil, "%s--\n%s\n%s", text, hashText, signature)
	back, err := parseLetter(sealed)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(back.text, text) {
		return nil, fmt.Errorf(`%w: a line "--" within the text`, ErrInvalid)
	}
	return sealed, nil
}
