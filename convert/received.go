package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/thin"
)

// receivedFolder holds the metadata of received layers, in folders called by their digests. No registry is called so.
const receivedFolder = metadataFolder + "/received"

// Received is a layer that a node sent: no image that was converted names it. What is published of it keeps it until
// Collect is told to let it go.
type Received struct {
	Digest string    `json:"-"` // of the archive's gzip file, hex
	DiffID string    `json:"diff_id"`
	Size   int64     `json:"size"` // bytes of the gzip file
	Node   string    `json:"node,omitempty"`
	Image  string    `json:"-"` // origin of the image that it was made on, as the node says
	Time   time.Time `json:"time"`
}

func receivedOf(hex string) string { return receivedFolder + "/" + hex }

// AddReceived puts a received layer into a transaction, with its info and what keeps it. archive is its uncompressed
// archive, of size bytes, which the caller has found to be the one that r names. Of a layer that is there already, from
// whomever, the archive isn't read, and added is false; what keeps it is written all the same.
func AddReceived(ctx context.Context, tx sink.Transaction, l Layout, r Received, archive io.Reader, size int64) (
	added bool, err error,
) {
	at := l.Path(r.Digest)
	found, err := tx.Has(ctx, at)
	if err != nil {
		return false, err
	}
	if !found {
		if err := addReceivedLayer(ctx, tx, l, r, archive, size); err != nil {
			return false, fmt.Errorf("layer %s: %w", r.Digest, err)
		}
	}
	return !found, keepReceived(ctx, tx, l, r)
}

func addReceivedLayer(ctx context.Context, tx sink.Transaction, l Layout, r Received, archive io.Reader,
	size int64,
) error {
	for _, marker := range l.markers(r.Digest) {
		if err := tx.WriteFile(ctx, marker, nil); err != nil {
			return err
		}
	}
	at := l.Path(r.Digest)
	_, err := tx.Layer(ctx, at, archive, func(s sink.Stats) (*sink.File, error) {
		return fileOf(at, &thin.LayerInfo{
			Digest: r.Digest, DiffID: r.DiffID, Size: r.Size, DiffSize: size, Entries: s.Entries,
			Compression: thin.Gzip,
		})
	})
	return err
}

// keepReceived writes what keeps a layer, once: who sends it again isn't who it came from. It has the form of an
// image's state and manifest, so that collectors of other versions, and DUCC's, keep the layer, too.
func keepReceived(ctx context.Context, tx sink.Transaction, l Layout, r Received) error {
	folder := receivedOf(r.Digest)
	if s, err := readState(ctx, tx, folder); err == nil && s != nil && s.Received != nil {
		return nil
	} else if err != nil && !errors.Is(err, errState) {
		return err
	}
	s, err := json.MarshalIndent(state{Image: r.Image, Layers: []string{l.Path(r.Digest)}, Received: &r}, "", "  ")
	if err != nil {
		return err
	}
	const mediaType = "application/vnd.docker.distribution.manifest.v2+json"
	const layerType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	m, err := json.Marshal(publishedManifest{
		SchemaVersion: 2, MediaType: mediaType,
		Layers: []publishedEntry{{MediaType: layerType, Size: r.Size, Digest: "sha256:" + r.Digest}},
	})
	if err != nil {
		return err
	}
	if err := tx.WriteFile(ctx, folder+"/"+manifestName, m); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	if err := tx.WriteFile(ctx, folder+"/"+stateName, append(s, '\n')); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	return nil
}

// dropped reports whether a received layer is let go: by its digest, or by its age.
func (o *CollectOptions) dropped(r *Received, digest string) bool {
	for _, d := range o.Dropped {
		if strings.TrimPrefix(d, "sha256:") == digest {
			return true
		}
	}
	return o.ReceivedAge > 0 && o.Now.Sub(r.Time) >= o.ReceivedAge
}

// checkDropped refuses the digest of a layer that nobody sent: it may be a slip, and what else would be collected isn't
// what was meant.
func (g *collection) checkDropped(ctx context.Context) error {
	for _, d := range g.o.Dropped {
		hex := strings.TrimPrefix(d, "sha256:")
		if !layerName.MatchString(hex) {
			return fmt.Errorf("layer %.100q: want a digest, 64 lower-case hex digits", d)
		}
		_, err := g.tx.ReadFile(ctx, receivedOf(hex)+"/"+stateName)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("layer %s: no node sent it, or it was dropped before", hex)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Layers lists the paths of a layout's layers in a repository. Folders that are called otherwise are none of ours.
func (l Layout) Layers(ctx context.Context, tx sink.Transaction) ([]string, error) {
	folders := []string{l.Folder()}
	if l.DUCC {
		prefixes, err := tx.List(ctx, duccLayers)
		if err != nil {
			return nil, err
		}
		folders = nil
		for _, p := range prefixes {
			if p.Folder && len(p.Name) == 2 {
				folders = append(folders, duccLayers+"/"+p.Name)
			}
		}
	}
	var layers []string
	for _, folder := range folders {
		entries, err := tx.List(ctx, folder)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Folder && layerName.MatchString(e.Name) {
				layers = append(layers, l.Path(e.Name))
			}
		}
	}
	return layers, nil
}

// KeptLayers lists those of Layers that no collection has found unused: the others are removed after the time of grace,
// unless something comes to name them.
func (l Layout) KeptLayers(ctx context.Context, tx sink.Transaction) ([]string, error) {
	layers, err := l.Layers(ctx, tx)
	if err != nil {
		return nil, err
	}
	unused, err := unusedSince(ctx, tx)
	if err != nil {
		return nil, err
	}
	var kept []string
	for _, layer := range layers {
		if _, goes := unused[layer]; goes { // unless it was received since: the next collection finds that
			again, err := tx.Has(ctx, receivedOf(l.Digest(layer)))
			if err != nil {
				return nil, err
			}
			if !again {
				continue
			}
		}
		kept = append(kept, layer)
	}
	return kept, nil
}

// Digest is the digest of the layer at a path of the layout; the inverse of Path.
func (l Layout) Digest(layer string) string { return path.Base(l.whole(layer)) }
