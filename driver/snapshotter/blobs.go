package snapshotter

import (
	"cmp"
	"context"
	"encoding/json"
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
	manifest         content.Info // that names it
}

// missing returns the blobs of layers that were taken from repositories which containerd names and hasn't got, in no
// order: in any of its namespaces, as these share a snapshot, and content they don't. A blob that nothing names would
// be collected as soon as its lease ends: the image has gone, or containerd discards what was unpacked.
func (s *Snapshotter) missing(ctx context.Context) (list []lacking, err error) {
	lazy := s.table.list(func(sn *snapshot) bool { return sn.committed && !sn.hidden && sn.Lazy })
	if len(lazy) == 0 {
		return nil, nil
	}
	store := contentproxy.NewContentStore(contentapi.NewContentClient(s.cfg.Containerd))
	for _, namespace := range s.namespaces() {
		has, named := map[digest.Digest]bool{}, map[digest.Digest]content.Info{}
		if err := store.Walk(namespaces.WithNamespace(ctx, namespace), func(info content.Info) error {
			has[info.Digest] = true
			for label, value := range info.Labels {
				if strings.HasPrefix(label, keepsContent) {
					named[digest.Digest(value)] = info
				}
			}
			return nil
		}); err != nil {
			return nil, fmt.Errorf("ask containerd for blobs in its namespace %s: %w", namespace, err)
		}
		for _, sn := range lazy {
			blob := sn.blob()
			if manifest, ok := named[blob]; ok && !has[blob] {
				list = append(list, lacking{namespace, sn.Labels[snapshotters.TargetRefLabel], blob, manifest})
				has[blob] = true // once
			}
		}
	}
	return list, nil
}

// namespaces returns those of containerd's that have snapshots.
func (s *Snapshotter) namespaces() []string {
	found := map[string]bool{}
	for _, sn := range s.table.list(func(sn *snapshot) bool { return !sn.hidden }) {
		if namespace, _, named := strings.Cut(sn.Name, "/"); named {
			found[namespace] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// lackingNames returns the names of images whose blobs containerd hasn't got all: they can't be saved, and pushed only
// to where the layers are.
func (s *Snapshotter) lackingNames(ctx context.Context) ([]status.Lacking, error) {
	if s.cfg.Containerd == nil {
		return nil, nil
	}
	missing, err := s.missing(ctx)
	if err != nil {
		return nil, err
	}
	blobs := map[status.Lacking]int{}
	for _, l := range missing {
		blobs[status.Lacking{Namespace: l.namespace, Name: l.image}]++
	}
	var list []status.Lacking
	for l, n := range blobs {
		l.Blobs = n
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
	missing, err := s.missing(ctx)
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("blobs of layers from repositories can't be looked for", "err", err, "again_in", blobsEvery)
	}
	for _, l := range missing {
		log := s.cfg.Log.With("image", l.image, "namespace", l.namespace, "blob", l.blob)
		switch err := s.complete(ctx, l); {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Warn("the blob of a layer from a repository can't be had: the image can't be saved, and pushed only "+
				"where the registry has it", "err", err, "again_in", blobsEvery)
		default:
			log.Info("the blob of a layer from a repository is there now")
		}
	}
}

// complete downloads a blob into containerd's content store. A lease keeps it until containerd has seen what names it:
// the manifest that was pulled.
func (s *Snapshotter) complete(ctx context.Context, l lacking) error {
	ctx = namespaces.WithNamespace(ctx, l.namespace)
	store := contentproxy.NewContentStore(contentapi.NewContentClient(s.cfg.Containerd))
	size, err := blobSize(ctx, store, l)
	if err != nil {
		return err
	}
	blob, err := openBlob(ctx, l)
	if err != nil {
		return err
	}
	defer blob.Close()
	lease, err := leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(s.cfg.Containerd)).
		Create(ctx, leases.WithRandomID(), leases.WithExpiration(keptFor))
	if err != nil {
		return fmt.Errorf("keep a blob from containerd's collector: %w", err)
	}
	return writeBlob(leases.WithLease(ctx, lease.ID), store, blob, ocispec.Descriptor{Digest: l.blob, Size: size})
}

// maxManifest is how long a manifest may be, in bytes: what containerd and registries take.
const maxManifest = 4 << 20

// blobSize returns what an image's manifest says a blob's size is, in bytes.
func blobSize(ctx context.Context, store content.Store, l lacking) (int64, error) {
	if l.manifest.Size > maxManifest {
		return 0, fmt.Errorf("the manifest %s has %d bytes", l.manifest.Digest, l.manifest.Size)
	}
	b, err := content.ReadBlob(ctx, store, ocispec.Descriptor{Digest: l.manifest.Digest, Size: l.manifest.Size})
	if err != nil {
		return 0, fmt.Errorf("read the manifest %s: %w", l.manifest.Digest, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return 0, fmt.Errorf("the manifest %s: %w", l.manifest.Digest, err)
	}
	for _, layer := range m.Layers {
		if layer.Digest == l.blob {
			return layer.Size, nil
		}
	}
	return 0, fmt.Errorf("the manifest %s has no layer of that digest", l.manifest.Digest)
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

// writeBlob puts a blob into a content store, which refuses it if it hasn't the digest. No more is stored than the size
// of what is wanted.
func writeBlob(ctx context.Context, store content.Store, blob io.Reader, want ocispec.Descriptor) (err error) {
	ref := "cvmfs-blob-" + want.Digest.String()
	w, err := content.OpenWriter(ctx, store, content.WithRef(ref), content.WithDescriptor(want)) // waits for another
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
	n, err := io.Copy(w, io.LimitReader(blob, want.Size))
	if err != nil {
		return err
	}
	if more, _ := blob.Read(make([]byte, 1)); more > 0 || n < want.Size {
		return fmt.Errorf("the registry gives another number of bytes than the manifest says (%d)", want.Size)
	}
	if err := w.Commit(ctx, want.Size, want.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}
