package snapshotter_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/test/testutil"
)

// viewServer is containerd's snapshots, as far as views go: those of "cvmfs" are ours, and others are nobody's.
type viewServer struct {
	api.UnimplementedSnapshotsServer
	r *rig
}

func (s viewServer) View(ctx context.Context, q *api.ViewSnapshotRequest) (*api.ViewSnapshotResponse, error) {
	if q.GetSnapshotter() != "cvmfs" {
		return &api.ViewSnapshotResponse{}, nil
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	_, err = s.r.Snapshotter.View(ctx, namespace+"/99/"+q.GetKey(), namespace+"/9/"+q.GetParent())
	return &api.ViewSnapshotResponse{}, err
}

func (s viewServer) Remove(ctx context.Context, q *api.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	if q.GetSnapshotter() != "cvmfs" {
		return &emptypb.Empty{}, nil
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.r.Snapshotter.Remove(ctx, namespace+"/99/"+q.GetKey())
}

// The layers below were taken from a repository for another namespace, and other snapshotters have unpacked the image,
// too: those of this one are found. What is found has its layers published, which isn't set up here.
func TestTheLayersOfAnImageAreFound(t *testing.T) {
	r, _, blobs := lazyImage(t, testutil.NewRegistry(t, "", ""))
	r.manifest(blobs)
	names := r.chains(blobs)
	diffIDs := []digest.Digest{r.published[blobs[0].Digest], r.published[blobs[1].Digest], diffIDOf("top")}
	chain := identity.ChainID(diffIDs).String()
	r.own.CompleteBlobs(t.Context())
	r.lose(blobs...) // so that they can be mounted
	_, err := r.Prepare(t.Context(), "k8s.io/8/init", names[1])
	must(t, err)
	must(t, r.Commit(t.Context(), "k8s.io/8/init-key", "k8s.io/8/init")) // as Docker has it below a container
	_, err = r.Prepare(t.Context(), "k8s.io/8/build", "k8s.io/8/init-key")
	must(t, err)
	must(t, r.Commit(t.Context(), "k8s.io/9/"+chain, "k8s.io/8/build"))

	put := func(media string, v any, labels map[string]string) ocispec.Descriptor {
		text, err := json.Marshal(v)
		must(t, err)
		d := r.content(string(text), labels)
		return ocispec.Descriptor{MediaType: media, Digest: digest.Digest(d), Size: int64(len(text))}
	}
	image := func(diffIDs []digest.Digest, labels ...string) ocispec.Descriptor {
		kept := map[string]string{}
		for _, label := range labels {
			kept["containerd.io/gc.ref.snapshot."+label] = identity.ChainID(diffIDs).String()
		}
		config := ocispec.Image{Author: strings.Join(labels, " "), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}}
		return put(ocispec.MediaTypeImageManifest, ocispec.Manifest{
			Config: put(ocispec.MediaTypeImageConfig, config, kept), Layers: make([]ocispec.Descriptor, len(diffIDs)),
		}, nil)
	}
	index := func(of ...ocispec.Descriptor) ocispec.Descriptor {
		return put(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: of}, nil)
	}
	elsewhere := image([]digest.Digest{diffIDOf("another platform's")}, "cvmfs")
	artifact := put(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Config: put(ocispec.MediaTypeEmptyJSON, struct{}{}, nil), Layers: make([]ocispec.Descriptor, 1),
	}, nil)
	for name, c := range map[string]struct {
		target ocispec.Descriptor
		want   string
	}{
		"by one snapshotter": {image(diffIDs, "cvmfs"), "push-back isn't set up"},
		"by several":         {image(diffIDs, "another", "cvmfs/x", "zfs"), "push-back isn't set up"},
		"by others":          {image(diffIDs, "another", "zfs"), "which snapshotter"},
		"of an index":        {index(elsewhere, artifact, image(diffIDs, "cvmfs")), "push-back isn't set up"},
		"of no image":        {index(elsewhere, artifact), "configuration 0"},
		"not here":           {elsewhere, "aren't unpacked in this snapshotter"},
		"of no layers":       {image(nil, "cvmfs"), "no layers"},
	} {
		r.images.mu.Lock()
		r.images.images["k8s.io"] = []*imagesapi.Image{{Name: "example.org/x:1", Target: &types.Descriptor{
			MediaType: c.target.MediaType, Digest: c.target.Digest.String(), Size: c.target.Size,
		}}}
		r.images.mu.Unlock()
		_, err := r.node.ThinImage(t.Context(), control.ImageToThin{
			Namespace: "k8s.io", Name: "example.org/x:1", As: "example.org/x:1-thin",
		}, func(control.ThinProgress) {})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, r.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindView {
			t.Errorf("%s is left", info.Name)
		}
		return nil
	}))
}
