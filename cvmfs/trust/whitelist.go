package trust

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
)

// Whitelist says which certificates may publish. There is no way to a non-empty one but VerifyWhitelist.
type Whitelist struct {
	// Expires is the moment the list stops being valid, UTC. Only the hour counts: a list that says 12:59:59 is over at
	// 12:00.
	Expires time.Time

	name         string
	fingerprints []hash.Digest
}

// Fingerprints are those of the certificates that may publish.
func (w *Whitelist) Fingerprints() []hash.Digest { return slices.Clone(w.fingerprints) }

// VerifyWhitelist reads .cvmfswhitelist and believes it if one of the keys signed it, it is fqrn's and it is still
// valid at now.
func VerifyWhitelist(fqrn string, raw []byte, keys Keys, now time.Time) (*Whitelist, error) {
	w, err := verifyWhitelist(raw, keys)
	if err != nil {
		return nil, fmt.Errorf("whitelist of %s: %w", fqrn, err)
	}
	if w.name != fqrn {
		return nil, fmt.Errorf("whitelist of %s: %w: it is the one of %.80q", fqrn, ErrInvalid, w.name)
	}
	if !now.UTC().Truncate(time.Hour).Before(w.Expires) {
		return nil, fmt.Errorf("whitelist of %s: %w at %s, it is %s: if this host's clock is right, whoever runs the repository must sign the list anew",
			fqrn, ErrExpired, w.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return w, nil
}

func verifyWhitelist(raw []byte, keys Keys) (*Whitelist, error) {
	letter, err := parseLetter(raw)
	if err != nil {
		return nil, err
	}
	// Before the signature, as a list of another kind has none that could be good.
	w, err := parseWhitelist(string(letter.text))
	if err != nil {
		return nil, err
	}
	if !keys.verify(letter.hashText, letter.signature) {
		return nil, fmt.Errorf("%w any of the %d master keys of this host", ErrSignature, len(keys))
	}
	return w, nil
}

// parseWhitelist reads the text. Its first three lines have fixed places and lengths, optional flags follow, then
// fingerprints; a line that is none of these is passed over.
func parseWhitelist(text string) (*Whitelist, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 3 {
		return nil, fmt.Errorf("%w: less than three lines", ErrInvalid)
	}
	created, expiry, name := lines[0], lines[1], lines[2]
	if len(created) != len(stampLayout) {
		return nil, fmt.Errorf("%w: line 1, %.40q, isn't the time of its making", ErrInvalid, created)
	}
	expires, err := time.Parse("E"+stampLayout, expiry)
	if err != nil || len(expiry) != len("E"+stampLayout) {
		return nil, fmt.Errorf("%w: line 2, %.40q, isn't the time of expiry, EYYYYMMDDhhmmss", ErrInvalid, expiry)
	}
	if !strings.HasPrefix(name, "N") {
		return nil, fmt.Errorf("%w: line 3, %.80q, isn't the repository's name", ErrInvalid, name)
	}
	w := &Whitelist{Expires: expires.Truncate(time.Hour), name: name[1:]}
	for _, line := range lines[3:] {
		if line == "Vpkcs7" || line == "Wcachain" {
			return nil, fmt.Errorf("%w: it wants to be verified by %s, which no client can do; it must be signed by a master key alone", ErrInvalid, line)
		}
		if d, ok := parseFingerprint(line); ok {
			w.fingerprints = append(w.fingerprints, d)
		}
	}
	return w, nil
}

// Lists reports whether c may publish, going line by line with the algorithm of the line.
func (w *Whitelist) Lists(c *Certificate) bool {
	for _, d := range w.fingerprints {
		if c.Fingerprint(d.Algorithm) == d {
			return true
		}
	}
	return false
}
