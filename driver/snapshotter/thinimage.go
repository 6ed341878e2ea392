package snapshotter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	containertypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/thin"
)

// thinStep is who makes the topmost layer of an image that is made thin, as its history tells.
const thinStep = "cvmfs-graphdriver thin"

// ThinImage makes a thin image of one of containerd's that is unpacked here. containerd gets its blobs, has its new
// layer unpacked, and gets its name last: what is left by an end before that goes with the lease that kept it.
func (f faceOf) ThinImage(ctx context.Context, q control.ImageToThin,
	publish func(layers []string) (control.ThinLayer, error),
) (control.ThinImage, error) {
	made, err := f.thinImage(namespaces.WithNamespace(ctx, q.Namespace), q, publish)
	if err != nil {
		return control.ThinImage{}, fmt.Errorf("make %s of %s in containerd's namespace %s: %w", q.As, q.Name,
			q.Namespace, err)
	}
	return *made, nil
}

func (f faceOf) thinImage(ctx context.Context, q control.ImageToThin,
	publish func(layers []string) (control.ThinLayer, error),
) (*control.ThinImage, error) {
	if f.cfg.Containerd == nil {
		return nil, errors.New("there is no connection to containerd")
	}
	d := NewDiffer(f.Snapshotter, f.cfg.Containerd)
	image, err := d.unpacked(ctx, q.Namespace, q.Name)
	if err != nil {
		return nil, err
	}
	layer, err := publish(image.layers)
	if err != nil {
		return nil, err
	}
	if ctx, err = d.keep(ctx, q.Namespace+"/"+q.Name); err != nil {
		return nil, err
	}
	target, err := d.makeThin(ctx, f.cfg.Containerd, image, &layer)
	if err != nil {
		return nil, err
	}
	if err := nameImage(ctx, f.cfg.Containerd, q.As, target); err != nil {
		return nil, err
	}
	return &control.ThinImage{Name: q.As, ID: target.Digest.String(), Layers: layer.Added}, nil
}

// unpackedImage is an image of containerd's for one platform, whose layers are snapshots here.
type unpackedImage struct {
	name     string
	manifest ocispec.Manifest
	config   []byte
	layers   []string // ids, bottom to top
	kept     string   // the label by which its configuration keeps the snapshot
}

// unpacked returns an image, of several platforms the first whose layers are here.
func (d *Differ) unpacked(ctx context.Context, namespace, name string) (*unpackedImage, error) {
	got, err := imagesapi.NewImagesClient(d.s.cfg.Containerd).Get(ctx, &imagesapi.GetImageRequest{Name: name})
	if err != nil {
		return nil, fmt.Errorf("ask containerd for the image: %w", errgrpc.ToNative(err))
	}
	target := ocispec.Descriptor{
		MediaType: got.GetImage().GetTarget().GetMediaType(), Size: got.GetImage().GetTarget().GetSize(),
		Digest: digest.Digest(got.GetImage().GetTarget().GetDigest()),
	}
	manifests := []ocispec.Descriptor{target}
	if images.IsIndexType(target.MediaType) {
		var index ocispec.Index
		if _, err := d.readJSON(ctx, target, &index); err != nil {
			return nil, err
		}
		manifests = index.Manifests
	}
	var failed error
	for _, m := range manifests {
		image, err := d.unpackedManifest(ctx, namespace, m)
		if err == nil {
			image.name = name
			return image, nil
		}
		if !errdefs.IsNotFound(err) { // else another platform's
			failed = errors.Join(failed, err) // of an index it may be what is no image
		}
	}
	if failed != nil {
		return nil, failed
	}
	return nil, fmt.Errorf("its layers aren't unpacked in this snapshotter: run it once: %w", errdefs.ErrNotFound)
}

