package source

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/platforms"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// defaultPlatform is the lowest variant of the usual processor: a thin image is for hosts that nobody asked.
	defaultPlatform = "linux/amd64"
	// maxUnnamed bounds the images of a list whose configuration is read because the list doesn't say their platform.
	maxUnnamed = 64
	// attestation is the annotation that BuildKit marks with what is no image beside the images.
	attestation = "vnd.docker.reference.type"
)

// selector chooses among an image's platforms as engines do: names of processors are normalised (aarch64 is arm64,
// amd64/v1 is amd64), and an older variant serves where the one that was asked for isn't there, never a newer one.
type selector struct {
	platforms.MatchComparer
	want specs.Platform
}

func (o Options) selector() (*selector, error) {
	text := cmp.Or(o.Platform, defaultPlatform)
	p, err := platforms.Parse(text)
	if err != nil || !strings.Contains(text, "/") { // one word would be completed by what this host is
		return nil, fmt.Errorf("platform %.100q: want OS/ARCHITECTURE[/VARIANT], as in linux/arm64", o.Platform)
	}
	return &selector{platforms.Only(p), p}, nil
}

func (s *selector) String() string { return platforms.Format(s.want) }

// fits refuses an image for another platform than the one asked for. What its configuration doesn't say contradicts
// nothing.
func (s *selector) fits(have specs.Platform) error {
	filled := specs.Platform{
		OS: cmp.Or(have.OS, s.want.OS), Architecture: cmp.Or(have.Architecture, s.want.Architecture),
		Variant: have.Variant,
	}
	if n := platforms.Normalize(filled); filled.Variant == "" && n.Architecture == s.want.Architecture {
		filled.Variant = s.want.Variant
	}
	if !s.Match(filled) {
		return fmt.Errorf("%w %s: it is for %.100q (--platform)", ErrPlatform, s, platforms.Format(have))
	}
	return nil
}

// choice is an image of a list, and what it is for.
type choice struct {
	v1.Descriptor
	platform specs.Platform
}

// choose takes the image of a list that fits best; of equal ones, the first.
func choose(ctx context.Context, in blobs, list []v1.Descriptor, want *selector) (v1.Descriptor, error) {
	if len(list) == 1 && list[0].Platform == nil && (list[0].MediaType.IsImage() || list[0].MediaType.IsIndex()) {
		return list[0], nil
	}
	all, err := choices(ctx, in, list)
	if err != nil {
		return v1.Descriptor{}, err
	}
	var best *choice
	var others []string
	for i, c := range all {
		switch {
		case !want.Match(c.platform):
			others = append(others, platforms.Format(c.platform))
		case best == nil || want.Less(c.platform, best.platform):
			best = &all[i]
		}
	}
	switch {
	case best != nil:
		return best.Descriptor, nil
	case len(others) == 0:
		return v1.Descriptor{}, fmt.Errorf("%w %s: the list names no platform", ErrPlatform, want)
	}
	return v1.Descriptor{}, fmt.Errorf("%w %s: there are %.500q: choose with --platform", ErrPlatform, want,
		strings.Join(others, ", "))
}

// choices finds out what the images of a list are for. A list may leave that out (image-spec, image-index.md:
// "platform" is optional): then the configuration says it. What is no image is left out.
func choices(ctx context.Context, in blobs, list []v1.Descriptor) ([]choice, error) {
	var all []choice
	unnamed := 0
	for _, d := range list {
		p := d.Platform
		switch {
		case d.Digest == (v1.Hash{}), d.Annotations[attestation] != "", p != nil && p.OS == "unknown":
			continue
		case p != nil && p.Architecture != "":
			all = append(all, choice{d, specs.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}})
			continue
		}
		if unnamed++; unnamed > maxUnnamed {
			return nil, fmt.Errorf("the list doesn't say what more than %d images are for", maxUnnamed)
		}
		more, err := unnamedChoices(ctx, in, d)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return all, nil
}

