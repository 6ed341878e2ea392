package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/pushback"
	"cvmfs-graphdriver/thin"
)

// thinAtOnce is how many layers of an image are archived and sent at once. The service publishes what waits together.
const thinAtOnce = 4

var (
	errNoPushBack = errors.New("push-back isn't set up on this host: docs/pushback.md says how")
	errNotOnThin  = errors.New("none of its layers is thin: \"docker2cvmfs make-thin\" makes a thin image of an " +
		"ordinary one, and what is built or committed on that can be made thin here")
	errIsThin = errors.New("it is a thin image already, with no ordinary layer on top")
)

// ThinLayer has what is above the topmost thin layer of an image published, as PushBack has what a container adds, and
// returns the descriptor of the thin layer that stands for the topmost thin one and all above it. The image is named by
// its topmost layer. Ordinary layers that hold nothing are left out.
func (n *Node) ThinLayer(ctx context.Context, q control.LayerID, tell func(control.ThinProgress)) (control.ThinLayer,
	error,
) {
	return n.thinLayerOf(ctx, q.Layer, nil, tell)
}

// thinLayerOf is ThinLayer for an image that only some of its topmost layer's ancestors are layers of; nil for all.
func (n *Node) thinLayerOf(ctx context.Context, top string, only []string, tell func(control.ThinProgress)) (
	control.ThinLayer, error,
) {
	made, err := n.thinLayer(ctx, top, only, tell)
	if err != nil {
		return control.ThinLayer{}, fmt.Errorf("make a thin layer of layer %s and what it stands on: %w", top, err)
	}
	return *made, nil
}

func (n *Node) thinLayer(ctx context.Context, top string, only []string, tell func(control.ThinProgress)) (
	*control.ThinLayer, error,
) {
	settings, err := n.pushBackSettings()
	if err != nil {
		return nil, err
	}
	if settings == nil {
		return nil, errNoPushBack
	}
	keep, image, ordinary, err := n.onThin(top, only)
	if err != nil {
		return nil, err
	}
	if err := room(image, len(ordinary)); err != nil {
		return nil, err
	}
	added := make([]*thin.Layer, len(ordinary))
	var telling sync.Mutex // guards done
	done := 0
	work, working := errgroup.WithContext(ctx)
	work.SetLimit(thinAtOnce)
	for i, l := range ordinary {
		work.Go(func() (err error) {
			archive := func() (io.ReadCloser, error) { return n.layers.Diff(working, l.ID, l.Parent) }
			if added[i], err = n.publish(working, settings, archive, image.Origin); errors.Is(err, pushback.ErrEmpty) {
				err = nil
			}
			if err != nil {
				return err
			}
			telling.Lock()
			defer telling.Unlock()
			done++
			tell(control.ThinProgress{Published: done, Of: len(ordinary)})
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	made := &control.ThinLayer{Keep: keep}
	for _, l := range added {
		if l != nil {
			image.Layers, made.Added = append(image.Layers, *l), append(made.Added, l.URL())
		}
	}
	made.Descriptor, err = image.Encode()
	return made, err
}

// pushBackSettings returns those of push-back; nil where there are none.
func (n *Node) pushBackSettings() (*pushback.Settings, error) {
	if n.cfg.PushBack == "" {
		return nil, nil
	}
	settings, err := pushback.Read(n.cfg.PushBack)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return settings, err
}

// onThin returns what an image consists of: how many layers at the bottom its topmost thin layer says nothing of, the
// descriptor of that, and the ordinary layers above, bottom to top.
func (n *Node) onThin(top string, only []string) (keep int, image *thin.Descriptor, ordinary []layers.Ancestor,
	err error,
) {
	if err := layers.CheckID(top); err != nil {
		return 0, nil, nil, err
	}
	all, err := n.layers.Ancestry(top)
	if err != nil {
		return 0, nil, nil, err
	}
	if only != nil {
		all = slices.DeleteFunc(all, func(l layers.Ancestor) bool { return !slices.Contains(only, l.ID) })
		if len(all) != len(only) {
			return 0, nil, nil, fmt.Errorf("it stands on %d of the image's %d layers", len(all)-1, len(only))
		}
	}
	keep = -1
	for i, l := range all {
		if l.Thin != nil {
			keep = i
		}
	}
	switch keep {
	case -1:
		return 0, nil, nil, errNotOnThin
	case len(all) - 1:
		return 0, nil, nil, errIsThin
	}
	image, ordinary = all[keep].Thin, all[keep+1:]
	for keep > 0 && all[keep-1].Thin != nil && beginsWith(image.Layers, all[keep-1].Thin.Layers) {
		keep-- // a commit's thin layer names all that the image's has
	}
	return keep, image, ordinary, nil
}

func beginsWith(list, first []thin.Layer) bool {
	return len(first) <= len(list) && slices.Equal(list[:len(first)], first)
}

// ThinImage makes a thin image of one of the engine's, where the node can have the engine make one.
func (n *Node) ThinImage(ctx context.Context, q control.ImageToThin, tell func(control.ThinProgress)) (
	control.ThinImage, error,
) {
	c, err := n.configured()
	if err != nil {
		return control.ThinImage{}, err
	}
	return c.face.ThinImage(ctx, q, func(ids []string) (control.ThinLayer, error) {
		return n.thinLayerOf(ctx, ids[len(ids)-1], ids, tell)
	})
}
