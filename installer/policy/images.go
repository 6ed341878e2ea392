package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
)

// imageKey is where the engine's driver tells the key of the composed image that an image's layers are.
const imageKey = "Image"

var isKey = regexp.MustCompile("^[0-9a-f]{64}$")

// errNotThin means that an image has nothing in the cache.
var errNotThin = errors.New("it is not a thin image, or was never used: only thin images are in the cache")

// imageKey returns the key of the composed image of one that the engine knows by a name or an id. A key is taken as it
// is, unless the engine has an image of that id.
func (h *Host) imageKey(ctx context.Context, name string) (string, error) {
	found, err := h.Engine.Client().ImageInspect(ctx, name)
	switch {
	case err != nil && isKey.MatchString(name):
		return name, nil
	case errdefs.IsNotFound(err):
		return "", fmt.Errorf("there is no image %s on this host (\"docker pull\" brings it): %w", name, fs.ErrNotExist)
	case err != nil:
		return "", fmt.Errorf("ask the engine for image %s: %w", name, err)
	case found.GraphDriver.Data[imageKey] == "":
		return "", fmt.Errorf("image %s: %w", name, errNotThin)
	}
	return found.GraphDriver.Data[imageKey], nil
}

// imageNames returns the engine's names of images, by the key of the composed image. Images without a name have the
// beginning of their id.
func (h *Host) imageNames(ctx context.Context) (map[string][]string, error) {
	list, err := h.Engine.Client().ImageList(ctx, image.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask the engine for its images: %w", err)
	}
	names := map[string][]string{}
	for _, i := range list {
		found, err := h.Engine.Client().ImageInspect(ctx, i.ID)
		if errdefs.IsNotFound(err) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("ask the engine for image %s: %w", i.ID, err)
		}
		if found.GraphDriver.Data[imageKey] == "" {
			continue
		}
		called := slices.Clone(found.RepoTags)
		if len(called) == 0 {
			called = slices.Clone(found.RepoDigests)
		}
		if len(called) == 0 {
			called = []string{shortID(i.ID)}
		}
		key := found.GraphDriver.Data[imageKey]
		names[key] = append(names[key], called...)
	}
	for key := range names {
		slices.Sort(names[key])
	}
	return names, nil
}

// shortID is an image's id as the engine shows it.
func shortID(id string) string {
	const shown = len("sha256:") + 12
	return id[:min(len(id), shown)]
}
