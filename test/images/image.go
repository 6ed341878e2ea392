// Package images makes images for the tests, the demonstration and the benchmarks: of Debian packages, so that they are
// like those people use, and of everything that layers can hold and programs get wrong. Nothing comes from a registry.
//
// An image is a folder that is an OCI layout and, packed into an archive, also what `docker load` takes. Its layers are
// compressed with gzip. The same input gives the same bytes.
package images

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
)

// Image is an image in a folder.
type Image struct {
	Dir    string
	Name   string // with its tag
	Layers []Blob // bottom to top
}

// Blob is a layer as it is stored, in an image's folder.
type Blob struct {
	Digest string // SHA-256, hex
	Path   string
	Size   int64
}

// Layer writes a layer's archive.
type Layer func(w io.Writer) error

// Archive is a layer of the entries that fill writes.
func Archive(fill func(w *tar.Writer) error) Layer {
	return func(w io.Writer) error {
		t := tar.NewWriter(w)
		if err := fill(t); err != nil {
			return err
		}
		return t.Close()
	}
}

// Config is the part of an image's configuration that containers get, by the names of the OCI specification.
type Config map[string]any

// The media types of the OCI image specification.
const (
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// saved is an entry of manifest.json, the list that `docker load` reads.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Make makes an image in dir, layers bottom to top.
func Make(ctx context.Context, dir, name string, config Config, layers ...Layer) (*Image, error) {
	image, err := writeImage(ctx, dir, name, config, layers)
	if err != nil {
		return nil, fmt.Errorf("make the image %s: %w", name, err)
	}
	return image, nil
}

func writeImage(ctx context.Context, dir, name string, config Config, layers []Layer) (*Image, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return nil, err
	}
	image := &Image{Dir: dir, Name: name, Layers: make([]Blob, len(layers))}
	diffIDs := make([]string, len(layers))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for n, layer := range layers {
		group.Go(func() (err error) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			image.Layers[n], diffIDs[n], err = writeLayer(dir, n, layer)
			if err != nil {
				err = fmt.Errorf("layer %d: %w", n, err)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return image, image.describe(config, diffIDs)
}

// writeLayer writes a layer's blob and gives the digest of its content beside it.
func writeLayer(dir string, n int, layer Layer) (blob Blob, diffID string, err error) {
	temp := filepath.Join(dir, fmt.Sprintf("layer-%d", n))
	f, err := os.Create(temp)
	if err != nil {
		return Blob{}, "", err
	}
	defer f.Close()
	stored, plain := sha256.New(), sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(f, stored), 1<<20)
	zip := gzip.NewWriter(out)
	if err = layer(io.MultiWriter(zip, plain)); err == nil {
		err = errors.Join(zip.Close(), out.Flush())
	}
	if err != nil {
		return Blob{}, "", err
	}
	info, err := f.Stat()
	if err != nil {
		return Blob{}, "", err
	}
	blob = Blob{Digest: sum(stored), Size: info.Size()}
	blob.Path = filepath.Join(dir, blobName(blob.Digest))
	return blob, "sha256:" + sum(plain), os.Rename(temp, blob.Path)
}

func sum(h hash.Hash) string { return fmt.Sprintf("%x", h.Sum(nil)) }

func blobName(digest string) string { return "blobs/sha256/" + digest }

// describe writes the configuration, the manifest and both lists.
func (i *Image) describe(config Config, diffIDs []string) error {
	history := make([]map[string]string, len(diffIDs))
	for n := range history {
		history[n] = map[string]string{"created": epoch, "created_by": fmt.Sprintf("layer %d", n)}
	}
	described, err := i.store(mediaConfig, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": epoch, "config": config, "history": history,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return err
	}
	list := saved{Config: blobName(strings.TrimPrefix(described.Digest, "sha256:")), RepoTags: []string{i.Name}}
	var layers []descriptor
	for _, l := range i.Layers {
		layers = append(layers, descriptor{MediaType: mediaLayer, Digest: "sha256:" + l.Digest, Size: l.Size})
		list.Layers = append(list.Layers, blobName(l.Digest))
	}
	manifest, err := i.store(mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest,
		"config": described, "layers": layers,
	})
	if err != nil {
		return err
	}
	// The first is for tools of the format, and the second for engines whose images are in containerd.
	manifest.Annotations = map[string]string{
		"org.opencontainers.image.ref.name": i.Name[strings.LastIndexByte(i.Name, ':')+1:],
		"io.containerd.image.name":          "docker.io/" + i.Name,
	}
	for name, content := range map[string]any{
		"oci-layout":    map[string]string{"imageLayoutVersion": "1.0.0"},
		"index.json":    map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}},
		"manifest.json": []saved{list},
	} {
		b, err := json.Marshal(content)
		if err == nil {
			err = os.WriteFile(filepath.Join(i.Dir, name), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// epoch is when all images were made: the same input gives the same bytes.
const epoch = "2020-01-01T00:00:00Z"

// store writes a blob of JSON.
func (i *Image) store(mediaType string, content any) (descriptor, error) {
	b, err := json.Marshal(content)
	if err != nil {
		return descriptor{}, err
	}
	digest := fmt.Sprintf("%x", sha256.Sum256(b))
	err = os.WriteFile(filepath.Join(i.Dir, blobName(digest)), b, 0o644)
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: int64(len(b))}, err
}

// Open returns the image in a folder that Make has made.
func Open(dir string) (*Image, error) {
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return nil, err
	}
	var list []saved
	if err := json.Unmarshal(b, &list); err != nil || len(list) != 1 || len(list[0].RepoTags) != 1 {
		return nil, fmt.Errorf("%s holds no image of this program's making: %w", dir, errors.Join(err, fs.ErrInvalid))
	}
	image := &Image{Dir: dir, Name: list[0].RepoTags[0]}
	for _, name := range list[0].Layers {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		image.Layers = append(image.Layers, Blob{
			Digest: info.Name(), Path: filepath.Join(dir, name),
			Size: info.Size(),
		})
	}
	return image, nil
}

// WriteArchive packs the image into an archive that `docker load` takes.
func (i *Image) WriteArchive(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	return errors.Join(w.AddFS(os.DirFS(i.Dir)), w.Close())
}
