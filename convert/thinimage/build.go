package thinimage

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/thin"
)

// The annotations and labels that name the original.
const (
	baseName   = "org.opencontainers.image.base.name"
	baseDigest = "org.opencontainers.image.base.digest"
)

// Image is a thin image. It is a [v1.Image] once it has passed through [partial.CompressedToImage].
type Image struct {
	Digest     v1.Hash // of the manifest
	Descriptor []byte  // thin.json

	media       types.MediaType
	manifest    []byte
	bare        *Image // the same without a subject; nil: it has none
	config      []byte
	archive     []byte // the layer, uncompressed
	blob        []byte // the layer's blob
	blobDigest  v1.Hash
	diffID      v1.Hash
	layerMedia  types.MediaType
	configMedia types.MediaType
}

// Build makes the thin image of an image with the layers a descriptor names, as it is to be written to a place; nil:
// nowhere.
func Build(image *source.Image, d *thin.Descriptor, to *source.Reference) (*Image, error) {
	t, err := build(image, d, to)
	if err != nil {
		return nil, fmt.Errorf("make the thin image of %s: %w", image.Reference, err)
	}
	return t, nil
}

func build(image *source.Image, d *thin.Descriptor, to *source.Reference) (*Image, error) {
	t := &Image{media: types.DockerManifestSchema2, layerMedia: types.DockerLayer, configMedia: types.DockerConfigJSON}
	if image.MediaType == types.OCIManifestSchema1 {
		t.media, t.layerMedia, t.configMedia = types.OCIManifestSchema1, types.OCILayer, types.OCIConfigJSON
	}
	var err error
	if t.Descriptor, err = d.Encode(); err != nil {
		return nil, err
	}
	if t.archive, err = thin.Archive(t.Descriptor); err != nil {
		return nil, err
	}
	if t.blob, err = storedGzip(t.archive); err != nil {
		return nil, err
	}
	t.diffID, t.blobDigest = sum(t.archive), sum(t.blob)
	if t.config, err = configOf(image, t.diffID); err != nil {
		return nil, err
	}
	m := t.manifestOf(image)
	if err := t.setManifest(m); err != nil {
		return nil, err
	}
	if m.Subject = t.subjectOf(image, to); m.Subject == nil {
		return t, nil
	}
	bare := *t
	t.bare = &bare
	return t, t.setManifest(m)
}

func (t *Image) setManifest(m v1.Manifest) (err error) {
	if t.manifest, err = json.Marshal(m); err != nil {
		return err
	}
	t.Digest = sum(t.manifest)
	return nil
}

func sum(b []byte) v1.Hash {
	h, _, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		panic(err) // memory can be read
	}
	return h
}

// storedGzip wraps bytes in a gzip file without compressing them.
func storedGzip(plain []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.NoCompression)
	if err != nil {
		return nil, err
	}
	_, err = z.Write(plain)
	if err = errors.Join(err, z.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// configOf is the original's configuration with labels, one layer and the history that fits it.
func configOf(image *source.Image, diffID v1.Hash) ([]byte, error) {
	labelled, err := withLabels(image)
	if err != nil {
		return nil, err
	}
	return thin.ReplaceLayers(labelled, 0, diffID.String(),
		thin.Step{By: "docker2cvmfs", Comment: "thin image of " + image.Reference.String()})
}

func (t *Image) manifestOf(image *source.Image) v1.Manifest {
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: t.media,
		Config: v1.Descriptor{MediaType: t.configMedia, Size: int64(len(t.config)), Digest: sum(t.config)},
		Layers: []v1.Descriptor{{MediaType: t.layerMedia, Size: int64(len(t.blob)), Digest: t.blobDigest}},
	}
	if t.media == types.OCIManifestSchema1 {
		m.Annotations = map[string]string{}
		maps.Copy(m.Annotations, image.Manifest.Annotations)
		m.Annotations[baseDigest] = image.Digest.String()
		if parsed, err := image.Reference.Parsed(); err == nil {
			m.Annotations[baseName] = parsed.Name()
		}
	}
	return m
}

// subjectOf refers to the original where it is in the registry that the thin image goes to. Docker's manifests have no
// subject. A registry that can't list what refers to an image has the list as an image with a certain tag (OCI
// distribution specification 1.1, Referrers Tag Schema): where the thin image has that tag, there is no room for both.
func (t *Image) subjectOf(image *source.Image, to *source.Reference) *v1.Descriptor {
	if to == nil || t.media != types.OCIManifestSchema1 {
		return nil
	}
	there, err := to.Parsed()
	if err != nil {
		return nil // it goes to no registry
	}
	original, err := image.Reference.Parsed()
	if err != nil || original.Context().RegistryStr() != there.Context().RegistryStr() ||
		there.Identifier() == image.Digest.Algorithm+"-"+image.Digest.Hex {
		return nil
	}
	return &v1.Descriptor{MediaType: image.MediaType, Size: int64(len(image.Raw)), Digest: image.Digest}
}

// The methods of [partial.CompressedImageCore].

// RawConfigFile returns the configuration's bytes.
func (t *Image) RawConfigFile() ([]byte, error) { return t.config, nil }

// MediaType is the manifest's.
func (t *Image) MediaType() (types.MediaType, error) { return t.media, nil }

// RawManifest returns the manifest's bytes.
func (t *Image) RawManifest() ([]byte, error) { return t.manifest, nil }

// LayerByDigest returns the one layer.
func (t *Image) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if h != t.blobDigest {
		return nil, fmt.Errorf("a thin image has no layer %s", h)
	}
	return layer{t}, nil
}

// layer is the thin layer as the registry library wants it.
type layer struct{ t *Image }

func (l layer) Digest() (v1.Hash, error)            { return l.t.blobDigest, nil }
func (l layer) DiffID() (v1.Hash, error)            { return l.t.diffID, nil }
func (l layer) Size() (int64, error)                { return int64(len(l.t.blob)), nil }
func (l layer) MediaType() (types.MediaType, error) { return l.t.layerMedia, nil }
func (l layer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.t.blob)), nil
}
