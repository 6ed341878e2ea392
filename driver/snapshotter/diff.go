package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/node"
)

// Differ unpacks the archives of images, and makes those of what containers have changed, for containerd's diff
// service. For that it reads the snapshot's own folder and nothing below it, where containerd's own one compares whole
// trees, and so reads an image. What it doesn't know is left to the next of containerd's differs.
type Differ struct {
	s      *Snapshotter
	store  content.Store  // containerd's
	leases leases.Manager // likewise
}

// compressions are what archives are written through, by media type.
var compressions = map[string]func(w io.Writer) (io.WriteCloser, error){
	ocispec.MediaTypeImageLayer:            uncompressed,
	ocispec.MediaTypeImageLayerGzip:        gzipped,
	ocispec.MediaTypeImageLayerZstd:        zstandard,
	images.MediaTypeDockerSchema2Layer:     uncompressed,
	images.MediaTypeDockerSchema2LayerGzip: gzipped,
	images.MediaTypeDockerSchema2LayerZstd: zstandard,
}

func uncompressed(w io.Writer) (io.WriteCloser, error) { return unclosed{w}, nil }

// unclosed is a writer that isn't to be closed with what is written to it.
type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

func gzipped(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }

func zstandard(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }

// keptFor is how long an archive stays that nothing names yet: who asked for it names it next.
const keptFor = time.Hour

var (
	_ diff.Comparer = (*Differ)(nil)
	_ diff.Applier  = (*Differ)(nil)
)

// NewDiffer makes a differ that puts archives into the content store of the containerd at a connection.
func NewDiffer(s *Snapshotter, containerd grpc.ClientConnInterface) *Differ {
	return &Differ{
		s: s, store: contentproxy.NewContentStore(contentapi.NewContentClient(containerd)),
		leases: leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(containerd)),
	}
}

// Compare makes the archive of an active snapshot, whose mounts are upper, against its parent, whose mounts are lower.
func (d *Differ) Compare(
	ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt,
) (ocispec.Descriptor, error) {
	var cfg diff.Config
	for _, opt := range opts {
		if err := opt(&cfg); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if cfg.MediaType == "" {
		cfg.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	sn := d.find(ctx, lower, upper)
	if sn == nil || compressions[cfg.MediaType] == nil || cfg.Compressor != nil {
		return ocispec.Descriptor{}, errdefs.ErrNotImplemented
	}
	args := layers.DiffArgs{IDs: sn.ids()}
	if cfg.SourceDateEpoch != nil {
		args.Newest = *cfg.SourceDateEpoch
	}
	parent := ""
	if sn.parent != nil {
		parent = sn.parent.id
	}
	archive, err := d.archive(ctx, sn, func() (io.ReadCloser, error) {
		return d.s.layers.DiffAs(ctx, sn.id, parent, args)
	})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("diff of snapshot %q: %w", sn.Name, err)
	}
	defer archive.Close()
	var made ocispec.Descriptor
	if ctx, err = d.keep(ctx, sn.Name); err == nil {
		made, err = d.write(ctx, archive, cfg)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("diff of snapshot %q: %w", sn.Name, err)
	}
	return made, nil
}

// active returns what is the active snapshot of some mounts; nil if there is none.
func (d *Differ) active(mounts []mount.Mount) *snapshot {
	if len(mounts) != 1 {
		return nil
	}
	folder := mounts[0].Source
	for _, option := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
			folder = dir
		}
	}
	found := d.s.table.list(func(sn *snapshot) bool {
		return !sn.hidden && sn.kind() == snapshots.KindActive && d.s.layers.Content(sn.id) == folder
	})
	if len(found) != 1 {
		return nil
	}
	return &found[0]
}

