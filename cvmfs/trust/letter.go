package trust

import (
	"bytes"
	"fmt"

	"cvmfs-graphdriver/cvmfs/hash"
)

// WhitelistFile is the whitelist's name in the repository's root folder.
const WhitelistFile = ".cvmfswhitelist"

// MaxLetter is the most bytes of a letter. Manifests are limited further, to manifest.MaxSize; a whitelist of this size
// has about a thousand certificates.
const MaxLetter = 64 << 10

// letter is a signed text that was taken apart. The text has the digest it says it has; whether the signature is good
// is not known yet.
type letter struct {
	text      []byte // the lines, up to and with the newline before "--"
	hashText  []byte // the text's digest as it is printed: this is what is signed
	signature []byte
}

// parseLetter takes a letter apart and compares its text with the digest below it, taken by the algorithm printed
// there. The slices of the result are b's.
func parseLetter(b []byte) (*letter, error) {
	if err := permitted(); err != nil {
		return nil, fmt.Errorf("letter: %w", err)
	}
	if len(b) > MaxLetter {
		return nil, fmt.Errorf("letter: %w: %d bytes, more than %d", ErrInvalid, len(b), MaxLetter)
	}
	// The first such line ends the text: the signature may contain another one.
	end := bytes.Index(b, []byte("\n--\n"))
	if end < 0 {
		return nil, fmt.Errorf(`letter: %w: no line "--"`, ErrInvalid)
	}
	text, rest := b[:end+1], b[end+len("\n--\n"):]
	hashText, signature, ok := bytes.Cut(rest, []byte("\n"))
	if !ok {
		return nil, fmt.Errorf("letter: %w: ends within the line of the digest", ErrInvalid)
	}
	digest, err := hash.Parse(string(hashText))
	if err != nil {
		return nil, fmt.Errorf("letter: %w: %w", ErrInvalid, err)
	}
	if got := digest.Algorithm.Digest(text); got != digest {
		return nil, fmt.Errorf("letter: %w: the text was changed: its digest is %v, not %v", ErrSignature, got, digest)
	}
	return &letter{text: text, hashText: hashText, signature: signature}, nil
}
