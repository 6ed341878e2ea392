package node

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/internal/layertar"
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
	if err := room(image, 1); err != nil {
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
	if _, err := n.publishesIn(s.CvmfsRepo); err != nil {
		return nil, err
	}
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
	defer published.Close() // it is read from
	layer, revision, err := n.appears(ctx, published)
	if err != nil {
		return nil, err
	}
	if err := n.takeIn(ctx, revision, layer.Path, published); err != nil {
		n.cfg.Log.Info("files of a layer that was published here are fetched when they are used", "layer", layer.Digest,
			"why", err)
	}
	return layer, nil
}

// publishesIn returns the repository that layers are published in. Nothing is sent for one that images here may not
// name.
func (n *Node) publishesIn(fqrn string) (*client.Repository, error) {
	c, err := n.configured()
	if err != nil {
		return nil, err
	}
	if c.repositories == nil {
		return nil, fmt.Errorf("the repository %s isn't configured on this host", fqrn)
	}
	r, err := c.repositories.Repository(fqrn)
	if err != nil {
		return nil, fmt.Errorf("layers are to be published in %s, which images here can't use: %w", fqrn, err)
	}
	return r, nil
}

// takeIn makes the files of a layer that was published be in the object store, from its archive: those that are what
// the revision says, by their digests. Both are in the same order. The error is why some are not.
func (n *Node) takeIn(ctx context.Context, v *client.Revision, layer string, p *pushback.Published) error {
	settings, err := n.Settings()
	if err != nil {
		return err
	}
	content, err := p.Archive()
	if err != nil {
		return err
	}
	archive := tar.NewReader(content)
	at, err := nextOf(archive)
	taken, others := 0, 0
	if err := errors.Join(err, v.Walk(ctx, layer, func(e *client.Node) error {
		if !e.IsRegular() || e.Size == 0 {
			return nil
		}
		own := strings.TrimPrefix(e.Path, layer+"/")
		var err error
		for err == nil && inWalk(at.name) < inWalk(own) {
			at, err = nextOf(archive)
		}
		if err != nil || at.name != own || at.Typeflag != tar.TypeReg {
			return err
		}
		object, err := objects.FromEntry(e.Entry, e.Path)
		if err != nil {
			return err
		}
		err = n.objects.Put(ctx, &object, object.PlaceIn(v.FQRN, settings.Isolate), archive)
		switch {
		case err == nil:
			taken++
		case errors.Is(err, objects.ErrOther):
			if others++; taken > 0 || others < foreign {
				err = nil
			}
		}
		return err
	})); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if others > 0 {
		return fmt.Errorf("%d of %d files: %w", others, taken+others, objects.ErrOther)
	}
	return nil
}

// foreign is after how many files, if none of them could be told to be what was published, the publisher is taken for
// another program, which compresses otherwise.
const foreign = 16

// archived is an entry of an archive, with its name as a layer has it.
type archived struct {
	*tar.Header
	name string
}

// nextOf passes over whiteouts, which lie where what they hide would, and not where their names do.
func nextOf(archive *tar.Reader) (archived, error) {
	for {
		h, err := archive.Next()
		if err != nil {
			return archived{}, err
		}
		if !strings.HasPrefix(path.Base(h.Name), layertar.WhiteoutPrefix) {
			return archived{h, strings.TrimPrefix(path.Clean("/"+h.Name), "/")}, nil
		}
	}
}

// inWalk returns what paths are to be compared by, so that a folder's content comes right behind it.
func inWalk(path string) string { return strings.ReplaceAll(path, "/", "\x00") }

// room refuses more layers than a descriptor takes, before any is published.
func room(image *thin.Descriptor, more int) error {
	if n := len(image.Layers) + more; n > thin.MaxLayers {
		return fmt.Errorf("the image would have %d layers, and at most %d can be named: start from a thin image "+
			"of fewer layers", n, thin.MaxLayers)
	}
	return nil
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
func (n *Node) appears(ctx context.Context, p *pushback.Published) (*thin.Layer, *client.Revision, error) {
	layer, err := thin.ParseLayer(p.URL, p.Digest)
	if err != nil {
		return nil, nil, fmt.Errorf("where the service says layer %s is: %w", p.Digest, err)
	}
	layer.DiffID, layer.Size = p.DiffID, p.Size
	ctx, cancel := context.WithTimeoutCause(ctx, appearWait,
		fmt.Errorf("%s isn't there after %v", p.URL, appearWait))
	defer cancel()
	for {
		revision, err := n.lookFor(ctx, &layer)
		if err == nil {
			return &layer, revision, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
			return nil, nil, fmt.Errorf("layer %s is published, and isn't seen here: %w (try again: it isn't sent "+
				"again)", p.Digest, errors.Join(context.Cause(ctx), err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// lookFor asks for the newest revision, and returns it if it has the layer: by the info beside it, if there is one,
// that of the same archive.
func (n *Node) lookFor(ctx context.Context, l *thin.Layer) (*client.Revision, error) {
	r, err := n.publishesIn(l.FQRN)
	if err != nil {
		return nil, err
	}
	v, err := r.Refresh(ctx)
	if err != nil {
		return nil, err
	}
	e, err := v.Lookup(ctx, l.Path)
	if err != nil {
		return nil, err
	}
	if !e.IsDir() {
		return nil, fmt.Errorf("%s is no folder", l.URL())
	}
	info, err := infoOf(ctx, v, l.Path, l.Digest)
	switch {
	case errors.Is(err, fs.ErrNotExist): // a service of 2017 writes none
		return v, nil
	case errors.Is(err, errInfo):
		return nil, fmt.Errorf("%s isn't the layer that was sent: %w", l.URL(), err)
	case err != nil:
		return nil, err
	case info.DiffID != l.DiffID:
		return nil, fmt.Errorf("%s is another layer, with the diffID %s", l.URL(), info.DiffID)
	}
	return v, nil
}

// InitSuffix is what engines put behind a container's name to name the layer between it and its image.
const InitSuffix = "-init"
