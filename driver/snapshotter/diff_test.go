package snapshotter_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/test/contentstore"
)

// leaseServer gives leases, and takes down by which of them what is written stays, with the namespace before it.
type leaseServer struct {
	leasesapi.UnimplementedLeasesServer
	mu   sync.Mutex
	kept []string
	list func() // called once before content is listed
}

func (l *leaseServer) Create(_ context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	if r.Labels["containerd.io/gc.expire"] == "" {
		return nil, errors.New("a lease that never ends")
	}
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: "ours", Labels: r.Labels}}, nil
}

func (l *leaseServer) watch(
	srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
) error {
	if strings.HasSuffix(info.FullMethod, "/Write") {
		namespace, _ := namespaces.Namespace(stream.Context())
		lease, _ := leases.FromContext(stream.Context())
		l.mu.Lock()
		l.kept = append(l.kept, namespace+" "+lease)
		l.mu.Unlock()
	}
	if strings.HasSuffix(info.FullMethod, "/List") {
		l.mu.Lock()
		list := l.list
		l.list = nil
		l.mu.Unlock()
		if list != nil {
			list()
		}
	}
	return handler(srv, stream)
}

// last returns the namespace and the lease of what was written last.
func (l *leaseServer) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept[len(l.kept)-1]
}

// contentServer starts what there is of containerd: its content store, in a folder, and what gives leases and lists
// images.
func (r *rig) contentServer() {
	r.t.Helper()
	r.blobs = contentstore.New(r.t, filepath.Join(r.dir, "content"), &r.labels)
	socket := filepath.Join(r.dir, "c")
	must(r.t, os.RemoveAll(socket))
	l, err := net.Listen("unix", socket)
	must(r.t, err)
	r.leases, r.images = &leaseServer{}, &imageServer{images: map[string][]*imagesapi.Image{}}
	server := grpc.NewServer(grpc.StreamInterceptor(r.leases.watch))
	leasesapi.RegisterLeasesServer(server, r.leases)
	imagesapi.RegisterImagesServer(server, r.images)
	snapshotsapi.RegisterSnapshotsServer(server, viewServer{r: r})
	contentapi.RegisterContentServer(server, contentserver.New(r.blobs))
	go server.Serve(l) // ends with the test
	r.t.Cleanup(server.Stop)
	r.store, err = grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(r.t, err)
}

// The archive of a container holds what it changed, and nobody looks at what lies below.
func TestDiffsAreOfTheSnapshotAlone(t *testing.T) {
	r := newRig(t, node.Settings{})
	ctx := namespaces.WithNamespace(t.Context(), "test")
	r.commit("a", "", "a")
	r.commit("b", "a", "b")
	upper, err := r.Prepare(ctx, "container", "b")
	must(t, err)
	dir := r.mount(upper)
	must(t, os.Remove(filepath.Join(dir, "a")))
	must(t, os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o600))
	lower, err := r.View(ctx, "container-parent-view", "b")
	must(t, err)
	made, err := compare(ctx, r, lower, upper)
	must(t, err)
	if got := names(t, ctx, r, made); got != ".wh.a new" {
		t.Errorf("the archive has %s", got)
	}
	if got := r.leases.last(); got != "test ours" {
		t.Errorf("it is kept by %q", got)
	}
	again, err := compare(leases.WithLease(ctx, "theirs"), r, lower, upper)
	if err != nil || again.Digest != made.Digest {
		t.Errorf("%v, %v", again, err)
	}
	if got := r.leases.last(); got != "test theirs" {
		t.Errorf("with a lease of the caller's it is kept by %q", got)
	}
	other, err := r.View(ctx, "other", "a")
	must(t, err)
	if _, err := compare(ctx, r, other, upper); !errdefs.IsNotImplemented(err) {
		t.Errorf("against what isn't the parent: %v", err)
	}
	if _, err := compare(ctx, r, nil, lower); !errdefs.IsNotImplemented(err) {
		t.Errorf("of what isn't active: %v", err)
	}
}

