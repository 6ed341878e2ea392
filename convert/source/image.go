package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"cvmfs-graphdriver/internal/registry"
)

// What can be wrong with an image so that a caller decides on it.
var (
	ErrNoImage     = registry.ErrNoImage
	ErrNoTag       = registry.ErrNoTag
	ErrCredentials = registry.ErrCredentials
	ErrPlatform    = errors.New("no image for the platform")
	ErrDamaged     = errors.New("damaged")
)

// dockerZstd is the type of a layer that containerd and BuildKit know besides those of the registry library.
const dockerZstd types.MediaType = "application/vnd.docker.image.rootfs.diff.tar.zstd"

// The limits of what a source may say.
const (
	maxManifest = 8 << 20  // bytes of a manifest or a list
	maxConfig   = 16 << 20 // bytes of a configuration
	maxLayers   = 4096
	maxNesting  = 3 // lists within lists
)

// Options say how images are read. The zero value reads linux/amd64, without credentials.
type Options struct {
	Platform  string         // "OS/ARCH[/VARIANT]"; "": linux/amd64
	Keychain  authn.Keychain // nil: none
	Mirrors   []string       // "[REGISTRY=]URL": asked before REGISTRY, which is Docker Hub if it isn't named, in order
	PlainHTTP bool           // registries may be asked without TLS
	Insecure  bool           // certificates of registries aren't checked
	UserAgent string

	Connections *registry.Connections // to registries, to be used; nil: new ones for each use
}

// Image is an image of a source. Close it after use.
type Image struct {
	Reference Reference
	Digest    v1.Hash         // of the manifest
	MediaType types.MediaType // of the manifest
	Raw       []byte          // the manifest's bytes; for archives that have none, made up
	Manifest  *v1.Manifest
	RawConfig []byte
	Layers    []*Layer // bottom to top

	platform specs.Platform // as the configuration says
	close    func() error
}

// Close returns back what the image holds.
func (i *Image) Close() error {
	if i.close == nil {
		return nil
	}
	return i.close()
}

// Layer is one layer of an image.
type Layer struct {
	Digest    v1.Hash // of the blob
	DiffID    v1.Hash
	Size      int64 // bytes of the blob
	MediaType types.MediaType

	in blobs
}

// blobs is a place that has blobs by their digest.
type blobs interface {
	// manifest returns a manifest or a list; its digest is checked by the caller.
	manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// blob opens a blob at an offset.
	blob(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error)
	// attempts is how often a blob is opened again without much progress.
	attempts() int
}

// Open reads an image's manifest and configuration, and where its layers are.
func Open(ctx context.Context, ref Reference, o Options) (*Image, error) {
	image, err := open(ctx, ref, o)
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", ref, err)
	}
	image.Reference = ref
	return image, nil
}

func open(ctx context.Context, ref Reference, o Options) (*Image, error) {
	want, err := o.selector()
	if err != nil {
		return nil, err
	}
	var image *Image
	switch ref.Kind {
	case Daemon:
		image, err = openDaemon(ctx, ref, want)
	case Archive:
		image, err = openArchive(ctx, ref, want)
	case Layout:
		image, err = openLayout(ctx, ref, want)
	default:
		image, err = openRegistry(ctx, ref, want, o)
	}
	if err != nil {
		return nil, err
	}
	// Where no platform was asked for, the image there is is meant.
	if o.Platform != "" {
		if err := want.fits(image.platform); err != nil {
			return nil, errors.Join(err, image.Close())
		}
	}
	return image, nil
}

