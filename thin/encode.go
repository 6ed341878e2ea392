package thin

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Version is what descriptors of this form say. All readers of 1.x take it: what is new since 1.0 are fields that they
// don't know.
const Version = "1.1"

// Encode returns the descriptor's file: the same descriptor gives the same bytes, and Parse takes them. An empty
// Version is written as Version.
func (d *Descriptor) Encode() ([]byte, error) {
	b, err := d.encode()
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", FileName, err)
	}
	return b, nil
}

func (d *Descriptor) encode() ([]byte, error) {
	file := struct {
		Version    string       `json:"version"`
		MinVersion string       `json:"min_version,omitempty"`
		Origin     string       `json:"origin,omitempty"`
		Layers     []layerJSON  `json:"layers"`
		Profile    *profileJSON `json:"profile,omitempty"`
		Comment    string       `json:"comment,omitempty"`
	}{Version: d.Version, MinVersion: d.MinVersion, Origin: d.Origin, Comment: d.Comment, Layers: []layerJSON{}}
	if file.Version == "" {
		file.Version = Version
	}
	for _, l := range d.Layers {
		file.Layers = append(file.Layers, layerJSON{l.Digest, l.URL(), l.DiffID, l.Size})
	}
	if p := d.Profile; p != nil {
		file.Profile = &profileJSON{URL: scheme + p.FQRN + p.Path, Digest: p.Digest}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(file); err != nil {
		return nil, err
	}
	// What a reader would refuse is not written.
	if _, err := Parse(b.Bytes()); err != nil {
		if errors.Is(err, ErrNotThin) {
			return nil, errors.New("its text is no JSON a reader takes")
		}
		return nil, err
	}
	return b.Bytes(), nil
}

// Archive returns the archive of the thin layer whose file a descriptor is: thin.json alone, root's, of a fixed time.
// The same descriptor gives the same bytes.
func Archive(descriptor []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: FileName, Size: int64(len(descriptor)), Mode: 0o644, ModTime: time.Unix(0, 0),
		Format: tar.FormatUSTAR,
	})
	if err == nil {
		_, err = w.Write(descriptor)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// URL says where the layer lies: "cvmfs://FQRN/PATH".
func (l Layer) URL() string { return scheme + l.FQRN + l.Path }
