// Package thin reads and writes the descriptor of a thin image: the one contract between whoever converts images and
// the driver.
//
// A thin image is a container image whose only layer holds one file, thin.json. The file, the descriptor, lists the
// image's real layers, bottom to top, and where each lies unpacked in a CernVM-FS repository. Zero layers is an empty
// root.
//
// A descriptor comes with the image from a registry: it is hostile input. What Parse returns names a well-formed
// repository and a path without "..", empty or overlong components; whether the host trusts that repository is decided
// elsewhere.
package thin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cvmfs-graphdriver/cvmfs/fqrn"
)

const (
	// FileName is the name of the descriptor at the root of its layer.
	FileName = "thin.json"
	// MaxSize bounds a descriptor in bytes; one layer takes about 200.
	MaxSize = 1 << 20
	// MaxLayers bounds how many layers a descriptor may list.
	MaxLayers = 4096

	major  = 1 // the descriptor version this package understands
	scheme = "cvmfs://"

	sha256Prefix = "sha256:" // of digests where the algorithm is named
	maxPath      = 4096
	maxName      = 255
)

// ErrNotThin means that the bytes are no descriptor at all: the layer that holds them is an ordinary one.
var ErrNotThin = errors.New("not a thin image descriptor")

// Descriptor is what thin.json says.
type Descriptor struct {
	Version    string
	MinVersion string   // oldest version of this format a reader must understand; "" for any
	Origin     string   // the image it was made from, for people
	Comment    string   // for people
	Layers     []Layer  // bottom to top
	Profile    *Profile // start profile of the image; nil: none
}

// Layer is one layer of the image and where it lies.
type Layer struct {
	Digest string // SHA-256 of the layer's blob in the origin image, hex
	FQRN   string // repository
	Path   string // folder in the repository: "/layers/…", no trailing slash
	DiffID string // SHA-256 of the uncompressed archive, as the origin's configuration claims, hex; "": unknown
	Size   int64  // bytes of the blob, as the origin's manifest claims; 0: unknown
}

var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Parse reads a descriptor. Bytes that are no JSON object with "version" and "layers" give ErrNotThin; a descriptor
// that can't be used gives an error that names what is wrong with it.
func Parse(b []byte) (*Descriptor, error) {
	var raw struct {
		Version    *string      `json:"version"`
		MinVersion string       `json:"min_version"`
		Origin     string       `json:"origin"`
		Comment    string       `json:"comment"`
		Layers     *[]layerJSON `json:"layers"`
		Profile    *profileJSON `json:"profile"`
	}
	var typeErr *json.UnmarshalTypeError
	err := json.Unmarshal(b, &raw)
	switch {
	case errors.As(err, &typeErr) && bytes.HasPrefix(bytes.TrimSpace(b),
		[]byte("{")) && raw.Version != nil && raw.Layers != nil:
		return nil, fmt.Errorf("%s: field %s can't be a JSON %s", FileName, typeErr.Field, typeErr.Value)
	case err != nil, raw.Version == nil, raw.Layers == nil:
		return nil, ErrNotThin
	case len(b) > MaxSize:
		return nil, fmt.Errorf("%s: %d bytes, the limit is %d", FileName, len(b), MaxSize)
	case len(*raw.Layers) > MaxLayers:
		return nil, fmt.Errorf("%s: %d layers, the limit is %d", FileName, len(*raw.Layers), MaxLayers)
	}
	if err := checkVersion(raw.MinVersion); err != nil {
		return nil, err
	}
	d := &Descriptor{Version: *raw.Version, MinVersion: raw.MinVersion, Origin: raw.Origin, Comment: raw.Comment}
	for i, l := range *raw.Layers {
		layer, err := l.layer()
		if err != nil {
			return nil, fmt.Errorf("%s: layer %d: %w", FileName, i, err)
		}
		d.Layers = append(d.Layers, layer)
	}
	if raw.Profile != nil {
		if d.Profile, err = raw.Profile.beside(d.Layers); err != nil {
			return nil, fmt.Errorf("%s: profile: %w", FileName, err)
		}
	}
	return d, nil
}

