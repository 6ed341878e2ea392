package installer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/distribution/reference"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/thin"
)

const (
	// thinStep is who makes the topmost layer of an image that is made thin, as its history tells.
	thinStep = "cvmfs-graphdriver thin"
	// maxConfig bounds the files of an archive of an image that may be its configuration, in bytes.
	maxConfig = 4 << 20
	// layersOf is the file of an archive of images that says which there are.
	layersOf = "manifest.json"
	thinTar  = "thin.tar"
)

// savedImage is an image in an archive as docker save makes it.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// MakeThin has the engine make an image of another one, whose layers are replaced by a thin one, all but some at the
// bottom, and returns it. Its name is given in full.
func (e *Engine) MakeThin(ctx context.Context, id, name string, layer *control.ThinLayer) (*control.ThinImage, error) {
	made, err := e.makeThin(ctx, id, name, layer)
	if err != nil {
		return nil, fmt.Errorf("make %s of image %s: %w", name, id, err)
	}
	return made, nil
}

func (e *Engine) makeThin(ctx context.Context, id, name string, layer *control.ThinLayer) (*control.ThinImage, error) {
	config, err := e.config(ctx, id)
	if err != nil {
		return nil, err
	}
	archive, err := thin.Archive(layer.Descriptor)
	if err != nil {
		return nil, err
	}
	config, err = thin.ReplaceLayers(config, layer.Keep, digestOf(archive),
		thin.Step{By: thinStep, Comment: "thin image of " + id})
	if err != nil {
		return nil, err
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, err
	}
	saved, err := thinArchive(config, archive, reference.FamiliarString(named), layer.Keep)
	if err != nil {
		return nil, err
	}
	if err := e.loadImage(ctx, bytes.NewReader(saved)); err != nil {
		return nil, err
	}
	return &control.ThinImage{Name: name, ID: digestOf(config), Layers: layer.Added}, nil
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// thinArchive returns an archive of an image as docker load takes it. The layers at the bottom, which the engine has,
// are not in it.
func thinArchive(config, layer []byte, name string, keep int) ([]byte, error) {
	image := savedImage{Config: strings.TrimPrefix(digestOf(config), "sha256:") + ".json", RepoTags: []string{name}}
	for i := range keep {
		image.Layers = append(image.Layers, fmt.Sprintf("there-%d.tar", i))
	}
	image.Layers = append(image.Layers, thinTar)
	manifest, err := json.Marshal([]savedImage{image})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name    string
		content []byte
	}{{thinTar, layer}, {image.Config, config}, {layersOf, manifest}} {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.content))}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// config returns the configuration of an image, byte for byte. The engine tells that nowhere but in an archive of the
// image, where it may lie before what says which file it is.
func (e *Engine) config(ctx context.Context, id string) (_ []byte, err error) {
	saved, err := e.api.ImageSave(ctx, []string{id})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, saved.Close()) }()
	small := map[string][]byte{}
	for r := tar.NewReader(saved); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read its archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg || h.Size > maxConfig {
			continue
		}
		content := bufio.NewReader(r)
		if first, err := content.Peek(1); err != nil || !bytes.ContainsAny(first, "{[") {
			continue // no JSON; an error comes again
		}
		if small[h.Name], err = io.ReadAll(content); err != nil {
			return nil, fmt.Errorf("read its archive: %w", err)
		}
	}
	var images []savedImage
	if err := json.Unmarshal(small[layersOf], &images); err != nil {
		return nil, fmt.Errorf("%s of its archive: %w", layersOf, err)
	}
	if len(images) != 1 || digestOf(small[images[0].Config]) != id {
		return nil, errors.New("its archive doesn't have its configuration")
	}
	return small[images[0].Config], nil
}
