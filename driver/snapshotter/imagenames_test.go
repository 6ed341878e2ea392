package snapshotter_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/status"
)

// imageServer is containerd's list of images, by namespace.
type imageServer struct {
	imagesapi.UnimplementedImagesServer
	mu     sync.Mutex
	images map[string][]*imagesapi.Image
}

func (s *imageServer) List(ctx context.Context, _ *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &imagesapi.ListImagesResponse{Images: s.images[namespace]}, nil
}

func (s *imageServer) Get(ctx context.Context, q *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	all, err := s.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, image := range all.GetImages() {
		if image.GetName() == q.GetName() {
			return &imagesapi.GetImageResponse{Image: image}, nil
		}
	}
	return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
}

// image enters an image whose content is kept as containerd keeps it: an index of a manifest and a referrer, and the
// manifest's configuration, which keeps a chain.
func (r *rig) image(namespace, name, chain string) (ids []string) {
	r.t.Helper()
	config := r.content(name+" configuration", map[string]string{"containerd.io/gc.ref.snapshot.cvmfs": chain})
	manifest := r.content(name+" manifest", map[string]string{"containerd.io/gc.ref.content.config": config})
	signed := r.content(name+" referrer",
		map[string]string{"containerd.io/gc.ref.snapshot.cvmfs": digest.FromString("unnamed").String()})
	index := r.content(name+" index", map[string]string{
		"containerd.io/gc.ref.content.m.0": manifest, "containerd.io/gc.ref.content.referrer.sha256.x": signed,
	})
	r.images.mu.Lock()
	defer r.images.mu.Unlock()
	r.images.images[namespace] = append(r.images.images[namespace],
		&imagesapi.Image{Name: name, Target: &types.Descriptor{Digest: index}})
	return []string{index, manifest, config}
}

func (r *rig) content(text string, labels map[string]string) string {
	r.t.Helper()
	d := digest.FromString(text)
	err := content.WriteBlob(r.t.Context(), r.blobs, text, strings.NewReader(text),
		ocispec.Descriptor{Digest: d, Size: int64(len(text))}, content.WithLabels(labels))
	must(r.t, err)
	return d.String()
}

// thin makes a committed snapshot of a thin layer, by containerd's name for it.
func (r *rig) thin(namespace, chain string) (id, name string) {
	r.t.Helper()
	id = digest.FromString(chain).String()
	name = fmt.Sprintf("%s/7/%s", namespace, id)
	key := namespace + "/6/extract-1-x " + chain
	mounts, err := r.Prepare(r.t.Context(), key, "")
	must(r.t, err)
	must(r.t, mount.WithTempMount(r.t.Context(), mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "thin.json"), fmt.Appendf(nil,
			`{"version":"1.0","layers":[{"digest":"%064x","url":"cvmfs://a.example.org/l"}]}`, len(chain)), 0o644)
	}))
	must(r.t, r.Commit(r.t.Context(), name, key))
	return id, name
}

// kubelet removes images and pods when the disk fills: the cache is to give way before.
func TestTheCacheGivesWayToKubelet(t *testing.T) {
	r := newRig(t, node.Settings{})
	for _, c := range []struct {
		key   string
		gives bool
	}{{"moby/1/a", false}, {"k8s.io/2/a", true}} {
		_, err := r.Prepare(t.Context(), c.key, "")
		must(t, err)
		_, err = r.node.Reload(t.Context())
		must(t, err)
		st, err := r.node.CacheStatus()
		if err != nil || (st.Yield > 0) != c.gives || st.Yield > 0 && st.Yield <= st.Size*15/100 {
			t.Errorf("with %s: %+v, %v", c.key, st, err)
		}
	}
}

func TestComposedImagesHaveContainerdsNames(t *testing.T) {
	r := newRig(t, node.Settings{})
	base, snapshot := r.thin("moby", "base")
	_, unnamed := r.thin("k8s.io", "unnamed")
	ordinary := digest.FromString("ordinary").String()
	r.commit("moby/8/"+ordinary, "", "file")
	ids := r.image("moby", "docker.io/library/base:1", base)
	r.image("moby", "docker.io/library/ordinary:1", ordinary)
	r.image("k8s.io", "docker.io/library/base:1", base) // that namespace has no such snapshot
	got, err := r.node.Names(t.Context())
	must(t, err)
	want := status.Names{Known: true, Images: []status.Name{
		{Key: "key1", Namespace: "k8s.io", Snapshot: unnamed},
		{Key: "key1", Namespace: "moby", Name: "docker.io/library/base:1", IDs: ids},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	must(t, r.store.Close()) // containerd has gone
	got, err = r.node.Names(t.Context())
	if err != nil || !got.Known || got.Err == "" || !slices.ContainsFunc(got.Images, func(n status.Name) bool {
		return n.Snapshot == snapshot
	}) {
		t.Errorf("without containerd: %+v, %v", got, err)
	}
}