// unpackedManifest returns the image of a manifest; not found if that, or its topmost layer, isn't here.
func (d *Differ) unpackedManifest(ctx context.Context, namespace string, m ocispec.Descriptor) (*unpackedImage, error) {
	if !images.IsManifestType(m.MediaType) {
		return nil, errdefs.ErrNotFound
	}
	image := &unpackedImage{}
	if _, err := d.readJSON(ctx, m, &image.manifest); err != nil {
		return nil, err
	}
	image.manifest.MediaType = m.MediaType
	var config ocispec.Image
	var err error
	if image.config, err = d.readJSON(ctx, image.manifest.Config, &config); err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(image.manifest.Layers) {
		return nil, fmt.Errorf("the manifest %s has %d layers, and its configuration %d", m.Digest,
			len(image.manifest.Layers), len(config.RootFS.DiffIDs))
	}
	if image.layers, err = d.layersOf(namespace, config.RootFS.DiffIDs); err != nil {
		return nil, err
	}
	info, err := d.store.Info(ctx, image.manifest.Config.Digest)
	if err != nil {
		return nil, err
	}
	chain := identity.ChainID(config.RootFS.DiffIDs).String()
	var labels []string
	for label, value := range info.Labels {
		if strings.HasPrefix(label, keepsSnapshot) && value == chain {
			labels = append(labels, label)
		}
	}
	if image.kept = d.ours(ctx, namespace, labels, chain); image.kept == "" {
		return nil, fmt.Errorf("containerd doesn't say which snapshotter unpacked %s", m.Digest)
	}
	return image, nil
}

// layersOf returns the ids of an image's layers, bottom to top; not found if they aren't all here. The lowest may have
// been taken from a repository for another namespace: they belong to all. What lies between is passed over: Docker's
// commits stand on the layer that it puts between a container and its image, and that is none of an image.
func (d *Differ) layersOf(namespace string, diffIDs []digest.Digest) ([]string, error) {
	if len(diffIDs) == 0 {
		return nil, errors.New("it has no layers")
	}
	chains := make([]string, len(diffIDs))
	for i := range diffIDs {
		chains[i] = identity.ChainID(diffIDs[:i+1]).String()
	}
	last := len(chains) - 1
	for _, top := range d.s.table.list(func(sn *snapshot) bool {
		return sn.committed && !sn.hidden && own(sn.Name) == chains[last] &&
			(sn.Lazy || strings.HasPrefix(sn.Name, namespace+"/"))
	}) {
		ids, left := make([]string, len(chains)), last
		for _, sn := range append([]snapshot{top}, d.s.table.ancestors(top)...) {
			if left >= 0 && own(sn.Name) == chains[left] {
				ids[left] = sn.id
				left--
			}
		}
		if left < 0 {
			return ids, nil
		}
	}
	return nil, errdefs.ErrNotFound
}

// ours returns the label of those by which an image keeps its topmost snapshot that means this snapshotter, whatever
// its name is; "" if none does. Other snapshotters may have unpacked the image, too.
func (d *Differ) ours(ctx context.Context, namespace string, labels []string, chain string) string {
	if len(labels) == 1 {
		return labels[0]
	}
	slices.Sort(labels)
	for _, label := range labels {
		s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(d.s.cfg.Containerd), snapshotterOf(label))
		key := "cvmfs-thin-" + uuid.NewString()
		if _, err := s.View(ctx, key, chain); err != nil {
			continue
		}
		found := d.s.table.list(func(sn *snapshot) bool {
			return own(sn.Name) == key && strings.HasPrefix(sn.Name, namespace+"/")
		})
		if err := s.Remove(context.WithoutCancel(ctx), key); err != nil {
			d.s.cfg.Log.Warn("a snapshot stays that was made to find out whose it is", "key", key, "label", label, "err", err)
		}
		if len(found) > 0 {
			return label
		}
	}
	return ""
}

// snapshotterOf returns the name of the snapshotter that a label is for.
func snapshotterOf(label string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(label, keepsSnapshot), "/")
	return name
}

// readJSON reads a piece of content that a client of containerd has put there.
func (d *Differ) readJSON(ctx context.Context, from ocispec.Descriptor, into any) ([]byte, error) {
	if from.Size > maxManifest {
		return nil, fmt.Errorf("%s has %d bytes", from.Digest, from.Size)
	}
	b, err := content.ReadBlob(ctx, d.store, from)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", from.Digest, err)
	}
	return b, nil
}

