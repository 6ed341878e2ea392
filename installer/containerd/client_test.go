package containerd

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// fakeContainerd answers what a client asks.
type fakeContainerd struct {
	containers map[string][]*containersapi.Container // by namespace
	plugins    []*introspectionapi.Plugin
	usage      error          // the snapshotter's, for a snapshot that it hasn't got
	mounts     []*types.Mount // of each snapshot

	images, leases map[string]bool // of the namespace of images that are run
	uncollected    bool            // whether something has gone from it since the last collection
}

type (
	containersOf struct {
		containersapi.UnimplementedContainersServer
		*fakeContainerd
	}
	namespacesOf struct {
		namespacesapi.UnimplementedNamespacesServer
		*fakeContainerd
	}
	pluginsOf struct {
		introspectionapi.UnimplementedIntrospectionServer
		*fakeContainerd
	}
	imagesOf struct {
		imagesapi.UnimplementedImagesServer
		*fakeContainerd
	}
	leasesOf struct {
		leasesapi.UnimplementedLeasesServer
		*fakeContainerd
	}
	snapshotsOf struct {
		snapshotsapi.UnimplementedSnapshotsServer
		*fakeContainerd
	}
)

// List does as containerd does, whose filters know of a container no more than its ID, image, labels and runtime:
// nothing matches one by another field.
func (s containersOf) List(ctx context.Context, r *containersapi.ListContainersRequest) (
	*containersapi.ListContainersResponse, error,
) {
	md, _ := metadata.FromIncomingContext(ctx)
	namespace := md.Get("containerd-namespace")[0]
	if s.containers[namespace] == nil {
		return nil, errgrpc.ToGRPC(errors.New("the database is damaged"))
	}
	answer := &containersapi.ListContainersResponse{}
	if len(r.Filters) == 0 {
		answer.Containers = s.containers[namespace]
	}
	return answer, nil
}

func (s namespacesOf) List(context.Context, *namespacesapi.ListNamespacesRequest) (
	*namespacesapi.ListNamespacesResponse, error,
) {
	answer := &namespacesapi.ListNamespacesResponse{}
	for name := range s.containers {
		answer.Namespaces = append(answer.Namespaces, &namespacesapi.Namespace{Name: name})
	}
	return answer, nil
}

func (s pluginsOf) Plugins(context.Context, *introspectionapi.PluginsRequest) (
	*introspectionapi.PluginsResponse, error,
) {
	return &introspectionapi.PluginsResponse{Plugins: s.plugins}, nil
}

func (s snapshotsOf) Usage(context.Context, *snapshotsapi.UsageRequest) (*snapshotsapi.UsageResponse, error) {
	return nil, errgrpc.ToGRPC(s.usage)
}

func (s snapshotsOf) List(*snapshotsapi.ListSnapshotsRequest, snapshotsapi.Snapshots_ListServer) error {
	return nil
}

func (s snapshotsOf) Mounts(context.Context, *snapshotsapi.MountsRequest) (*snapshotsapi.MountsResponse, error) {
	return &snapshotsapi.MountsResponse{Mounts: s.mounts}, nil
}

// Delete refuses a namespace with something in it.
func (s namespacesOf) Delete(_ context.Context, r *namespacesapi.DeleteNamespaceRequest) (*emptypb.Empty, error) {
	if r.Name != TestNamespace || len(s.containers[r.Name])+len(s.images)+len(s.leases) > 0 || s.uncollected {
		return nil, errgrpc.ToGRPC(errdefs.ErrFailedPrecondition)
	}
	delete(s.containers, r.Name)
	return &emptypb.Empty{}, nil
}

func (s imagesOf) List(context.Context, *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	answer := &imagesapi.ListImagesResponse{}
	for name := range s.images {
		answer.Images = append(answer.Images, &imagesapi.Image{Name: name, Target: &types.Descriptor{}})
	}
	return answer, nil
}

func (s imagesOf) Delete(_ context.Context, r *imagesapi.DeleteImageRequest) (*emptypb.Empty, error) {
	delete(s.images, r.Name)
	s.uncollected = true
	return &emptypb.Empty{}, nil
}

func (s leasesOf) List(context.Context, *leasesapi.ListRequest) (*leasesapi.ListResponse, error) {
	answer := &leasesapi.ListResponse{}
	for id := range s.leases {
		answer.Leases = append(answer.Leases, &leasesapi.Lease{ID: id})
	}
	return answer, nil
}

func (s leasesOf) Create(_ context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	s.leases[r.ID] = true
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: r.ID}}, nil
}

