package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// answerWait bounds how long containerd may take to answer, as after a restart.
const answerWait = time.Minute

// client asks a containerd.
type client struct{ conn *grpc.ClientConn }

// dial connects to a containerd. Calls wait until it answers.
func dial(socket string) (*client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return nil, err
	}
	return &client{conn}, nil
}

func (c *client) Close() error { return c.conn.Close() }

// version returns containerd's, as in "2.1.9".
func (c *client) version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	v, err := versionapi.NewVersionClient(c.conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return "", fmt.Errorf("ask containerd for its version: %w", err)
	}
	return strings.TrimPrefix(v.Version, "v"), nil
}

// knows returns nil if containerd has the snapshotter, and Kubernetes' part of it runs; else what it says.
func (c *client) knows(ctx context.Context, snapshotter string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	answer, err := introspectionapi.NewIntrospectionClient(c.conn).Plugins(ctx, &introspectionapi.PluginsRequest{})
	if err != nil {
		return fmt.Errorf("ask containerd for its plugins: %w", err)
	}
	var known bool
	for _, p := range answer.Plugins {
		ours := p.Type == "io.containerd.snapshotter.v1" && p.ID == snapshotter
		known = known || ours
		if failed := p.InitErr; failed != nil && (ours || p.Type == "io.containerd.cri.v1" || p.ID == "cri") {
			return fmt.Errorf("containerd's plugin %s.%s doesn't work: %s", p.Type, p.ID, failed.Message)
		}
	}
	if !known {
		return fmt.Errorf("containerd doesn't know the snapshotter %s", snapshotter)
	}
	return nil
}

// eachNamespace calls a function for each of containerd's namespaces, with a context of it.
func (c *client) eachNamespace(ctx context.Context, do func(ctx context.Context, namespace string) error) error {
	all, err := namespacesapi.NewNamespacesClient(c.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return fmt.Errorf("list containerd's namespaces: %w", err)
	}
	var failures []error
	for _, n := range all.Namespaces {
		failures = append(failures, do(namespaces.WithNamespace(ctx, n.Name), n.Name))
	}
	return errors.Join(failures...)
}

// users returns the containers whose layers a snapshotter keeps, by the names of their pods where they have one.
func (c *client) users(ctx context.Context, snapshotter string) (names []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	err = c.eachNamespace(ctx, func(ctx context.Context, namespace string) error {
		// All of them: containerd's filters know no snapshotter, and find nothing by one.
		list, err := containersapi.NewContainersClient(c.conn).List(ctx, &containersapi.ListContainersRequest{})
		if err != nil {
			return fmt.Errorf("list the containers of %s: %w", namespace, err)
		}
		for _, c := range list.Containers {
			if c.Snapshotter != snapshotter {
				continue
			}
			name := namespace + ": container " + c.ID
			if pod := c.Labels["io.kubernetes.pod.name"]; pod != "" {
				name = "pod " + c.Labels["io.kubernetes.pod.namespace"] + "/" + pod
			}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}
