// Package manifest reads and writes a repository's manifest: the short text, published as .cvmfspublished, that names
// the newest revision.
//
// The words used here:
//
//   - A manifest is the text part of the signed letter a server publishes: lines of one letter and a value. Whether it
//     may be believed is decided by package trust; Parse alone proves nothing.
//   - The revision is a number that grows by one or more with every publication.
//   - The root catalog is the SQLite file that describes the repository's root folder, an object named by its digest.
//   - The fqrn is the repository's fully qualified name, such as "unpacked.example.org".
//
// The format is that of the CernVM-FS server, manifest.cc.
package manifest

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
)

// MaxSize is the most bytes a published manifest may have, signature included (the reference client's own limit).
const MaxSize = 4096

// rootPathHash is the only value of R: the MD5 of the root's path, which is empty.
const rootPathHash = "d41d8cd98f00b204e9800998ecf8427e"

// latest is the last second whose year has four digits: times beyond it can't be written in most formats.
const latest = 253402300799

// required are the letters a client can't do without. The reference's parser asks for C, R, D and S only, but its
// client goes on to need the name, the certificate and the time.
const required = "CRDSNXT"

// FileName is the manifest's name in the repository's root folder.
const FileName = ".cvmfspublished"

// Manifest is what a publisher says of the newest revision.
type Manifest struct {
	Root     hash.Digest // C: the root catalog; its algorithm is the repository's
	RootSize int64       // B: plain bytes of the root catalog; 0 where the publisher doesn't say
	Revision uint64      // S
	// D: how long a client may go without looking again; the root catalog's own value rules
	TTL                time.Duration
	FQRN               string      // N
	Certificate        hash.Digest // X: what the manifest is signed with
	History            hash.Digest // H: the database of tags; zero where there is none
	Metainfo           hash.Digest // M: JSON about the repository; zero where there is none
	Reflog             hash.Digest // Y: digest of .cvmfsreflog; zero where there is none
	Published          time.Time   // T, UTC
	GarbageCollectable bool        // G
	AltPaths           bool        // A: objects are to be had as .cvmfsalt-… too
}

// Parse reads the text of a manifest that must be the one of fqrn. A letter that comes twice has its last value;
// unknown ones are passed over, as they are how the format grows.
func Parse(fqrn string, text []byte) (*Manifest, error) {
	m, err := parse(fqrn, text)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", fqrn, err)
	}
	return m, nil
}

func parse(fqrn string, text []byte) (*Manifest, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%d bytes, more than %d", len(text), MaxSize)
	}
	values := make(map[byte]string)
	for line := range strings.Lines(string(text)) {
		line, ended := strings.CutSuffix(line, "\n")
		if !ended {
			return nil, fmt.Errorf("cut off in the line %.60q", line)
		}
		if line != "" {
			values[line[0]] = line[1:]
		}
	}
	for _, letter := range []byte(required) {
		if _, ok := values[letter]; !ok {
			return nil, fmt.Errorf("no line %c", letter)
		}
	}
	if n := values['N']; n != fqrn {
		return nil, fmt.Errorf("line N names another repository, %.80q", n)
	}
	if r := values['R']; r != rootPathHash {
		return nil, fmt.Errorf("line R, the hash of the root path, is %.60q, not %s", r, rootPathHash)
	}
	v := reader{values: values}
	m := &Manifest{
		Root:               v.digest('C'),
		RootSize:           int64(v.number('B', math.MaxInt64)),
		Revision:           v.number('S', math.MaxUint64),
		TTL:                time.Duration(v.number('D', math.MaxInt64/uint64(time.Second))) * time.Second,
		FQRN:               fqrn,
		Certificate:        v.digest('X'),
		History:            v.digest('H'),
		Metainfo:           v.digest('M'),
		Reflog:             v.digest('Y'),
		Published:          time.Unix(int64(v.number('T', latest)), 0).UTC(),
		GarbageCollectable: values['G'] == "yes",
		AltPaths:           values['A'] == "yes",
	}
	for _, named := range []struct {
		letter byte
		digest hash.Digest
	}{{'C', m.Root}, {'X', m.Certificate}} {
		if named.digest.IsZero() {
			v.fail(named.letter, errors.New("no digest"))
		}
	}
	return m, v.err
}

// reader converts values and keeps the first error.
type reader struct {
	values map[byte]string
	err    error
}

func (v *reader) fail(letter byte, err error) {
	if v.err == nil {
		v.err = fmt.Errorf("line %c: %w", letter, err)
	}
}

// number is a decimal number up to most; 0 where the letter is absent.
func (v *reader) number(letter byte, most uint64) uint64 {
	s, ok := v.values[letter]
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > most {
		v.fail(letter, fmt.Errorf("%.60q isn't a number from 0 to %d", s, most))
		return 0
	}
	return n
}

// digest is zero where the letter is absent or its digits are all 0, which is how publishers write "none".
func (v *reader) digest(letter byte) hash.Digest {
	s, ok := v.values[letter]
	if !ok {
		return hash.Digest{}
	}
	d, err := hash.Parse(s)
	if err != nil {
		v.fail(letter, err)
	}
	if d.Sum == [hash.Size]byte{} {
		return hash.Digest{}
	}
	return d
}
