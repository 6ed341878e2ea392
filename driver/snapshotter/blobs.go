package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	registryname "github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/internal/registry"
)

const (
	// settleTime passes after a layer was taken until its blob is downloaded: the container that was pulled for reads
	// first.
	settleTime = 20 * time.Second
	// blobsEvery is how often blobs that could not be had are asked for again.
	blobsEvery = 10 * time.Minute
	// userAgent is who asks registries.
	userAgent = "cvmfs-snapshotter"
)

// lacking is a blob that was not downloaded, as a repository has its layer.
type lacking struct {
	namespace, image string // of containerd; the name that was pulled
	blob             digest.Digest
}

// lacked returns the blobs of the layers that were taken from repositories, in no order.
func (s *Snapshotter) lacked() []lacking {
	found := map[lacking]bool{}
	for _, sn := range s.table.list(func(sn *snapshot) bool { return sn.committed && !sn.hidden && sn.Lazy }) {
		namespace, _, _ := strings.Cut(sn.Name, "/")
		found[lacking{
			namespace, sn.Labels[snapshotters.TargetRefLabel],
			digest.Digest(sn.Labels[snapshotters.TargetLayerDigestLabel]),
		}] = true
	}
	return slices.Collect(maps.Keys(found))
}

// lackingNames returns the names of images whose blobs containerd hasn't got all: they can't be saved, and pushed only
// to where the layers are.
func (s *Snapshotter) lackingNames(ctx context.Context) ([]status.Lacking, error) {
	if s.cfg.Containerd == nil {
		return nil, nil
	}
	store := contentproxy.NewContentStore(contentapi.NewContentClient(s.cfg.Containerd))
	var list []status.Lacking
	missing := map[status.Lacking]int{}
	for _, l := range s.lacked() {
		_, err := store.Info(namespaces.WithNamespace(ctx, l.namespace), l.blob)
		if errdefs.IsNotFound(err) {
			missing[status.Lacking{Namespace: l.namespace, Name: l.image}]++
		} else if err != nil {
			return nil, fmt.Errorf("ask containerd for blobs: %w", err)
		}
	}
	for l, blobs := range missing {
		l.Blobs = blobs
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b status.Lacking) int {
		return strings.Compare(a.Namespace+" "+a.Name, b.Namespace+" "+b.Name)
	})
	return list, nil
}

// Run downloads the blobs of layers that were taken from repositories, one after the other, until ctx ends: saving an
// image, and pushing it to another registry, needs them. Which ones containerd hasn't got is asked anew each time.
func (s *Snapshotter) Run(ctx context.Context) {
	if s.finder == nil || s.cfg.Containerd == nil {
		return
	}
	for wait := time.Duration(0); ; wait = blobsEvery {
		select {
		case <-ctx.Done():
			return
		case <-s.taken:
		case <-time.After(wait):
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(cmp.Or(s.cfg.Settle, settleTime)):
		}
		s.completeBlobs(ctx)
	}
}

// completeBlobs downloads what is missing and can be had.
func (s *Snapshotter) completeBlobs(ctx context.Context) {
	for _, l := range s.lacked() {
		log := s.cfg.Log.With("image", l.image, "namespace", l.namespace, "blob", l.blob)
		switch fetched, err := s.complete(ctx, l); {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Warn("the blob of a layer from a repository can't be had: the image can't be saved, and pushed only "+
				"where the registry has it", "err", err, "again_in", blobsEvery)
		case fetched:
			log.Info("the blob of a layer from a repository is there now")
		}
	}
}

// complete downloads a blob into containerd's content store unless it is there. A lease keeps it until containerd has
// seen what names it: the manifest that was pulled.
func (s *Snapshotter) complete(ctx context.Context, l lacking) (fetched bool, err error) {
	ctx = namespaces.WithNamespace(ctx, l.namespace)
	store := contentproxy.NewContentStore(contentapi.NewContentClient(s.cfg.Containerd))
	if _, err := store.Info(ctx, l.blob); !errdefs.IsNotFound(err) {
		return false, err
	}
	lease, err := leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(s.cfg.Containerd)).
		Create(ctx, leases.WithRandomID(), leases.WithExpiration(keptFor))
	if err != nil {
		return false, fmt.Errorf("keep a blob from containerd's collector: %w", err)
	}
	blob, err := openBlob(ctx, l)
	if err != nil {
		return false, err
	}
	defer blob.Close()
	return true, writeBlob(leases.WithLease(ctx, lease.ID), store, blob, l.blob)
}

// openBlob asks the registry for a blob, with the credentials that root's Docker has for it, if any.
func openBlob(ctx context.Context, l lacking) (io.ReadCloser, error) {
	image, err := registryname.ParseReference(l.image)
	if err != nil {
		return nil, fmt.Errorf("the name %.300q that was pulled: %w", l.image, err)
	}
	o := registry.Options{Keychain: authn.DefaultKeychain, UserAgent: userAgent}
	layer, err := remote.Layer(image.Context().Digest(l.blob.String()), o.Remote(ctx)...)
	if err != nil {
		return nil, registry.Explain(image, err)
	}
	blob, err := layer.Compressed()
	if err != nil {
		return nil, registry.Explain(image, err)
	}
	return blob, nil
}

// writeBlob puts a blob into a content store, which refuses it if it hasn't the digest.
func writeBlob(ctx context.Context, store content.Store, blob io.Reader, want digest.Digest) (err error) {
	ref := "cvmfs-blob-" + want.String()
	w, err := store.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{Digest: want}))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.Truncate(0); err != nil {
		return err
	}
	if _, err := io.Copy(w, blob); err != nil {
		return err
	}
	if err := w.Commit(ctx, 0, want); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}
