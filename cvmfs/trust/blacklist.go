package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"cvmfs-graphdriver/cvmfs/hash"
)

// maxBlacklist is the most bytes of a blacklist file.
const maxBlacklist = 1 << 20

// Blacklist takes trust away: from certificates by their fingerprints, and from revisions below a number. A nil one is
// empty.
type Blacklist struct {
	fingerprints []hash.Digest
	revisions    map[string]uint64
	ignored      []string
}

// LoadBlacklist joins files; one that doesn't exist is empty.
//
// A line "<fqrn N" means that revisions of that repository smaller than N are bad, N itself being good; any other line
// is a fingerprint as in a whitelist. Empty lines and those that begin with "#" are comments; what else can't be read
// has no effect, as in the reference client, and is kept for Ignored.
func LoadBlacklist(paths ...string) (*Blacklist, error) {
	b := &Blacklist{revisions: make(map[string]uint64)}
	for _, path := range paths {
		text, err := readFile(path, maxBlacklist)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("blacklist: %w", err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if !b.add(line) {
				b.ignored = append(b.ignored, fmt.Sprintf("%s:%d: %.80q", path, i+1, line))
			}
		}
	}
	return b, nil
}

// add takes in a line, if it means something.
func (b *Blacklist) add(line string) bool {
	if rule, ok := strings.CutPrefix(line, "<"); ok {
		end := strings.IndexAny(rule, " \t")
		if end <= 0 {
			return false
		}
		fqrn := rule[:end]
		least, err := strconv.ParseUint(strings.TrimLeft(rule[end:], " \t"), 10, 64)
		if err != nil {
			return false
		}
		b.revisions[fqrn] = max(b.revisions[fqrn], least)
		return true
	}
	if d, ok := parseFingerprint(line); ok {
		b.fingerprints = append(b.fingerprints, d)
		return true
	}
	return line == "" || strings.HasPrefix(line, "#")
}

// Certificate reports whether c must not be trusted.
func (b *Blacklist) Certificate(c *Certificate) bool { return b.Fingerprints(c.String()) }

// Fingerprints reports whether one of the fingerprints in s, separated by blanks, must not be trusted. With what
// Certificate.String gave, a record of a certificate can be judged long after the certificate itself is gone.
func (b *Blacklist) Fingerprints(s string) bool {
	if b == nil {
		return false
	}
	for field := range strings.FieldsSeq(s) {
		if d, ok := parseFingerprint(field); ok && slices.Contains(b.fingerprints, d) {
			return true
		}
	}
	return false
}

// MinRevision is the oldest revision of fqrn that may be used; 0 where all may.
func (b *Blacklist) MinRevision(fqrn string) uint64 {
	if b == nil {
		return 0
	}
	return b.revisions[fqrn]
}

// Ignored are the lines without effect, as "file:line: text", for a warning.
func (b *Blacklist) Ignored() []string {
	if b == nil {
		return nil
	}
	return b.ignored
}
