package control

import "context"

// The commands that make thin images of those that were built or committed on thin ones.
const (
	// ThinLayerOf has what an image adds to a thin one published.
	ThinLayerOf Task[LayerID, ThinProgress, ThinLayer] = "Thin.Layer"
	// ThinImageOf does so, too, and has the engine make the image: containerd, but not Docker's engine behind a plugin.
	ThinImageOf Task[ImageToThin, ThinProgress, ThinImage] = "Thin.Image"
)

// LayerID names a layer as the engine's driver does.
type LayerID struct {
	Layer string `json:"layer"`
}

// ThinProgress is how many of an image's ordinary layers are published and seen.
type ThinProgress struct {
	Published int `json:"published"`
	Of        int `json:"of"`
}

// ThinLayer is a thin layer that stands for an image's layers, all but some at the bottom.
type ThinLayer struct {
	Keep       int      `json:"keep"`            // how many layers at the bottom it doesn't stand for
	Added      []string `json:"added,omitempty"` // where the layers are that were published for it, bottom to top
	Descriptor []byte   `json:"descriptor"`      // its file, thin.json
}

// ImageToThin is one of containerd's images, and the name of the thin one that is to be made of it.
type ImageToThin struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	As        string `json:"as"`
}

// ThinImage is an image that was made.
type ThinImage struct {
	Name   string   `json:"name"`
	ID     string   `json:"id"`              // digest of its manifest, or of its configuration
	Layers []string `json:"added,omitempty"` // as ThinLayer.Added
}

// Thinner makes thin images.
type Thinner interface {
	ThinLayer(ctx context.Context, q LayerID, tell func(ThinProgress)) (ThinLayer, error)
	ThinImage(ctx context.Context, q ImageToThin, tell func(ThinProgress)) (ThinImage, error)
}

// registerThin has a handler make thin images.
func (h *Handler) registerThin(n Thinner) {
	perform(h, ThinLayerOf, n.ThinLayer)
	perform(h, ThinImageOf, n.ThinImage)
}
