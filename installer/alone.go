package installer

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/internal/registry"
	"cvmfs-graphdriver/thin"
)

// alone runs images by a containerd that no engine of Docker's is on.
type alone struct{ Containerd }

// TestSnapshotter runs images by containerd alone, with the snapshotter.
func (i *Installer) TestSnapshotter(ctx context.Context, images Images) error {
	rec, err := openRecord(i.Record) // one run of an image at a time
	if err != nil {
		return err
	}
	return errors.Join(i.runAlone(ctx, images, false), rec.close())
}

// runAlone runs images by containerd. With cri it is told that this was not Kubernetes' way.
func (i *Installer) runAlone(ctx context.Context, images Images, cri bool) error {
	note := " by containerd"
	if cri {
		note += "; pods weren't tried"
	}
	return i.runImages(ctx, alone{i.Containerd}, images, note)
}

func (a alone) runOwn(ctx context.Context, program string) error {
	image, err := testImage(program)
	if err != nil {
		return fmt.Errorf("make a test image: %w", err)
	}
	word := rand.Text()
	said, err := a.run(ctx, containerd.Trial{Name: "the test image", Image: image, Args: []string{word}})
	if err == nil && strings.TrimSpace(said) != word {
		err = fmt.Errorf("run the test image: it said %q, not the word it was given", shorten(said))
	}
	return err
}

// run runs an image, which must end with 0 if it ends soon.
func (a alone) run(ctx context.Context, t containerd.Trial) (said string, err error) {
	said, code, err := a.Run(ctx, SnapshotterName, t)
	if err == nil && code != 0 {
		err = endedWith(t.Name, int64(code), said)
	}
	return said, err
}

// runImage takes an image from its registry, with the credentials of docker login. Nothing of it stays.
func (a alone) runImage(ctx context.Context, ref string, thin bool) (outcome string, err error) {
	image, err := pull(ctx, ref)
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, err)
	}
	if thin {
		if err := isThin(image); err != nil {
			return "", fmt.Errorf("%s: %w", ref, err)
		}
	}
	said, err := a.run(ctx, containerd.Trial{Name: ref, Image: image, Capabilities: containerd.FileCapabilities()})
	if err != nil {
		return "", err
	}
	return runs(ref+", pulled,", said), nil
}

// pull returns an image of a registry, for this machine. "http://" before its name allows to ask without TLS.
func pull(ctx context.Context, ref string) (v1.Image, error) {
	bare, plain := strings.CutPrefix(ref, "http://")
	var options []name.Option
	if plain {
		options = append(options, name.Insecure)
	}
	parsed, err := name.ParseReference(bare, options...)
	if err != nil {
		return nil, err
	}
	from := registry.Options{Keychain: authn.DefaultKeychain, PlainHTTP: plain, UserAgent: DefaultName}
	image, err := remote.Image(parsed, append(from.Remote(ctx),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))...)
	return image, registry.Explain(parsed, err)
}

// isThin returns nil for an image with a thin layer.
func isThin(image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		if size, err := layer.Size(); err != nil || size > 2*thin.MaxSize {
			continue // it is no descriptor's
		}
		found, err := hasDescriptor(layer)
		if found || err != nil {
			return err
		}
	}
	return fmt.Errorf("it is no thin image: none of its %d layers is a descriptor (\"docker2cvmfs make-thin\" makes one of it)",
		len(layers))
}

// hasDescriptor reports whether a layer has one file, a descriptor. One that can't be used is an error.
func hasDescriptor(layer v1.Layer) (_ bool, err error) {
	archive, err := layer.Uncompressed()
	if err != nil {
		return false, err
	}
	defer archive.Close() // only read from
	r := tar.NewReader(archive)
	h, err := r.Next()
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil || h.Typeflag != tar.TypeReg || strings.TrimPrefix(h.Name, "./") != thin.FileName {
		return false, err
	}
	content, err := io.ReadAll(io.LimitReader(r, thin.MaxSize+1))
	if err != nil {
		return false, err
	}
	_, err = thin.Parse(content)
	if errors.Is(err, thin.ErrNotThin) {
		return false, nil
	}
	return err == nil, err
}
