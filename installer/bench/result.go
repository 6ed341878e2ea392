package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"cvmfs-graphdriver/internal/registry"
)

// Result is what was measured.
type Result struct {
	Engine  string         `json:"engine"` // its version
	Driver  string         `json:"driver"` // of both images
	Time    time.Time      `json:"time"`
	Images  map[Form]Image `json:"images"`
	Samples []Sample       `json:"samples"`
}

// Image is an image that was started; sizes are in bytes.
type Image struct {
	Name       string           `json:"name"`
	Size       int64            `json:"size"`                 // unpacked, as the engine tells it
	Compressed int64            `json:"compressed,omitempty"` // in the registry; 0 where that can't be asked
	Unknown    string           `json:"unknown,omitempty"`    // why it can't
	layers     map[string]int64 // sizes in the registry, by the beginnings of their digests, as engines have them
	rest       int64            // of Compressed: manifest and configuration
}

// missing is how much has to be downloaded where some layers are here already.
func (i Image) missing(here map[string]bool) (bytes int64) {
	for layer, size := range i.layers {
		if !here[layer] {
			bytes += size
		}
	}
	return bytes + i.rest
}

// Sample is one start from cold, and the runs after it. Times are in seconds, amounts in bytes.
type Sample struct {
	Round int  `json:"round"`
	Form  Form `json:"form"`

	Pull  float64 `json:"pull"`
	First float64 `json:"first_run"` // with making the container, until it was ready
	Warm  float64 `json:"warm_run"`  // the median of some

	Fetched  int64 `json:"fetched"`            // until the first run was ready, by all of the node if the image is thin
	Requests int64 `json:"requests,omitempty"` // likewise, to a thin image's repositories
	Shared   int64 `json:"shared,omitempty"`   // that were here before, as other images have them
}

// Ready is how long a start took from cold.
func (s Sample) Ready() float64 { return s.Pull + s.First }

// Of collects a figure of the samples of a form.
func (r *Result) Of(form Form, figure func(Sample) float64) (numbers []float64) {
	for _, s := range r.Samples {
		if s.Form == form {
			numbers = append(numbers, figure(s))
		}
	}
	return numbers
}

// Median returns the middle of some numbers, the upper one of two, and 0 of none.
func Median(numbers []float64) float64 {
	if len(numbers) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(numbers))[len(numbers)/2]
}

// describe has an image's facts in the result.
func (b *bench) describe(ctx context.Context, form Form, ref string) error {
	if _, known := b.result.Images[form]; known {
		return nil
	}
	found, err := b.Engine.Client().ImageInspect(ctx, ref)
	if err != nil {
		return fmt.Errorf("ask the engine for image %s: %w", ref, err)
	}
	i := Image{Name: ref, Size: found.Size}
	err = b.registered(ctx, &i, v1.Platform{OS: found.Os, Architecture: found.Architecture, Variant: found.Variant})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil { // a mirror's images can be pulled where the registry isn't reached
		i.Unknown = err.Error()
	}
	b.result.Images[form] = i
	return nil
}

// shownDigest is how many characters of a layer's digest engines show while they pull.
const shownDigest = 12

// registered asks the registry for the sizes of an image.
func (b *bench) registered(ctx context.Context, i *Image, platform v1.Platform) error {
	ref, err := name.ParseReference(i.Name)
	if err != nil {
		return err
	}
	o := registry.Options{Keychain: authn.DefaultKeychain, UserAgent: "cvmfs-graphdriver"}
	if c := b.info.RegistryConfig; c != nil {
		if index, ok := c.IndexConfigs[ref.Context().RegistryStr()]; ok && !index.Secure {
			o.PlainHTTP, o.Insecure = true, true
			if ref, err = name.ParseReference(i.Name, name.Insecure); err != nil {
				return err
			}
		}
	}
	image, err := remote.Image(ref, append(o.Remote(ctx), remote.WithPlatform(platform))...)
	if err != nil {
		return registry.Explain(ref, err)
	}
	manifest, err := image.Manifest()
	if err != nil {
		return registry.Explain(ref, err)
	}
	size, err := image.Size()
	if err != nil {
		return registry.Explain(ref, err)
	}
	i.layers, i.rest = map[string]int64{}, size+manifest.Config.Size
	i.Compressed = i.rest
	for _, l := range manifest.Layers {
		id := l.Digest.Hex[:min(shownDigest, len(l.Digest.Hex))]
		if _, twice := i.layers[id]; !twice {
			i.layers[id] = l.Size
			i.Compressed += l.Size
		}
	}
	return nil
}