func (s leasesOf) Delete(_ context.Context, r *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	delete(s.leases, r.ID)
	s.uncollected = !r.Sync
	return &emptypb.Empty{}, nil
}

// connect is a client of a containerd that ends with the test.
func (f *fakeContainerd) connect(t *testing.T) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	must(t, err)
	server := grpc.NewServer()
	containersapi.RegisterContainersServer(server, containersOf{fakeContainerd: f})
	namespacesapi.RegisterNamespacesServer(server, namespacesOf{fakeContainerd: f})
	introspectionapi.RegisterIntrospectionServer(server, pluginsOf{fakeContainerd: f})
	imagesapi.RegisterImagesServer(server, imagesOf{fakeContainerd: f})
	leasesapi.RegisterLeasesServer(server, leasesOf{fakeContainerd: f})
	snapshotsapi.RegisterSnapshotsServer(server, snapshotsOf{fakeContainerd: f})
	go func() { _ = server.Serve(listener) }() // until it is stopped
	t.Cleanup(server.Stop)
	c, err := Connect(socket)
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

// Whatever has its layers from the snapshotter is found, in each of containerd's namespaces: it is what removal waits
// for. One that can't be asked hides none of the others.
func TestUsesAreFound(t *testing.T) {
	pod := map[string]string{"io.kubernetes.pod.name": "thin", "io.kubernetes.pod.namespace": "default"}
	f := &fakeContainerd{containers: map[string][]*containersapi.Container{
		"k8s.io": {
			{ID: "a", Snapshotter: "cvmfs", Labels: pod},
			{ID: "b", Snapshotter: "cvmfs", Labels: pod},
			{ID: "c", Snapshotter: "overlayfs"},
		},
		"moby": {{ID: "d", Snapshotter: "cvmfs"}, {ID: "e"}},
	}}
	c := f.connect(t)
	want := []string{"moby/d", "pod default/thin"}
	if uses, err := c.Uses(t.Context(), "cvmfs"); err != nil || !slices.Equal(uses, want) {
		t.Errorf("%q, %v, want %q", uses, err, want)
	}
	f.containers["damaged"] = nil
	if uses, err := c.Uses(t.Context(), "cvmfs"); err == nil || !slices.Equal(uses, want) {
		t.Errorf("with a damaged namespace: %q, %v, want %q", uses, err, want)
	}
}

// containerd starts with a snapshotter that doesn't answer, and with a part for Kubernetes that doesn't work.
func TestASnapshotterServesOnceItAnswers(t *testing.T) {
	const snapshotter = "io.containerd.snapshotter.v1"
	failed := status.New(codes.Unknown, `failed to find snapshotter "cvmfs"`).Proto()
	ours := &introspectionapi.Plugin{Type: snapshotter, ID: "cvmfs"}
	for name, c := range map[string]struct {
		plugins []*introspectionapi.Plugin
		usage   error
		cri     bool
		want    string // "": no error
	}{
		"all is well": {plugins: []*introspectionapi.Plugin{ours}, cri: true},
		"unknown": {
			plugins: []*introspectionapi.Plugin{{Type: snapshotter, ID: "overlayfs"}, {Type: "io.containerd.differ.v1", ID: "cvmfs"}},
			want:    "doesn't know the snapshotter cvmfs",
		},
		"not started": {
			plugins: []*introspectionapi.Plugin{{Type: snapshotter, ID: "cvmfs", InitErr: failed}}, want: "failed to find",
		},
		"another fails": {
			plugins: []*introspectionapi.Plugin{ours, {Type: snapshotter, ID: "btrfs", InitErr: failed}}, cri: true,
		},
		"Kubernetes' part fails": {
			plugins: []*introspectionapi.Plugin{ours, {Type: "io.containerd.cri.v1", ID: "images", InitErr: failed}},
			cri:     true, want: "io.containerd.cri.v1.images",
		},
		"that of old ones": {
			plugins: []*introspectionapi.Plugin{ours, {Type: "io.containerd.grpc.v1", ID: "cri", InitErr: failed}},
			cri:     true, want: "io.containerd.grpc.v1.cri",
		},
		"it isn't asked for": {
			plugins: []*introspectionapi.Plugin{ours, {Type: "io.containerd.grpc.v1", ID: "cri", InitErr: failed}},
		},
		"it doesn't answer": {
			plugins: []*introspectionapi.Plugin{ours}, usage: errdefs.ErrInternal, want: "by way of containerd",
		},
	} {
		if c.usage == nil {
			c.usage = errdefs.ErrNotFound
		}
		client := (&fakeContainerd{plugins: c.plugins, usage: c.usage}).connect(t)
		err := client.Serves(t.Context(), "cvmfs", c.cri)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
