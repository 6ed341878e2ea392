package thin

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

const (
	// InfoSuffix, behind a layer's folder, names the file with its info: "/layers/ab….layer.json".
	InfoSuffix = ".layer.json"
	// MaxInfoSize bounds an info's file in bytes.
	MaxInfoSize = 64 << 10

	duccRoot = "/layerfs" // of a layer in DUCC's layout
	duccInfo = "/.metadata/layers.json"
	maxInfos = 64 // entries of the file
)

// LayerInfo is what a repository says of one of its layers, so that whoever knows the layer of an ordinary image by its
// blob can take the folder in the blob's place. Digests are SHA-256, hex. What isn't known of sizes is 0.
type LayerInfo struct {
	Digest      string // of the blob
	DiffID      string // of the uncompressed archive
	Size        int64  // bytes of the blob
	DiffSize    int64  // bytes of the archive
	Entries     int64  // of the archive
	Compression Compression
	Profile     *Profile // start profile of images whose topmost layer this is, in the same repository; nil: none
}

// Compression is how a blob is compressed, numbered as github.com/containers/storage does, whose additional layer
// stores take an info's entry as it is.
type Compression int

// The compressions of blobs. The zero value is none of them.
const (
	CompressionUnknown Compression = iota
	Uncompressed
	Bzip2
	Gzip
	XZ
	Zstd
)

// Profile is where a start profile lies: what a container of the image reads first.
type Profile struct {
	FQRN   string // repository; "" in an info, whose own it is
	Path   string // file in the repository, "/…"
	Digest string // SHA-256 of the file, hex
}

// Files is the folder of files that have the content of the image's, in chunks that fit what the start reads. A file's
// name is that of the object whose content it has (package objects).
func (p *Profile) Files() string { return p.AllFiles() + "/" + p.Digest }

// AllFiles is the folder that Files is in, whatever profile lies at the path.
func (p *Profile) AllFiles() string { return p.Path + ".files" }

// InfoPath is where the info of the layer in a folder lies: in DUCC's layout where DUCC has it, else beside the folder.
func InfoPath(layer string) string {
	if above, found := strings.CutSuffix(layer, duccRoot); found {
		return above + duccInfo
	}
	return layer + InfoSuffix
}

// InfoOf is the inverse of InfoPath; "" if the path is none of an info.
func InfoOf(path string) string {
	if above, found := strings.CutSuffix(path, duccInfo); found {
		return above + duccRoot
	}
	if layer, found := strings.CutSuffix(path, InfoSuffix); found {
		return layer
	}
	return ""
}

// infoJSON is an entry of the file: those of DUCC's layers.json, of which no field is missing that readers need, and
// more. DUCC calls the layer by the diffID.
type infoJSON struct {
	ID          string       `json:"id,omitempty"`
	Digest      string       `json:"compressed-diff-digest"`
	Size        int64        `json:"compressed-size,omitempty"`
	DiffID      string       `json:"diff-digest"`
	DiffSize    int64        `json:"diff-size,omitempty"`
	Compression *int         `json:"compression,omitempty"`
	Entries     int64        `json:"entries,omitempty"`
	Profile     *profileJSON `json:"profile,omitempty"`
}

type profileJSON struct {
	URL    string `json:"url,omitempty"`
	Path   string `json:"path,omitempty"`
	Digest string `json:"digest"`
}

// Encode returns the info's file: the same info gives the same bytes, and ParseInfo takes them.
func (i *LayerInfo) Encode() ([]byte, error) {
	j := infoJSON{
		ID: i.DiffID, Digest: sha256Prefix + i.Digest, Size: i.Size, DiffID: sha256Prefix + i.DiffID,
		DiffSize: i.DiffSize, Entries: i.Entries,
	}
	if i.Compression != CompressionUnknown {
		number := int(i.Compression - Uncompressed)
		j.Compression = &number
	}
	if p := i.Profile; p != nil {
		j.Profile = &profileJSON{Path: p.Path, Digest: p.Digest}
	}
	b, err := json.Marshal([]infoJSON{j})
	if err == nil {
		b = append(b, '\n')
		_, err = parseInfo(b, i.Digest)
	}
	if err != nil {
		return nil, fmt.Errorf("encode layer info: %w", err)
	}
	return b, nil
}

// ParseInfo reads the file with the info of the layer whose blob has a digest (hex), written by this package or by
// DUCC.
func ParseInfo(b []byte, digest string) (*LayerInfo, error) {
	i, err := parseInfo(b, digest)
	if err != nil {
		return nil, fmt.Errorf("layer info: %w", err)
	}
	return i, nil
}

func parseInfo(b []byte, digest string) (*LayerInfo, error) {
	if len(b) > MaxInfoSize {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(b), MaxInfoSize)
	}
	var entries []infoJSON
	if err := json.Unmarshal(b, &entries); err != nil {
		return nil, err
	}
	if len(entries) > maxInfos {
		return nil, fmt.Errorf("%d entries, the limit is %d", len(entries), maxInfos)
	}
	var found *LayerInfo
	for _, e := range entries {
		i, err := e.info()
		switch {
		case err != nil:
			return nil, err
		case i.Digest != digest: // of another layer: who looked for it looks elsewhere
		case found != nil && found.DiffID != i.DiffID:
			return nil, fmt.Errorf("two diffIDs of one layer, %s and %s", found.DiffID, i.DiffID)
		case found == nil:
			found = i
		}
	}
	if found == nil {
		return nil, fmt.Errorf("it has no entry of the layer %.64q", digest)
	}
	return found, nil
}

func (j *infoJSON) info() (*LayerInfo, error) {
	i := &LayerInfo{Size: j.Size, DiffSize: j.DiffSize, Entries: j.Entries}
	var err error
	if i.Digest, err = parseDigest("compressed-diff-digest", j.Digest); err != nil {
		return nil, err
	}
	if i.DiffID, err = parseDigest("diff-digest", j.DiffID); err != nil {
		return nil, err
	}
	if min(i.Size, i.DiffSize, i.Entries) < 0 {
		return nil, errors.New("a size or count below 0")
	}
	if j.Compression != nil {
		if *j.Compression < 0 || *j.Compression > int(Zstd-Uncompressed) {
			return nil, fmt.Errorf("compression %d is none that is known", *j.Compression)
		}
		i.Compression = Uncompressed + Compression(*j.Compression)
	}
	if j.Profile != nil {
		if i.Profile, err = j.Profile.inRepository(); err != nil {
			return nil, fmt.Errorf("profile: %w", err)
		}
	}
	return i, nil
}

// inRepository reads a profile that lies in the repository that names it.
func (p *profileJSON) inRepository() (*Profile, error) {
	digest, err := parseDigest("digest", p.Digest)
	rest, absolute := strings.CutPrefix(p.Path, "/")
	switch {
	case err != nil:
		return nil, err
	case p.URL != "":
		return nil, fmt.Errorf("url %.100q: want a path in the layer's own repository", p.URL)
	case !absolute:
		return nil, fmt.Errorf("path %.100q doesn't begin with a slash", p.Path)
	}
	return &Profile{Path: p.Path, Digest: digest}, checkPath(rest)
}

// parseDigest reads a SHA-256, with or without the name of the algorithm.
func parseDigest(field, text string) (string, error) {
	digest := strings.TrimPrefix(text, sha256Prefix)
	if !sha256Hex.MatchString(digest) {
		return "", fmt.Errorf("%s %.80q: want 64 lower-case hex digits", field, text)
	}
	return digest, nil
}
