package trust

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"

	"cvmfs-graphdriver/cvmfs/hash"
)

// Certificate is a publisher's. Dates, issuer and uses are not looked at: the whitelist says who may publish.
type Certificate struct {
	der []byte
	key *rsa.PublicKey
}

// ParseCertificate reads the plain bytes of a certificate object: PEM, exactly one.
func ParseCertificate(pem []byte) (*Certificate, error) {
	if len(pem) > maxKeyFile {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrInvalid, len(pem), maxKeyFile)
	}
	der, err := onlyBlock(pem, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	key, err := checkKey(parsed.PublicKey)
	if err != nil {
		return nil, err
	}
	return &Certificate{der: der, key: key}, nil
}

// Fingerprint is the digest of the DER bytes.
func (c *Certificate) Fingerprint(a hash.Algorithm) hash.Digest { return a.Digest(c.der) }

// String is the certificate's fingerprints by all algorithms, separated by blanks, the SHA-1 one first. Kept as a
// record it is what Blacklist.Fingerprints wants to see.
func (c *Certificate) String() string {
	var all []string
	for a := hash.SHA1; a.Valid(); a++ {
		all = append(all, FormatFingerprint(c.Fingerprint(a)))
	}
	return strings.Join(all, " ")
}

// FormatFingerprint writes a fingerprint as whitelists do: "93:AB:…:15", "E7:50:…:CE-SHAKE128".
func FormatFingerprint(d hash.Digest) string {
	var b strings.Builder
	for i, octet := range d.Sum {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(hex.EncodeToString([]byte{octet}))
	}
	_, id, found := strings.Cut(d.String(), "-")
	if found {
		b.WriteString("-" + id)
	}
	return strings.ToUpper(b.String())
}

// parseFingerprint reads a line of a whitelist or blacklist: a fingerprint, perhaps a comment after a blank, tab or
// "#".
func parseFingerprint(line string) (hash.Digest, bool) {
	if i := strings.IndexAny(line, " \t#"); i >= 0 {
		line = line[:i]
	}
	d, err := hash.Parse(strings.ToLower(strings.ReplaceAll(line, ":", "")))
	return d, err == nil
}

// verifyManifest reports whether c's key signed the letter. The digest in the signature is SHA-1 of the printed digest,
// whatever algorithm the repository and that digest use.
func verifyManifest(l *letter, c *Certificate) error {
	sum := sha1.Sum(l.hashText)
	if err := rsa.VerifyPKCS1v15(c.key, crypto.SHA1, sum[:], l.signature); err != nil {
		return fmt.Errorf("manifest: %w the certificate %s: %w", ErrSignature,
			FormatFingerprint(c.Fingerprint(hash.SHA1)), err)
	}
	return nil
}
