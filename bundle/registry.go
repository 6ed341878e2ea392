package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"cvmfs-graphdriver/internal/registry"
)

// pluginConfig is the media type of a plugin's configuration, by which engines tell plugins from images.
const pluginConfig types.MediaType = "application/vnd.docker.plugin.v1+json"

// maxConfig bounds config.json in a registry, in bytes.
const maxConfig = 1 << 20

// Remote says how registries are reached, and who is told of what goes over the wire.
type Remote struct {
	registry.Options
	Progress func(arch string, done, total int64) // bytes of a bundle's layer so far; nil: nobody
}

// Pushed is a manifest that was put into a registry.
type Pushed struct {
	Ref    string // its whole name
	Arch   string // "" of a list
	Digest string // "sha256:…"
}

// Push puts bundles of different architectures into a registry, in the form that `docker plugin install` takes. One
// bundle goes to ref, "[http://]HOST[:PORT]/NAME[:TAG]". Of several, each goes to ref with "-ARCH" behind its tag, and
// ref is a list of them, which [Pull] chooses from; engines take no lists of plugins. What ref was before is replaced
// last.
func Push(ctx context.Context, ref string, bundles []*Bundle, r Remote) ([]Pushed, error) {
	pushed, err := push(ctx, ref, bundles, r)
	if err != nil {
		return nil, fmt.Errorf("push plugin bundle to %.300s: %w", ref, err)
	}
	return pushed, nil
}

func push(ctx context.Context, ref string, bundles []*Bundle, r Remote) ([]Pushed, error) {
	address, options := r.naming(ref)
	if strings.Contains(address, "@") {
		return nil, errors.New("it is a digest, which a push returns: give a tag")
	}
	to, err := name.NewTag(address, options...)
	if err != nil {
		return nil, err
	}
	bundles = slices.Clone(bundles)
	slices.SortFunc(bundles, func(a, b *Bundle) int { return strings.Compare(a.Build.Arch, b.Build.Arch) })
	for i := range bundles[1:] {
		if a, b := bundles[i].Build, bundles[i+1].Build; a.Arch == b.Arch || a.Version != b.Version {
			return nil, fmt.Errorf("bundle %s for %s and bundle %s for %s: want one version, once for each architecture", a.Version, a.Arch, b.Version, b.Arch)
		}
	}
	access := r.Options.Remote(ctx)
	var pushed []Pushed
	var list v1.ImageIndex = mutate.IndexMediaType(empty.Index, types.DockerManifestList)
	for _, b := range bundles {
		at := to
		if len(bundles) > 1 {
			if at, err = name.NewTag(to.Name()+"-"+b.Build.Arch, options...); err != nil {
				return nil, err
			}
		}
		image, err := b.image(r)
		if err != nil {
			return nil, err
		}
		if err := remote.Write(at, image, access...); err != nil {
			return nil, registry.Explain(at, err)
		}
		digest, err := image.Digest()
		if err != nil {
			return nil, err
		}
		pushed = append(pushed, Pushed{at.Name(), b.Build.Arch, digest.String()})
		list = mutate.AppendManifests(list, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{
			MediaType: types.DockerManifestSchema2, Platform: &v1.Platform{OS: "linux", Architecture: b.Build.Arch},
		}})
	}
	if len(bundles) == 1 {
		return pushed, nil
	}
	if err := remote.WriteIndex(to, list, access...); err != nil {
		return nil, registry.Explain(to, err)
	}
	digest, err := list.Digest()
	return append(pushed, Pushed{to.Name(), "", digest.String()}), err
}

// naming returns a reference as the registry library reads it.
func (r *Remote) naming(ref string) (address string, options []name.Option) {
	address, plain := strings.CutPrefix(ref, "http://")
	if r.PlainHTTP = r.PlainHTTP || plain; r.PlainHTTP {
		options = append(options, name.Insecure)
	}
	return address, options
}

// artefact is a bundle as registries keep it.
type artefact struct {
	config, layer, manifest []byte
	digest                  v1.Hash // of the layer
	progress                func(done, total int64)
}