// layerJSON is a layer's form in the descriptor.
type layerJSON struct {
	Digest string `json:"digest"`
	URL    string `json:"url"`
	DiffID string `json:"diff_id,omitempty"`
	Size   int64  `json:"size,omitempty"`
}

// checkVersion refuses a descriptor that asks for a newer reader.
func checkVersion(least string) error {
	if least == "" {
		return nil
	}
	digits, _, _ := strings.Cut(least, ".")
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return fmt.Errorf("%s: min_version %.20q is no version", FileName, least)
	}
	if n > major {
		return fmt.Errorf("%s: min_version %s is newer than %d.x, which this driver reads: upgrade the driver",
			FileName, least, major)
	}
	return nil
}

func (j *layerJSON) layer() (Layer, error) {
	l := Layer{Size: j.Size}
	var err error
	if l.Digest, err = parseDigest("digest", j.Digest); err != nil {
		return Layer{}, err
	}
	if l.FQRN, l.Path, err = parseURL(j.URL); err != nil {
		return Layer{}, err
	}
	if j.DiffID != "" {
		if l.DiffID, err = parseDigest("diff_id", j.DiffID); err != nil {
			return Layer{}, err
		}
	}
	if l.Size < 0 {
		return Layer{}, fmt.Errorf("size %d", l.Size)
	}
	return l, nil
}

// ParseLayer returns the layer of a digest at an address, "cvmfs://FQRN/PATH", by the rules of a descriptor.
func ParseLayer(url, digest string) (Layer, error) {
	j := layerJSON{Digest: digest, URL: url}
	return j.layer()
}

// beside reads the profile of an image: it lies in a repository that has a layer of the image, so that it is trusted
// where the image is.
func (j *profileJSON) beside(layers []Layer) (*Profile, error) {
	if j.Path != "" {
		return nil, fmt.Errorf("path %.100q: want a url", j.Path)
	}
	p := &Profile{}
	var err error
	if p.Digest, err = parseDigest("digest", j.Digest); err != nil {
		return nil, err
	}
	if p.FQRN, p.Path, err = parseURL(j.URL); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(layers, func(l Layer) bool { return l.FQRN == p.FQRN }) {
		return nil, fmt.Errorf("url %.100q: no layer of the image is in this repository", j.URL)
	}
	return p, nil
}

// parseURL reads "cvmfs://FQRN/PATH". The path begins with a slash.
func parseURL(url string) (repository, path string, err error) {
	rest, ok := strings.CutPrefix(url, scheme)
	if !ok {
		return "", "", fmt.Errorf("url %.100q: want %s<repository>/<path>", url, scheme)
	}
	repository, path, _ = strings.Cut(rest, "/")
	if err := fqrn.Check(repository); err != nil {
		return "", "", fmt.Errorf("url %.100q: %w", url, err)
	}
	if err := checkPath(path); err != nil {
		return "", "", fmt.Errorf("url %.100q: %w", url, err)
	}
	return repository, "/" + path, nil
}

// checkPath takes a path without its leading slash.
func checkPath(path string) error {
	switch {
	case len(path) > maxPath:
		return fmt.Errorf("path has %d bytes, the limit is %d", len(path), maxPath)
	case strings.IndexByte(path, 0) >= 0:
		return errors.New("path holds a NUL byte")
	}
	for name := range strings.SplitSeq(path, "/") {
		switch {
		case name == "":
			return errors.New("path has an empty component")
		case name == "." || name == "..":
			return fmt.Errorf("path has the component %q", name)
		case len(name) > maxName:
			return fmt.Errorf("path has a component of %d bytes, the limit is %d", len(name), maxName)
		}
	}
	return nil
}