// unnamedChoices reads what an image is for from its configuration. A list within a list counts with all it names; one
// further down is left out.
func unnamedChoices(ctx context.Context, in blobs, d v1.Descriptor) ([]choice, error) {
	if !d.MediaType.IsImage() && !d.MediaType.IsIndex() || d.ArtifactType != "" {
		return nil, nil
	}
	raw, err := in.manifest(ctx, d)
	if err == nil {
		err = checkBytes(raw, d)
	}
	if err != nil {
		return nil, fmt.Errorf("manifest %s, of which the list doesn't say what it is for: %w", d.Digest, err)
	}
	if d.MediaType.IsIndex() {
		list, err := parseList(raw)
		if err != nil {
			return nil, err
		}
		for i := range list {
			if list[i].Platform == nil {
				list[i] = v1.Descriptor{}
			}
		}
		return choices(ctx, in, list)
	}
	m, err := parseManifest(raw)
	if err != nil || m.Config.MediaType != "" && !m.Config.MediaType.IsConfig() {
		return nil, nil // a manifest of something else
	}
	config, err := readConfig(ctx, in, m.Config)
	if errors.Is(err, errNoConfig) || err == nil && config.Architecture == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []choice{{d, config.platform()}}, nil
}

// parseList reads the images of a list. One entry that can't be read, as of a digest of another kind, doesn't hide the
// others.
func parseList(raw []byte) ([]v1.Descriptor, error) {
	var index struct {
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("list of images: %w", err)
	}
	list := make([]v1.Descriptor, len(index.Manifests))
	for i, m := range index.Manifests {
		if json.Unmarshal(m, &list[i]) != nil {
			list[i] = v1.Descriptor{}
		}
	}
	return list, nil
}

// parseManifest reads what of a manifest is needed, and nothing else: a field that only others need may be as they like
// it.
func parseManifest(raw []byte) (*v1.Manifest, error) {
	type blob struct {
		MediaType types.MediaType `json:"mediaType"`
		Digest    v1.Hash         `json:"digest"`
		Size      int64           `json:"size"`
	}
	var m struct {
		Config      blob            `json:"config"`
		Layers      []blob          `json:"layers"`
		Annotations json.RawMessage `json:"annotations"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	descriptor := func(b blob) v1.Descriptor {
		return v1.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size}
	}
	parsed := &v1.Manifest{SchemaVersion: 2, Config: descriptor(m.Config)}
	for _, l := range m.Layers {
		parsed.Layers = append(parsed.Layers, descriptor(l))
	}
	if json.Unmarshal(m.Annotations, &parsed.Annotations) != nil {
		parsed.Annotations = nil // they are for people
	}
	return parsed, nil
}

// config is what of a configuration is needed.
type config struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	RootFS       struct {
		DiffIDs []v1.Hash `json:"diff_ids"`
	} `json:"rootfs"`
}

func (c *config) platform() specs.Platform {
	return specs.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
}

// errNoConfig is a configuration that is none of a container image.
var errNoConfig = errors.New("it is no container image")

func parseConfig(raw []byte) (*config, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
		return nil, fmt.Errorf("configuration: %w", errNoConfig)
	}
	var c config
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("configuration: %w: %w", err, errNoConfig)
	}
	return &c, nil
}

// readConfig reads a configuration without keeping its bytes.
func readConfig(ctx context.Context, in blobs, d v1.Descriptor) (*config, error) {
	raw, err := readConfigBytes(ctx, in, d)
	if err != nil {
		return nil, err
	}
	return parseConfig(raw)
}

func readConfigBytes(ctx context.Context, in blobs, d v1.Descriptor) ([]byte, error) {
	if d.Digest == (v1.Hash{}) {
		return nil, fmt.Errorf("manifest without a configuration: %w", errNoConfig)
	}
	if d.Size > maxConfig || d.Size < 0 {
		return nil, fmt.Errorf("configuration of %d bytes, the limit is %d", d.Size, maxConfig)
	}
	r := newBlobReader(ctx, in, d)
	raw, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", d.Digest, err)
	}
	return raw, nil
}
