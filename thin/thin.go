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

	major   = 1 // the descriptor version this package understands
	scheme  = "cvmfs://"
	maxPath = 4096
	maxName = 255
)

// ErrNotThin means that the bytes are no descriptor at all: the layer that holds them is an ordinary one.
var ErrNotThin = errors.New("not a thin image descriptor")

// Descriptor is what thin.json says.
type Descriptor struct {
	Version    string
	MinVersion string  // oldest version of this format a reader must understand; "" for any
	Origin     string  // the image it was made from, for people
	Comment    string  // for people
	Layers     []Layer // bottom to top
}

// Layer is one layer of the image and where it lies.
type Layer struct {
	Digest string // SHA-256 of the layer's blob in the origin image, hex
	FQRN   string // repository
	Path   string // folder in the repository: "/layers/…", no trailing slash
}

var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Parse reads a descriptor. Bytes that are no JSON object with "version" and "layers" give ErrNotThin; a descriptor
// that can't be used gives an error that names what is wrong with it.
func Parse(b []byte) (*Descriptor, error) {
	var raw struct {
		Version    *string `json:"version"`
		MinVersion string  `json:"min_version"`
		Origin     string  `json:"origin"`
		Comment    string  `json:"comment"`
		Layers     *[]struct {
			Digest string `json:"digest"`
			URL    string `json:"url"`
		} `json:"layers"`
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
		layer, err := parseLayer(l.Digest, l.URL)
		if err != nil {
			return nil, fmt.Errorf("%s: layer %d: %w", FileName, i, err)
		}
		d.Layers = append(d.Layers, layer)
	}
	return d, nil
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

func parseLayer(digest, url string) (Layer, error) {
	digest = strings.TrimPrefix(digest, "sha256:")
	if !sha256Hex.MatchString(digest) {
		return Layer{}, fmt.Errorf("digest %.80q: want 64 lower-case hex digits", digest)
	}
	rest, ok := strings.CutPrefix(url, scheme)
	if !ok {
		return Layer{}, fmt.Errorf("url %.100q: want %s<repository>/<path>", url, scheme)
	}
	repository, path, _ := strings.Cut(rest, "/")
	if err := fqrn.Check(repository); err != nil {
		return Layer{}, fmt.Errorf("url %.100q: %w", url, err)
	}
	if err := checkPath(path); err != nil {
		return Layer{}, fmt.Errorf("url %.100q: %w", url, err)
	}
	return Layer{Digest: digest, FQRN: repository, Path: "/" + path}, nil
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
