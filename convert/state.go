package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/source"
)

// state is what is published of a converted image.
type state struct {
	Image    string   `json:"image"`             // as it was named
	Manifest string   `json:"manifest"`          // digest of the original's manifest
	Config   string   `json:"config"`            // digest of its configuration
	Layers   []string `json:"layers"`            // their paths in this repository, bottom to top
	Output   string   `json:"output,omitempty"`  // where the thin image was put
	Thin     string   `json:"thin"`              // digest of its manifest
	Wish     bool     `json:"wish,omitempty"`    // a wish list named it: it goes when none does any more
	Profile  string   `json:"profile,omitempty"` // SHA-256 of the start profile, hex; "": it has none
	Given    string   `json:"given,omitempty"`   // SHA-256 of the one that was given, before files were cut for it

	Received *Received `json:"received,omitempty"` // a node sent it: the state is that of a layer, not of an image
}

// errState is a state that can't be understood.
var errState = errors.New("can't be understood: convert the image again, or remove the file")

// readState returns an image's state; nil if there is none. The error of one that can't be understood is errState.
func readState(ctx context.Context, tx sink.Transaction, folder string) (*state, error) {
	b, err := tx.ReadFile(ctx, folder+"/"+stateName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s/%s: %w: %w", folder, stateName, err, errState)
	}
	return &s, nil
}

// same reports whether a conversion would come to what is there.
func (s *state) same(t *state) bool {
	return s != nil && s.Manifest == t.Manifest && s.Thin == t.Thin && s.Output == t.Output && s.Wish == t.Wish &&
		slices.Equal(s.Layers, t.Layers)
}

// publishedManifest is an image's manifest as DUCC writes and reads it: with the names of its own fields.
type publishedManifest struct {
	SchemaVersion int
	MediaType     string
	Config        publishedEntry
	Layers        []publishedEntry
}

type publishedEntry struct {
	MediaType string
	Size      int64
	Digest    string
}

func manifestFile(image *source.Image) ([]byte, error) {
	c := image.Manifest.Config
	m := publishedManifest{
		SchemaVersion: 2, MediaType: string(image.MediaType), Layers: []publishedEntry{},
		Config: publishedEntry{string(c.MediaType), c.Size, c.Digest.String()},
	}
	for _, l := range image.Layers {
		m.Layers = append(m.Layers, publishedEntry{string(l.MediaType), l.Size, l.Digest.String()})
	}
	return json.Marshal(m)
}

// writeState puts an image's state and manifest into a transaction.
func writeState(ctx context.Context, tx sink.Transaction, image *source.Image, s *state) error {
	folder := metadataOf(image)
	manifest, err := manifestFile(image)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{{manifestName, manifest}, {stateName, append(b, '\n')}} {
		if err := tx.WriteFile(ctx, folder+"/"+f.name, f.content); err != nil {
			return fmt.Errorf("metadata: %w", err)
		}
	}
	return nil
}