// load reads the image that a manifest or a list leads to.
func load(ctx context.Context, in blobs, d v1.Descriptor, want *selector) (*Image, error) {
	for range maxNesting {
		raw, err := in.manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		if err := checkBytes(raw, d); err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		media, err := mediaType(raw, d.MediaType)
		if err != nil {
			return nil, err
		}
		if !media.IsIndex() {
			return loadImage(ctx, in, raw, media)
		}
		list, err := parseList(raw)
		if err != nil {
			return nil, err
		}
		if d, err = choose(ctx, in, list, want); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("more than %d lists lead from one to the next", maxNesting)
}

// mediaType says what a manifest is: it says so itself, or how it was named does.
func mediaType(raw []byte, named types.MediaType) (types.MediaType, error) {
	var m struct {
		MediaType types.MediaType `json:"mediaType"`
		Schema    int             `json:"schemaVersion"`
		Layers    json.RawMessage `json:"layers"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	switch {
	case m.Schema == 1:
		return "", errors.New("its manifest is of schema 1, given up in 2017: push the image again with a newer Docker")
	case given(m.Layers) && given(m.Manifests):
		return "", fmt.Errorf("manifest: %w: it is both an image and a list: readers would disagree on it", ErrDamaged)
	case m.MediaType.IsImage(), m.MediaType.IsIndex():
		return m.MediaType, nil
	case m.MediaType != "":
		return "", fmt.Errorf("manifest of type %.100q: it is no container image", m.MediaType)
	case given(m.Manifests):
		return types.OCIImageIndex, nil
	case named.IsImage():
		return named, nil
	default:
		return types.OCIManifestSchema1, nil
	}
}

// given reports whether a field is there: null is as good as none.
func given(field json.RawMessage) bool { return field != nil && string(field) != "null" }

// loadImage reads the configuration a manifest names, and checks that both fit.
func loadImage(ctx context.Context, in blobs, raw []byte, media types.MediaType) (*Image, error) {
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	config, err := readConfigBytes(ctx, in, m.Config)
	if err != nil {
		return nil, err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	image := &Image{Digest: digest, MediaType: media, Raw: raw, Manifest: m, RawConfig: config}
	return image, image.addLayers(in)
}

// addLayers joins the manifest's blobs and the configuration's diffIDs.
func (i *Image) addLayers(in blobs) error {
	c, err := parseConfig(i.RawConfig)
	if err != nil {
		return err
	}
	i.platform = c.platform()
	ids := c.RootFS.DiffIDs
	switch {
	case len(ids) != len(i.Manifest.Layers):
		return fmt.Errorf("manifest has %d layers, configuration %d: it is no container image", len(i.Manifest.Layers),
			len(ids))
	case len(ids) > maxLayers:
		return fmt.Errorf("%d layers, the limit is %d", len(ids), maxLayers)
	}
	for n, d := range i.Manifest.Layers {
		switch {
		case !d.MediaType.IsLayer() && d.MediaType != dockerZstd:
			return fmt.Errorf("layer %d of type %.100q: this program can't read it", n, d.MediaType)
		case !d.MediaType.IsDistributable():
			return fmt.Errorf("layer %d of type %.100q: it may not be handed on", n, d.MediaType)
		case d.Digest.Algorithm != "sha256" || ids[n].Algorithm != "sha256":
			return fmt.Errorf("layer %d: digest %s: only sha256 is known", n, d.Digest)
		case d.Size < 0:
			return fmt.Errorf("layer %d: %d bytes", n, d.Size)
		}
		i.Layers = append(i.Layers, &Layer{
			Digest: d.Digest, DiffID: ids[n], Size: d.Size, MediaType: d.MediaType,
			in: in,
		})
	}
	return nil
}

// checkBytes holds a manifest against what named it.
func checkBytes(raw []byte, d v1.Descriptor) error {
	if d.Digest == (v1.Hash{}) {
		return nil
	}
	got, n, err := v1.SHA256(bytes.NewReader(raw))
	switch {
	case err != nil:
		return err
	case got != d.Digest:
		return fmt.Errorf("%w: its digest is %s, not %s", ErrDamaged, got, d.Digest)
	case d.Size > 0 && n != d.Size:
		return fmt.Errorf("%w: %d bytes instead of %d", ErrDamaged, n, d.Size)
	}
	return nil
}

// Command is what an image runs unless a container says otherwise, as its configuration has it.
type Command struct {
	Args []string // entrypoint and arguments; none: the image names no program
	Env  []string
	Dir  string // "" is /
	User string // "": root
}

// Command returns what the image runs.
func (i *Image) Command() (Command, error) {
	var c struct {
		Config struct {
			Entrypoint, Cmd, Env []string
			WorkingDir, User     string
		} `json:"config"`
	}
	if err := json.Unmarshal(i.RawConfig, &c); err != nil {
		return Command{}, fmt.Errorf("configuration of %s: %w", i.Reference, err)
	}
	return Command{
		Args: slices.Concat(c.Config.Entrypoint, c.Config.Cmd), Env: c.Config.Env, Dir: c.Config.WorkingDir,
		User: c.Config.User,
	}, nil
}
