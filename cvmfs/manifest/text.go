package manifest

import (
	"fmt"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
)

// maxText is the most bytes of a text to publish: what remains of MaxSize for the line of the digest and the signature
// of the largest customary key, 4096 bits.
const maxText = MaxSize - 640

// Text writes the manifest as Parse reads it, in the order publishers keep. What a reader would refuse, or read as
// something else, is an error.
func (m *Manifest) Text() ([]byte, error) {
	text, err := m.text()
	if err != nil {
		return nil, fmt.Errorf("write manifest of %s: %w", m.FQRN, err)
	}
	return text, nil
}

func (m *Manifest) text() ([]byte, error) {
	switch {
	case m.FQRN == "" || strings.ContainsAny(m.FQRN, "\n\x00"):
		return nil, fmt.Errorf("%.80q is not a repository's name", m.FQRN)
	case m.RootSize <= 0:
		return nil, fmt.Errorf("the root catalog has %d bytes", m.RootSize)
	case m.TTL < 0 || m.TTL%time.Second != 0:
		return nil, fmt.Errorf("a TTL of %v, where whole seconds are written", m.TTL)
	case m.Published.IsZero():
		return nil, fmt.Errorf("no time of publication")
	}
	var b strings.Builder
	line := func(letter byte, value any) { fmt.Fprintf(&b, "%c%v\n", letter, value) }
	optional := func(letter byte, d hash.Digest) {
		if !d.IsZero() {
			line(letter, d)
		}
	}
	line('C', m.Root)
	line('B', m.RootSize)
	line('R', rootPathHash)
	line('D', int64(m.TTL/time.Second))
	line('S', m.Revision)
	line('G', yesNo(m.GarbageCollectable))
	line('A', yesNo(m.AltPaths))
	line('N', m.FQRN)
	line('X', m.Certificate)
	optional('H', m.History)
	line('T', m.Published.Unix())
	optional('M', m.Metainfo)
	optional('Y', m.Reflog)
	text := []byte(b.String())
	if len(text) > maxText {
		return nil, fmt.Errorf("%d bytes, more than %d", len(text), maxText)
	}
	if _, err := parse(m.FQRN, text); err != nil {
		return nil, err
	}
	return text, nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
