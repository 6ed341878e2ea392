package containerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// DefaultSocket is where containerd listens if nothing else is said.
const DefaultSocket = "/run/containerd/containerd.sock"

const (
	callWait  = 30 * time.Second // until containerd has done what is asked of it
	readyWait = 3 * time.Minute  // until one that was restarted answers
	pingEvery = 200 * time.Millisecond
)

// Client speaks to a containerd.
type Client struct {
	conn   *grpc.ClientConn
	api    *client.Client
	socket string
}

// Connect makes the client of a containerd's socket. Nothing is asked of it yet.
func Connect(socket string) (*Client, error) {
	// Not by the library's own dialer, which waits for a socket that isn't there.
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize)))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	api, err := client.NewWithConn(conn)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to containerd at %s: %w", socket, err), conn.Close())
	}
	return &Client{conn, api, socket}, nil
}

// Close lets the connection go.
func (c *Client) Close() error { return c.conn.Close() }

// Version asks containerd for its version, as in "2.1.9".
func (c *Client) Version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	v, err := c.api.Version(ctx)
	if err != nil {
		return "", fmt.Errorf("ask containerd for its version: %w", err)
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
	answer, err := c.api.IntrospectionService().Plugins(ctx)
	if err != nil {
		return fmt.Errorf("ask containerd for its plugins: %w", err)
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
	ctx = in(ctx, namespaces.Default)
	// There is none of this name: the answer is the snapshotter's.
	_, err = c.api.SnapshotService(snapshotter).Usage(ctx, "none")
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("ask the snapshotter %s by way of containerd: %w", snapshotter, err)
	}
	_, err = c.list(ctx, snapshotter)
	return err
}

// in is a context for calls in a namespace.
func in(ctx context.Context, namespace string) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// Uses returns what has its files from a snapshotter, for people and in their order: pods as "pod namespace/name", other
// containers as "namespace/id", the namespace being containerd's. Where one of containerd's namespaces can't be asked,
// those of the others are returned with the error.
func (c *Client) Uses(ctx context.Context, snapshotter string) (uses []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	err = c.forNamespaces(ctx, func(namespace string) error {
		// All of them: containerd's filters know no snapshotter, and find nothing by one.
		found, err := c.api.ContainerService().List(in(ctx, namespace))
		if err != nil {
			return fmt.Errorf("ask containerd for the containers of %s: %w", namespace, err)
		}
		for _, container := range found {
			if container.Snapshotter == snapshotter {
				uses = append(uses, nameOf(container, namespace))
			}
		}
		return nil
	})
	slices.Sort(uses)
	return slices.Compact(uses), err
}

func nameOf(container containers.Container, namespace string) string {
	if pod := container.Labels["io.kubernetes.pod.name"]; pod != "" {
		return "pod " + container.Labels["io.kubernetes.pod.namespace"] + "/" + pod
	}
	return namespace + "/" + container.ID
}

// forNamespaces does something for each of containerd's namespaces, also where it fails for some.
func (c *Client) forNamespaces(ctx context.Context, do func(namespace string) error) error {
	all, err := c.api.NamespaceService().List(ctx)
	if err != nil {
		return fmt.Errorf("ask containerd for its namespaces: %w", err)
	}
	var failures []error
	for _, namespace := range all {
		failures = append(failures, do(namespace))
	}
	return errors.Join(failures...)
}

// list returns the snapshots of the namespace that the context is for.
func (c *Client) list(ctx context.Context, snapshotter string) (all []snapshots.Info, err error) {
	err = c.api.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		all = append(all, info)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ask containerd for the snapshots of %s: %w", snapshotter, err)
	}
	return all, nil
}