// image returns the bundle as registries keep it. The same bundle gives the same bytes.
func (b *Bundle) image(r Remote) (v1.Image, error) {
	var layer bytes.Buffer
	z, err := gzip.NewWriterLevel(&layer, gzip.BestCompression)
	if err == nil {
		err = errors.Join(b.WriteRootfs(z), z.Close())
	}
	if err != nil {
		return nil, err
	}
	a := &artefact{config: b.ConfigJSON(), layer: layer.Bytes(), progress: r.progress(b.Build.Arch)}
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.DockerManifestSchema2,
		Config: v1.Descriptor{MediaType: pluginConfig, Size: int64(len(a.config))},
		Layers: []v1.Descriptor{{MediaType: types.DockerLayer, Size: int64(len(a.layer))}},
	}
	var errConfig, errLayer, errManifest error
	m.Config.Digest, _, errConfig = v1.SHA256(bytes.NewReader(a.config))
	a.digest, _, errLayer = v1.SHA256(bytes.NewReader(a.layer))
	m.Layers[0].Digest = a.digest
	a.manifest, errManifest = json.Marshal(m)
	if err := errors.Join(errConfig, errLayer, errManifest); err != nil {
		return nil, err
	}
	return partial.CompressedToImage(a)
}

// RawConfigFile is config.json. This and what follows are what the registry library asks of an image, and of its only
// layer.
func (a *artefact) RawConfigFile() ([]byte, error) { return a.config, nil }

// RawManifest is the manifest's bytes.
func (a *artefact) RawManifest() ([]byte, error) { return a.manifest, nil }

// LayerByDigest returns a blob of the manifest.
func (a *artefact) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if h == a.digest {
		return (*artefactLayer)(a), nil
	}
	return partial.ConfigLayer(a)
}

// MediaType is that of the manifest.
func (a *artefact) MediaType() (types.MediaType, error) { return types.DockerManifestSchema2, nil }

type artefactLayer artefact

// Digest is that of the layer's bytes.
func (l *artefactLayer) Digest() (v1.Hash, error) { return l.digest, nil }

// Compressed opens the layer.
func (l *artefactLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(&counter{r: bytes.NewReader(l.layer), total: int64(len(l.layer)), tell: l.progress}), nil
}

// Size is the number of the layer's bytes.
func (l *artefactLayer) Size() (int64, error) { return int64(len(l.layer)), nil }

// MediaType is that of the layer.
func (l *artefactLayer) MediaType() (types.MediaType, error) { return types.DockerLayer, nil }