// Whatever form of archive is asked for, nothing of the image is read: of the image here nothing can be.
func TestDiffsInEveryForm(t *testing.T) {
	r := newRig(t, node.Settings{})
	ctx := namespaces.WithNamespace(t.Context(), "test")
	r.commit("a", "", "a")
	upper, err := r.Prepare(ctx, "container", "a")
	must(t, err)
	dir := r.mount(upper)
	must(t, os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "old"), []byte("old"), 0o600))
	epoch, past := time.Unix(1_600_000_000, 0), time.Unix(1_500_000_000, 0)
	must(t, os.Chtimes(filepath.Join(dir, "old"), past, past))
	lower, err := r.View(ctx, "container-view", "a")
	must(t, err)
	plain := ""
	for _, form := range []string{
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerGzip,
	} {
		made, err := compare(ctx, r, lower, upper, diff.WithMediaType(form), diff.WithSourceDateEpoch(&epoch))
		if err != nil || made.MediaType != form {
			t.Errorf("%s: %s, %v", form, made.MediaType, err)
			continue
		}
		times := map[string]int64{}
		for _, h := range headers(t, ctx, r, made) {
			times[h.Name] = h.ModTime.Unix()
		}
		if want := map[string]int64{"new": epoch.Unix(), "old": past.Unix()}; !maps.Equal(times, want) {
			t.Errorf("%s: times %v, want %v", form, times, want)
		}
		info, err := contentproxy.NewContentStore(contentapi.NewContentClient(r.store)).Info(ctx, made.Digest)
		must(t, err)
		if plain == "" {
			plain = made.Digest.String()
		}
		if got := info.Labels[labels.LabelUncompressed]; got != plain {
			t.Errorf("%s: uncompressed it is said to be %s, want %s", form, got, plain)
		}
	}
	if _, err := compare(ctx, r, lower, upper, diff.WithMediaType("text/plain")); !errdefs.IsNotImplemented(err) {
		t.Errorf("in a form that is none: %v", err)
	}
}

// Up to 1.7 containerd sends no namespace.
func TestADiffIsOfTheNamespaceOfItsSnapshot(t *testing.T) {
	r := newRig(t, node.Settings{})
	r.commit("moby/1/a", "", "a")
	ctx := namespaces.WithNamespace(t.Context(), "moby")
	upper, err := r.Prepare(ctx, "moby/2/container", "moby/1/a")
	must(t, err)
	lower, err := r.View(ctx, "moby/3/container-view", "moby/1/a")
	must(t, err)
	_, err = compare(t.Context(), r, lower, upper)
	must(t, err)
	if got := r.leases.last(); got != "moby ours" {
		t.Errorf("it is kept by %q", got)
	}
}

func compare(
	ctx context.Context, r *rig, lower, upper []mount.Mount, opts ...diff.Opt,
) (ocispec.Descriptor, error) {
	return diffproxy.NewDiffApplier(diffapi.NewDiffClient(r.conn)).(diff.Comparer).Compare(ctx, lower, upper, opts...)
}

// names lists what an archive holds.
func names(t *testing.T, ctx context.Context, r *rig, d ocispec.Descriptor) string {
	t.Helper()
	var list []string
	for _, h := range headers(t, ctx, r, d) {
		list = append(list, h.Name)
	}
	return strings.Join(list, " ")
}

// headers returns the entries of an archive.
func headers(t *testing.T, ctx context.Context, r *rig, d ocispec.Descriptor) (list []*tar.Header) {
	t.Helper()
	store := contentproxy.NewContentStore(contentapi.NewContentClient(r.store))
	ra, err := store.ReaderAt(ctx, d)
	must(t, err)
	defer ra.Close()
	plain, err := compression.DecompressStream(content.NewReader(ra))
	must(t, err)
	for in := tar.NewReader(plain); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		must(t, err)
		list = append(list, h)
	}
}
