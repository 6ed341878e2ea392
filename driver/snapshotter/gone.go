package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/thin"
)

// A layer that was taken from a repository may leave it before anything was composed of it. containerd knows the
// snapshot by then and asks for nothing more: no pull would bring the layer. So its blob, which containerd has, or the
// registry, is unpacked in its place.

// refillTime bounds how long a container that is to be started waits for blobs.
const refillTime = 10 * time.Minute

// blob is that of the layer, as containerd had it; "" if it didn't say.
func (sn *snapshot) blob() digest.Digest {
	return digest.Digest(sn.Labels[snapshotters.TargetLayerDigestLabel])
}

// canBeShown reports whether a layer that was taken from a repository can still be had: it is unpacked, or composed, or
// its repository has it where it was, or doesn't say.
func (s *Snapshotter) canBeShown(ctx context.Context, sn snapshot) bool {
	stack, err := s.layers.Describe(sn.id)
	if err != nil {
		return false // it is being removed
	}
	if stack.Thin != sn.id || stack.Image != "" && s.node.HasImage(stack.Image) {
		return true
	}
	layer, err := s.layerOf(sn)
	if err != nil {
		return false
	}
	found, err := s.finder.findIn(ctx, layer.FQRN, layer.Digest)
	return err == nil && found.URL() == layer.URL() || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// layerOf returns where a layer was that was taken from a repository.
func (s *Snapshotter) layerOf(sn snapshot) (thin.Layer, error) {
	d, err := s.layers.Descriptor(sn.id)
	if err == nil && (d == nil || len(d.Layers) != 1) {
		err = fmt.Errorf("layer %s: its descriptor doesn't name one layer", sn.id)
	}
	if err != nil {
		return thin.Layer{}, err
	}
	return d.Layers[0], nil
}

// replaceGone unpacks the blob of a layer in its place if an error in showing a snapshot is that the layer has left its
// repository, and nil is returned; else the error is.
func (s *Snapshotter) replaceGone(ctx context.Context, sn snapshot, because error) error {
	gone, is := node.Gone(because)
	if !is {
		return because
	}
	lost, err := s.replaceable(sn, gone.Digest)
	if lost == nil || err != nil {
		return errors.Join(because, err)
	}
	ctx, cancel := context.WithTimeout(ctx, refillTime)
	defer cancel()
	if err := s.refill(ctx, *lost); err != nil {
		return fmt.Errorf("%w; its blob can't be had either: %w: remove the image and the containers made of it, and pull it "+
			"again", because, err)
	}
	s.cfg.Log.Warn("a layer has left its repository: it was unpacked from its blob", "name", lost.Name, "layer", gone.URL(),
		"blob", lost.blob())
	return nil
}

// replaceable returns the layer below a snapshot that is to be unpacked, as the one of a blob has left its repository;
// nil if there is none. It is that one, unless it was composed: a mount may read from that image. Then it is the
// topmost thin one, which is shown on top of the image, as is what comes between in the end.
func (s *Snapshotter) replaceable(sn snapshot, blob string) (*snapshot, error) {
	var top *snapshot
	for _, below := range s.table.ancestors(sn) {
		stack, err := s.layers.Describe(below.id)
		if err != nil {
			return nil, err
		}
		if stack.Thin != below.id {
			continue
		}
		composed := stack.Image != "" && s.node.HasImage(stack.Image)
		if top == nil && !composed {
			top = &below
		}
		if !below.Lazy || below.blob() != digest.NewDigestFromEncoded(digest.SHA256, blob) {
			continue
		}
		if !composed {
			return &below, nil
		}
		if top == nil || !top.Lazy {
			return nil, nil
		}
		return top, nil
	}
	return nil, nil
}

// refill unpacks the blob of a layer that was taken from a repository in its place, unless somebody has done so.
func (s *Snapshotter) refill(ctx context.Context, lost snapshot) error {
	if s.cfg.Containerd == nil {
		return errors.New("there is no connection to containerd")
	}
	blob, err := s.stored(ctx, lost.blob())
	if errdefs.IsNotFound(err) {
		failed := s.completeOne(ctx, lost.blob())
		// Also after a failure: another container may have had it downloaded meanwhile, so that it isn't missing.
		if blob, err = s.stored(ctx, lost.blob()); failed != nil && errdefs.IsNotFound(err) {
			err = failed
		}
	}
	if err != nil {
		return err
	}
	defer blob.Close()
	sn, now, unlock, err := s.lock(lost.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if stack, err := s.layers.Describe(now.id); err != nil || stack.Thin != now.id {
		return err
	}
	layer, err := s.layerOf(now)
	if err != nil {
		return err
	}
	plain := readPlain(bufio.NewReaderSize(content.NewReader(blob), readSize), true)
	err = s.layers.Refill(ctx, now.id, plain, func(folder string) ([]byte, error) {
		archive, err := plain.close(nil)
		if err != nil {
			return nil, err
		}
		if archive.Digest.Encoded() != layer.DiffID {
			return nil, fmt.Errorf("the blob %s has the diffID %s, not %s", lost.blob(), archive.Digest.Encoded(), layer.DiffID)
		}
		taken, err := usageOf(ctx, folder)
		if err != nil {
			return nil, err
		}
		now.Usage = &taken
		return now.encode()
	})
	if _, err := plain.close(err); err != nil {
		return err
	}
	s.table.change(sn, now.record, true)
	return nil
}

// stored opens a blob that containerd has, in any of its namespaces.
func (s *Snapshotter) stored(ctx context.Context, blob digest.Digest) (content.ReaderAt, error) {
	store := contentproxy.NewContentStore(contentapi.NewContentClient(s.cfg.Containerd))
	for _, namespace := range s.namespaces() {
		r, err := store.ReaderAt(namespaces.WithNamespace(ctx, namespace), ocispec.Descriptor{Digest: blob})
		if !errdefs.IsNotFound(err) {
			return r, err
		}
	}
	return nil, fmt.Errorf("containerd hasn't got the blob %s: %w", blob, errdefs.ErrNotFound)
}

// completeOne has containerd have a blob.
func (s *Snapshotter) completeOne(ctx context.Context, blob digest.Digest) error {
	missing, err := s.missing(ctx)
	if err != nil {
		return err
	}
	failed := fmt.Errorf("no image of containerd's names the blob %s", blob)
	for _, l := range missing {
		if l.blob != blob {
			continue
		}
		if failed = s.complete(ctx, l); failed == nil {
			return nil
		}
	}
	return failed
}
