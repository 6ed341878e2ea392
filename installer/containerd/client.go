package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	version "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
)

// DefaultSocket is where containerd listens if nothing else is said.
const DefaultSocket = "/run/containerd/containerd.sock"

const (
	callWait  = 30 * time.Second // until containerd has done what is asked of it
	readyWait = 3 * time.Minute  // until one that was restarted answers
	pingEvery = 200 * time.Millisecond
)

// Client speaks to a containerd.
type Client struct{ conn *grpc.ClientConn }

// Connect makes the client of a containerd's socket. Nothing is asked of it yet.
func Connect(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	return &Client{conn}, nil
}

// Close lets the connection go.
func (c *Client) Close() error { return c.conn.Close() }

// Version asks containerd for its version, as in "2.1.9".
func (c *Client) Version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	v, err := version.NewVersionClient(c.conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return "", fmt.Errorf("ask containerd for its version: %w", errgrpc.ToNative(err))
	}
	return strings.TrimPrefix(v.Version, "v"), nil
}

// Ready waits until containerd answers.
func (c *Client) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	c.conn.ResetConnectBackoff() // of the one that has ended
	for {
		_, err := c.Version(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
			c.conn.ResetConnectBackoff()
		case <-ctx.Done():
			return err
		}
	}
}

// Serves makes sure that containerd knows a snapshotter, and that this answers by way of containerd; with cri also that
// the part of containerd works that Kubernetes speaks to, which doesn't with a snapshotter it can't find.
func (c *Client) Serves(ctx context.Context, snapshotter string, cri bool) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	answer, err := introspection.NewIntrospectionClient(c.conn).Plugins(ctx, &introspection.PluginsRequest{})
	if err != nil {
		return fmt.Errorf("ask containerd for its plugins: %w", errgrpc.ToNative(err))
	}
	known := false
	for _, p := range answer.Plugins {
		ours := p.Type == "io.containerd.snapshotter.v1" && p.ID == snapshotter
		known = known || ours
		if failed := p.InitErr; failed != nil && (ours || cri && (p.Type == "io.containerd.cri.v1" || p.ID == "cri")) {
			return fmt.Errorf("containerd's plugin %s.%s doesn't work: %s", p.Type, p.ID, failed.Message)
		}
	}
	if !known {
		return fmt.Errorf("containerd doesn't know the snapshotter %s: another file than the one that was written may be its "+
			"configuration (see its flag --config)", snapshotter)
	}
	// There is none of this name: the answer is the snapshotter's.
	_, err = snapshots.NewSnapshotsClient(c.conn).Usage(in(ctx, "default"),
		&snapshots.UsageRequest{Snapshotter: snapshotter, Key: "none"}, grpc.WaitForReady(true))
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("ask the snapshotter %s by way of containerd: %w", snapshotter, err)
	}
	_, err = c.list(in(ctx, "default"), snapshotter)
	return err
}

// in is a context for a call in a namespace.
func in(ctx context.Context, namespace string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
}

// Uses returns what has its files from a snapshotter, for people and in their order: pods as "pod namespace/name", other
// containers as "namespace/id", the namespace being containerd's. Where one of containerd's namespaces can't be asked,
// those of the others are returned with the error.
func (c *Client) Uses(ctx context.Context, snapshotter string) (uses []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	err = c.forNamespaces(ctx, func(namespace string) error {
		// All of them: containerd's filters know no snapshotter, and find nothing by one.
		found, err := containers.NewContainersClient(c.conn).List(in(ctx, namespace),
			&containers.ListContainersRequest{})
		if err != nil {
			return fmt.Errorf("ask containerd for the containers of %s: %w", namespace, errgrpc.ToNative(err))
		}
		for _, container := range found.Containers {
			if container.Snapshotter == snapshotter {
				uses = append(uses, nameOf(container, namespace))
			}
		}
		return nil
	})
	slices.Sort(uses)
	return slices.Compact(uses), err
}

func nameOf(container *containers.Container, namespace string) string {
	if pod := container.Labels["io.kubernetes.pod.name"]; pod != "" {
		return "pod " + container.Labels["io.kubernetes.pod.namespace"] + "/" + pod
	}
	return namespace + "/" + container.ID
}

// forNamespaces does something for each of containerd's namespaces, also where it fails for some.
func (c *Client) forNamespaces(ctx context.Context, do func(namespace string) error) error {
	all, err := namespaces.NewNamespacesClient(c.conn).List(ctx, &namespaces.ListNamespacesRequest{})
	if err != nil {
		return fmt.Errorf("ask containerd for its namespaces: %w", errgrpc.ToNative(err))
	}
	var failures []error
	for _, n := range all.Namespaces {
		failures = append(failures, do(n.Name))
	}
	return errors.Join(failures...)
}

// list returns the snapshots of the namespace that the context is for.
func (c *Client) list(ctx context.Context, snapshotter string) (all []*snapshots.Info, err error) {
	stream, err := snapshots.NewSnapshotsClient(c.conn).List(ctx,
		&snapshots.ListSnapshotsRequest{Snapshotter: snapshotter})
	for err == nil {
		var some *snapshots.ListSnapshotsResponse
		if some, err = stream.Recv(); err == nil {
			all = append(all, some.Info...)
		}
	}
	if errors.Is(err, io.EOF) {
		return all, nil
	}
	return nil, fmt.Errorf("ask containerd for the snapshots of %s: %w", snapshotter, errgrpc.ToNative(err))
}
