package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"cvmfs-graphdriver/pushback"
	"cvmfs-graphdriver/thin"
)

// appearWait is how long a layer that is published may take to be seen: proxies keep manifests for a while.
const appearWait = 2 * time.Minute

// PushBack has what a container adds to a thin image published, and returns the archive of the thin layer that stands
// for it: the image's descriptor, with the new layer last. below is the container's -init layer, and archive makes the
// archive of what is above it.
//
// It is nil where the container's layer is to stay an ordinary one: no settings are there, the image's topmost layer
// isn't thin, or nothing was added. Where a layer can't be published it is an error, and not an ordinary
// layer that nobody asked for.
func (n *Node) PushBack(ctx context.Context, below string, archive func() (io.ReadCloser, error)) ([]byte, error) {
	settings, err := n.pushBackSettings()
	if err != nil || settings == nil {
		return nil, err
	}
	image, err := n.thinBelow(below)
	if err != nil || image == nil {
		return nil, err
	}
	layer, err := n.publish(ctx, settings, archive, image.Origin)
	if errors.Is(err, pushback.ErrEmpty) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	image.Layers = append(image.Layers, *layer)
	descriptor, err := image.Encode()
	if err != nil {
		return nil, err
	}
	return thin.Archive(descriptor)
}

// publish has a layer published that stands on an image of that origin, and returns it once it is seen here. It is
// pushback.ErrEmpty of one without entries.
func (n *Node) publish(ctx context.Context, s *pushback.Settings, archive func() (io.ReadCloser, error), origin string,
) (*thin.Layer, error) {
	content, err := archive()
	if err != nil {
		return nil, err
	}
	defer content.Close()
	pusher, err := n.pusher()
	if err != nil {
		return nil, err
	}
	published, err := pusher.Push(ctx, s, content, origin)
	if err != nil {
		return nil, err
	}
	return n.appears(ctx, published)
}

// pusher returns what sends layers, made when it is needed first.
func (n *Node) pusher() (*pushback.Pusher, error) {
	n.pushing.Lock()
	defer n.pushing.Unlock()
	if n.pushes == nil {
		p, err := pushback.New(n.Path("push-back"), n.cfg.Log)
		if err != nil {
			return nil, fmt.Errorf("keep layers on their way to be published: %w", err)
		}
		n.pushes = p
	}
	return n.pushes, nil
}

// thinBelow returns the descriptor of the image that a container's -init layer stands on; nil if the topmost layer of
// that isn't thin.
func (n *Node) thinBelow(init string) (*thin.Descriptor, error) {
	chain, _, err := n.layers.Chain(init)
	if err != nil {
		return nil, err
	}
	if len(chain) < 2 {
		return nil, nil
	}
	return chain[len(chain)-2].Thin, nil
}

// appears waits until the layer that was published is in the newest revision of its repository that this node sees.
func (n *Node) appears(ctx context.Context, p *pushback.Published) (*thin.Layer, error) {
	layer, err := thin.ParseLayer(p.URL, p.Digest)
	if err != nil {
		return nil, fmt.Errorf("where the service says layer %s is: %w", p.Digest, err)
	}
	c, err := n.configured()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, appearWait,
		fmt.Errorf("%s isn't there after %v", p.URL, appearWait))
	defer cancel()
	for {
		err := n.lookFor(ctx, c, &layer)
		if err == nil {
			layer.DiffID, layer.Size = p.DiffID, p.Size
			return &layer, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
			return nil, fmt.Errorf("layer %s is published, and isn't seen here: %w (commit again: it isn't sent again)",
				p.Digest, errors.Join(context.Cause(ctx), err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (n *Node) lookFor(ctx context.Context, c *configuration, l *thin.Layer) error {
	if c.repositories == nil {
		return fmt.Errorf("the repository %s isn't configured on this host", l.FQRN)
	}
	r, err := c.repositories.Repository(l.FQRN)
	if err != nil {
		return err
	}
	v, err := r.Refresh(ctx)
	if err != nil {
		return err
	}
	e, err := v.Lookup(ctx, l.Path)
	if err == nil && !e.IsDir() {
		err = fmt.Errorf("%s is no folder", l.URL())
	}
	return err
}

// InitSuffix is what engines put behind a container's name to name the layer between it and its image.
const InitSuffix = "-init"