// counter reports how much was read.
type counter struct {
	r           io.Reader
	done, total int64
	tell        func(done, total int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	c.tell(c.done, c.total)
	return n, err
}

// progress returns who is told of a bundle's layer.
func (r *Remote) progress(arch string) func(done, total int64) {
	if r.Progress == nil {
		return func(int64, int64) {}
	}
	return func(done, total int64) { r.Progress(arch, done, total) }
}

// Pull reads a bundle from a registry, [Bundle.Save] writes it to disk. Of a list it takes the one for arch, "" for
// this machine's; what isn't a list must be for arch unless that is "". The digest, "sha256:…", is that of the bundle's
// manifest. It is as particular as [Open]; every byte was found to be what the manifest names.
func Pull(ctx context.Context, ref, arch string, r Remote) (b *Bundle, digest string, err error) {
	if b, digest, err = pull(ctx, ref, arch, r); err != nil {
		return nil, "", fmt.Errorf("pull plugin bundle %.300s: %w", ref, err)
	}
	return b, digest, nil
}

func pull(ctx context.Context, ref, arch string, r Remote) (*Bundle, string, error) {
	address, options := r.naming(ref)
	from, err := name.ParseReference(address, options...)
	if err != nil {
		return nil, "", err
	}
	found, err := remote.Get(from, r.Options.Remote(ctx)...)
	if err != nil {
		return nil, "", registry.Explain(from, err)
	}
	image, err := choose(found, arch)
	if err != nil {
		return nil, "", registry.Explain(from, err)
	}
	config, layer, err := download(image, r.progress(arch))
	if err != nil {
		return nil, "", registry.Explain(from, err)
	}
	digest, err := image.Digest()
	if err != nil {
		return nil, "", err
	}
	stream, _, err := decompress(layer)
	if err != nil {
		return nil, "", fmt.Errorf("its layer: %w", err)
	}
	defer stream.Close()
	b, err := Read(config, stream)
	if err != nil {
		return nil, "", err
	}
	if arch != "" && b.Build.Arch != arch {
		return nil, "", fmt.Errorf("it is for %s, and one for %s is wanted", b.Build.Arch, arch)
	}
	return b, digest.String(), nil
}

// choose returns the plugin that a reference led to, of a list the one for an architecture.
func choose(found *remote.Descriptor, arch string) (v1.Image, error) {
	switch {
	case found.MediaType.IsImage():
		return found.Image()
	case !found.MediaType.IsIndex():
		return nil, fmt.Errorf("it is no plugin: its media type is %.100q", found.MediaType)
	}
	list, err := found.ImageIndex()
	if err != nil {
		return nil, err
	}
	m, err := list.IndexManifest()
	if err != nil {
		return nil, err
	}
	if arch == "" {
		arch = runtime.GOARCH
	}
	var others []string
	for _, d := range m.Manifests {
		if d.Platform == nil || !d.MediaType.IsImage() {
			continue
		}
		if d.Platform.OS == "linux" && d.Platform.Architecture == arch {
			return list.Image(d.Digest)
		}
		others = append(others, d.Platform.OS+"/"+d.Platform.Architecture)
	}
	return nil, fmt.Errorf("it is a list without linux/%s: there are %.300q", arch, others)
}

// download reads a plugin's configuration and layer into memory.
func download(image v1.Image, tell func(done, total int64)) (config, layer []byte, err error) {
	m, err := image.Manifest()
	if err != nil {
		return nil, nil, err
	}
	switch {
	case m.Config.MediaType != pluginConfig:
		return nil, nil, fmt.Errorf("it is no plugin: its configuration's media type is %.100q", m.Config.MediaType)
	case len(m.Layers) != 1 || !m.Layers[0].MediaType.IsLayer() || len(m.Layers[0].URLs) > 0:
		return nil, nil, errors.New("it is another plugin: a bundle has one layer, which lies in the registry")
	case m.Config.Size > maxConfig || m.Layers[0].Size > maxSize:
		return nil, nil, errTooLarge
	}
	if config, err = image.RawConfigFile(); err != nil {
		return nil, nil, fmt.Errorf("config.json: %w", err)
	}
	blob, err := image.LayerByDigest(m.Layers[0].Digest)
	if err != nil {
		return nil, nil, err
	}
	for range attempts {
		if layer, err = readBlob(blob, m.Layers[0].Size, tell); !errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("its layer: %w", err)
	}
	return config, layer, nil
}

// attempts is how often a layer is asked for whose connection breaks.
const attempts = 3

// readBlob reads a blob of a size into memory and checks it by its digest.
func readBlob(blob v1.Layer, size int64, tell func(done, total int64)) ([]byte, error) {
	stream, err := blob.Compressed()
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(&counter{r: stream, total: size, tell: tell})
	return content, errors.Join(err, stream.Close())
}

// Save writes the bundle's archive into a folder, which is made if it is missing, and gives its path. The file is
// complete or absent, and the bytes are those that were built.
func (b *Bundle) Save(ctx context.Context, dir string, format Format) (string, error) {
	path, err := b.save(ctx, dir, format)
	if err != nil {
		return "", fmt.Errorf("write plugin bundle %s into %s: %w", b.Build.Version, dir, err)
	}
	return path, nil
}

func (b *Bundle) save(ctx context.Context, dir string, format Format) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	out, err := openOutput(dir)
	if err != nil {
		return "", err
	}
	defer out.close()
	file := b.Name() + "-" + b.Build.Arch + "." + string(format)
	if err := out.addFile(ctx, file, func(w io.Writer) error { return b.WriteArchive(w, format) }); err != nil {
		return "", err
	}
	paths, err := out.rename()
	if err != nil {
		return "", err
	}
	return paths[0], nil
}
