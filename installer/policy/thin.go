package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/installer/preflight"
)

// layerFolder is where the engine's driver tells the folder of a layer that is named by the layer's id.
const layerFolder = "MergedDir"

// ThinSuffix is put behind the tag of an image to name the thin one that is made of it.
const ThinSuffix = "-thin"

// Image is an image that is to be made thin.
type Image struct {
	Name string // of the thin one, in full
	// of an image of Docker's engine with the plugin
	ID    string
	Layer string // the topmost layer
	// of one of containerd's
	InContainerd bool
	Of           control.ImageToThin
}

// ImageToThin returns the image that somebody means, by a name or an id, of a node; fs.ErrNotExist if the engine knows
// none. As is the name that the thin one is to have; "" is that of the image with ThinSuffix.
func (n Node) ImageToThin(ctx context.Context, image, as string) (*Image, error) {
	name, err := thinName(image, as)
	if err != nil {
		return nil, err
	}
	told, err := control.Names.Do(ctx, n.Client, control.None{}, nil)
	switch {
	case errors.Is(err, control.ErrUnknown) || err == nil && !told.Known:
		return n.host.imageToThin(ctx, image, name)
	case err != nil:
		return nil, err
	}
	var found []status.Name
	for _, of := range preflight.NamesOf(told, image) {
		again := slices.ContainsFunc(found, func(f status.Name) bool { // for another platform
			return f.Namespace == of.Namespace && f.Name == of.Name
		})
		if of.Name != "" && !again {
			found = append(found, of)
		}
	}
	switch {
	case len(found) > 1:
		return nil, fmt.Errorf("%s means several images of containerd's: %s", image, spell(found))
	case len(found) == 1:
		return &Image{
			Name: name, InContainerd: true,
			Of: control.ImageToThin{Namespace: found[0].Namespace, Name: found[0].Name, As: name},
		}, nil
	case told.Err != "":
		return nil, errors.New(told.Err)
	}
	return nil, fmt.Errorf("containerd has no image %s in use of %s that stands on a thin one: pull or run it, or make "+
		"a thin image of an ordinary one by \"docker2cvmfs make-thin\": %w", image, n.Title, fs.ErrNotExist)
}

func spell(names []status.Name) string {
	var list []string
	for _, n := range names {
		list = append(list, fmt.Sprintf("%s (%s)", n.Name, n.Namespace))
	}
	return strings.Join(list, ", ")
}

// thinName returns the name of the thin image in full.
func thinName(image, as string) (string, error) {
	if as == "" {
		of, err := reference.ParseNormalizedNamed(image)
		if err != nil || isID(image) {
			return "", usagef("%s is no name of an image: name the thin one by --tag", image)
		}
		tagged, ok := reference.TagNameOnly(of).(reference.Tagged)
		if !ok {
			return "", usagef("%s has no tag: name the thin image by --tag", image)
		}
		as = of.Name() + ":" + tagged.Tag() + ThinSuffix
	}
	name, err := reference.ParseNormalizedNamed(as)
	if err != nil {
		return "", usagef("the name %.300q of the thin image: %w", as, err)
	}
	if _, ok := name.(reference.Digested); ok {
		return "", usagef("the name %.300q of the thin image has a digest, which is not known before", as)
	}
	return reference.TagNameOnly(name).String(), nil
}

// isID reports whether a text may be the beginning of an image's id.
func isID(text string) bool {
	return len(text) >= 12 && strings.Trim(strings.TrimPrefix(text, "sha256:"), "0123456789abcdef") == ""
}

// imageToThin returns an image of the engine with the plugin.
func (h *Host) imageToThin(ctx context.Context, image, name string) (*Image, error) {
	found, err := h.Engine.Client().ImageInspect(ctx, image)
	switch {
	case errdefs.IsNotFound(err):
		return nil, fmt.Errorf("there is no image %s on this host (\"docker pull\" brings it): %w", image,
			fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("ask the engine for image %s: %w", image, err)
	case found.GraphDriver.Data[layerFolder] == "":
		return nil, fmt.Errorf("image %s: the engine doesn't tell its layers: it isn't in the plugin's storage", image)
	}
	return &Image{Name: name, ID: found.ID, Layer: filepath.Base(found.GraphDriver.Data[layerFolder])}, nil
}
