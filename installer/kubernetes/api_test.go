package kubernetes

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// byNamespace are a containerd's containers.
type byNamespace map[string][]*containersapi.Container

type containersOf struct {
	containersapi.UnimplementedContainersServer
	all byNamespace
}

type namespacesOf struct {
	namespacesapi.UnimplementedNamespacesServer
	all byNamespace
}

// List does as containerd does, whose filters know of a container no more than its ID, image, labels and runtime:
// nothing matches one by another field.
func (s containersOf) List(ctx context.Context, r *containersapi.ListContainersRequest) (
	*containersapi.ListContainersResponse, error,
) {
	md, _ := metadata.FromIncomingContext(ctx)
	answer := &containersapi.ListContainersResponse{}
	if len(r.Filters) == 0 {
		answer.Containers = s.all[md.Get("containerd-namespace")[0]]
	}
	return answer, nil
}

func (s namespacesOf) List(context.Context, *namespacesapi.ListNamespacesRequest) (
	*namespacesapi.ListNamespacesResponse, error,
) {
	answer := &namespacesapi.ListNamespacesResponse{}
	for name := range s.all {
		answer.Namespaces = append(answer.Namespaces, &namespacesapi.Namespace{Name: name})
	}
	return answer, nil
}

// Whatever has its layers from the snapshotter is found, in each of containerd's namespaces: it is what removal waits
// for.
func TestUsersAreFound(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	must(t, err)
	pod := map[string]string{"io.kubernetes.pod.name": "thin", "io.kubernetes.pod.namespace": "default"}
	all := byNamespace{
		"k8s.io": {
			{ID: "a", Snapshotter: name, Labels: pod}, {ID: "b", Snapshotter: name, Labels: pod}, {ID: "c", Snapshotter: "overlayfs"},
		},
		"moby": {{ID: "d", Snapshotter: name}, {ID: "e"}},
	}
	server := grpc.NewServer()
	containersapi.RegisterContainersServer(server, containersOf{all: all})
	namespacesapi.RegisterNamespacesServer(server, namespacesOf{all: all})
	go func() { _ = server.Serve(listener) }() // until it is stopped
	defer server.Stop()
	c, err := dial(socket)
	must(t, err)
	defer c.Close()
	users, err := c.users(t.Context(), name)
	must(t, err)
	if want := []string{"moby: container d", "pod default/thin"}; !slices.Equal(users, want) {
		t.Errorf("the users are %q, want %q", users, want)
	}
}