// makeThin makes an image whose layers, all but the lowest, are replaced by a thin one. It has no name yet.
func (d *Differ) makeThin(ctx context.Context, containerd grpc.ClientConnInterface, image *unpackedImage,
	layer *control.ThinLayer,
) (ocispec.Descriptor, error) {
	archive, err := thin.Archive(layer.Descriptor)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	media := ocispec.MediaTypeImageLayerGzip
	if images.IsDockerType(image.manifest.MediaType) {
		media = images.MediaTypeDockerSchema2LayerGzip
	}
	blob, err := d.write(ctx, bytes.NewReader(archive), diff.Config{MediaType: media})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	config, err := thin.ReplaceLayers(image.config, layer.Keep, digest.FromBytes(archive).String(),
		thin.Step{By: thinStep, Comment: "thin image of " + image.name})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var made ocispec.Image
	if err := json.Unmarshal(config, &made); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := unpack(ctx, containerd, snapshotterOf(image.kept), made.RootFS.DiffIDs, blob); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("unpack the thin layer: %w", err)
	}
	m := image.manifest
	m.Layers = append(m.Layers[:layer.Keep:layer.Keep], blob)
	m.Subject = nil
	m.Config, err = d.writeBlob(ctx, m.Config.MediaType, config,
		map[string]string{image.kept: identity.ChainID(made.RootFS.DiffIDs).String()})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	text, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	keeps := map[string]string{keepsContent + ".config": m.Config.Digest.String()}
	for i, l := range m.Layers {
		keeps[fmt.Sprintf("%s.l.%d", keepsContent, i)] = l.Digest.String()
	}
	return d.writeBlob(ctx, m.MediaType, text, keeps)
}

// writeBlob puts bytes into the content store, which may have them.
func (d *Differ) writeBlob(ctx context.Context, media string, b []byte, labels map[string]string) (ocispec.Descriptor,
	error,
) {
	written := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(b), Size: int64(len(b))}
	err := content.WriteBlob(ctx, d.store, "cvmfs-thin-"+written.Digest.String(), bytes.NewReader(b), written,
		content.WithLabels(labels))
	return written, err
}

// unpack has containerd unpack the topmost layer of an image, unless it has done so. The layers below are.
func unpack(ctx context.Context, containerd grpc.ClientConnInterface, snapshotter string, diffIDs []digest.Digest,
	blob ocispec.Descriptor,
) error {
	chain, below := identity.ChainID(diffIDs).String(), ""
	if len(diffIDs) > 1 {
		below = identity.ChainID(diffIDs[:len(diffIDs)-1]).String()
	}
	s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(containerd), snapshotter)
	if _, err := s.Stat(ctx, chain); !errdefs.IsNotFound(err) {
		return err
	}
	key := snapshots.UnpackKeyPrefix + "-" + uuid.NewString() + " " + chain
	mounts, err := s.Prepare(ctx, key, below)
	if err != nil {
		return err
	}
	_, err = diffproxy.NewDiffApplier(diffapi.NewDiffClient(containerd)).(diff.Applier).Apply(ctx, blob, mounts)
	if err == nil {
		err = s.Commit(ctx, chain, key)
	}
	if err != nil {
		removed := s.Remove(context.WithoutCancel(ctx), key)
		if errdefs.IsAlreadyExists(err) { // somebody else has unpacked it meanwhile
			return removed
		}
		return errors.Join(err, removed)
	}
	return nil
}

// nameImage gives an image its name, which another one may have had.
func nameImage(ctx context.Context, containerd grpc.ClientConnInterface, name string, target ocispec.Descriptor) error {
	c := imagesapi.NewImagesClient(containerd)
	image := &imagesapi.Image{Name: name, Target: &containertypes.Descriptor{
		MediaType: target.MediaType, Digest: target.Digest.String(), Size: target.Size,
	}}
	_, err := c.Create(ctx, &imagesapi.CreateImageRequest{Image: image})
	if errdefs.IsAlreadyExists(errgrpc.ToNative(err)) {
		_, err = c.Update(ctx, &imagesapi.UpdateImageRequest{Image: image})
	}
	if err != nil {
		return fmt.Errorf("name the image: %w", errgrpc.ToNative(err))
	}
	return nil
}