// find returns the active snapshot whose mounts are upper, if lower is what it stands on; nil if there is none.
func (d *Differ) find(ctx context.Context, lower, upper []mount.Mount) *snapshot {
	sn := d.active(upper)
	if sn == nil {
		return nil
	}
	if sn.parent == nil {
		empty := len(lower) == 0 || len(lower) == 1 && len(d.s.table.list(func(view *snapshot) bool {
			return view.View && view.parent == nil && d.s.layers.Content(view.id) == lower[0].Source
		})) == 1
		if !empty {
			return nil
		}
		return sn
	}
	// Who asks views the parent without a mapping, also where that of the snapshot is mapped.
	below, err := d.s.show(ctx, snapshot{parent: sn.parent, record: record{Name: sn.Name, View: true}})
	if err != nil {
		return nil // the next differ says why
	}
	if mounts, err := below.mounts(); err != nil || !reflect.DeepEqual(mounts, lower) {
		return nil
	}
	return sn
}

// archive returns that of a snapshot, which of a container of Docker's on a thin image may be the descriptor of a thin
// layer, as node.PushBack has it.
func (d *Differ) archive(ctx context.Context, sn *snapshot,
	ordinary func() (io.ReadCloser, error),
) (io.ReadCloser, error) {
	if sn.parent != nil && own(sn.parent.Name) == own(sn.Name)+node.InitSuffix {
		pushed, err := d.s.node.PushBack(ctx, sn.parent.id, ordinary)
		if err != nil {
			return nil, err
		}
		if pushed != nil {
			return io.NopCloser(bytes.NewReader(pushed)), nil
		}
	}
	return ordinary()
}

// inNamespace has what is asked of containerd be of the namespace of a snapshot: up to 1.7 calls that come by way of
// containerd bring none along.
func inNamespace(ctx context.Context, name string) context.Context {
	namespace, ok := namespaces.Namespace(ctx)
	if !ok {
		namespace, _, _ = strings.Cut(name, "/")
	}
	return namespaces.WithNamespace(ctx, namespace)
}

// keep has what is written to containerd be of the namespace of a snapshot, and stay until it is named. Calls that come
// by way of containerd bring no lease along: what had none would go with the next collection.
func (d *Differ) keep(ctx context.Context, name string) (context.Context, error) {
	ctx = inNamespace(ctx, name)
	if lease, ok := leases.FromContext(ctx); ok {
		return leases.WithLease(ctx, lease), nil
	}
	lease, err := d.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(keptFor))
	if err != nil {
		return nil, fmt.Errorf("keep an archive from containerd's collector: %w", err)
	}
	return leases.WithLease(ctx, lease.ID), nil
}

// write puts an archive into the content store.
func (d *Differ) write(ctx context.Context, archive io.Reader, cfg diff.Config) (_ ocispec.Descriptor, err error) {
	ref := cfg.Reference
	if ref == "" {
		ref = "cvmfs-diff-" + uuid.NewString()
	}
	w, err := d.store.Writer(ctx, content.WithRef(ref),
		content.WithDescriptor(ocispec.Descriptor{MediaType: cfg.MediaType}))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() {
		err = errors.Join(err, w.Close())
		if err != nil && cfg.Reference == "" {
			err = errors.Join(err, d.store.Abort(context.WithoutCancel(ctx), ref))
		}
	}()
	if err := w.Truncate(0); err != nil {
		return ocispec.Descriptor{}, err
	}
	plain := digest.SHA256.Digester()
	z, err := compressions[cfg.MediaType](w)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := io.Copy(io.MultiWriter(z, plain.Hash()), archive); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := z.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	return d.commit(ctx, w, cfg, plain.Digest())
}

// commit makes what was written content, which may be there already.
func (d *Differ) commit(
	ctx context.Context, w content.Writer, cfg diff.Config, plain digest.Digest,
) (ocispec.Descriptor, error) {
	said := maps.Clone(cfg.Labels)
	if said == nil {
		said = map[string]string{}
	}
	said[labels.LabelUncompressed] = plain.String()
	made := w.Digest()
	if err := w.Commit(ctx, 0, made, content.WithLabels(said)); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, err
	}
	info, err := d.store.Info(ctx, made)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if info.Labels[labels.LabelUncompressed] == "" {
		info.Labels = said
		if _, err := d.store.Update(ctx, info, "labels."+labels.LabelUncompressed); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	return ocispec.Descriptor{MediaType: cfg.MediaType, Size: info.Size, Digest: info.Digest}, nil
}
