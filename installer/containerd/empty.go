package containerd

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	content "github.com/containerd/containerd/api/services/content/v1"
	leases "github.com/containerd/containerd/api/services/leases/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// reference is what the label of a blob begins with that holds a snapshot of a snapshotter.
const reference = "containerd.io/gc.ref.snapshot."

// Empty removes all snapshots of a snapshotter, and the containers that have their files from it, in all namespaces.
//
// A collection of containerd's that takes a snapshot doesn't tell its parent, which can't be removed by its name from
// then on: only another collection takes that. So all that holds snapshots is dropped, those that can be are removed by
// their names, children first, and a collection is waited for.
func (c *Client) Empty(ctx context.Context, snapshotter string) (removed int, err error) {
	err = c.forNamespaces(ctx, func(namespace string) error {
		ctx := in(ctx, namespace)
		all, err := c.list(ctx, snapshotter) // there may be others, that the snapshotter has lost
		if err != nil {
			return err
		}
		for _, drop := range []func(context.Context, string) error{
			c.dropContainers, c.dropReferences, c.dropLeases, c.dropSnapshots, c.collect,
		} {
			if err := drop(ctx, snapshotter); err != nil {
				return fmt.Errorf("empty the namespace %s: %w", namespace, errgrpc.ToNative(err))
			}
		}
		left, err := c.list(ctx, snapshotter)
		removed += len(all) - len(left)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%d snapshots of %s in the namespace %s are held by something: %s", len(left), snapshotter, namespace,
				left[0].Name)
		}
		return err
	})
	return removed, err
}

// dropContainers removes containers that don't run.
func (c *Client) dropContainers(ctx context.Context, snapshotter string) error {
	api := containers.NewContainersClient(c.conn)
	found, err := api.List(ctx, &containers.ListContainersRequest{})
	if err != nil {
		return err
	}
	for _, container := range found.Containers {
		if container.Snapshotter != snapshotter {
			continue
		}
		if _, err := api.Delete(ctx, &containers.DeleteContainerRequest{ID: container.ID}); notThere(err) != nil {
			return fmt.Errorf("remove the container %s: %w", container.ID, err)
		}
	}
	return nil
}

// notThere takes the error of what is removed already for none.
func notThere(err error) error {
	if errdefs.IsNotFound(errgrpc.ToNative(err)) {
		return nil
	}
	return err
}

// dropReferences removes the labels of blobs that hold snapshots. Without them containerd unpacks an image again.
func (c *Client) dropReferences(ctx context.Context, snapshotter string) error {
	api := content.NewContentClient(c.conn)
	return c.forReferences(ctx, snapshotter, func(blob *content.Info, labels []string) error {
		var mask fieldmaskpb.FieldMask
		for _, label := range labels {
			mask.Paths = append(mask.Paths, "labels."+label)
		}
		_, err := api.Update(ctx, &content.UpdateRequest{Info: &content.Info{Digest: blob.Digest}, UpdateMask: &mask})
		if notThere(err) != nil {
			return fmt.Errorf("let go of what %s is unpacked to: %w", blob.Digest, err)
		}
		return nil
	})
}

// dropLeases takes snapshots out of leases.
func (c *Client) dropLeases(ctx context.Context, snapshotter string) error {
	api := leases.NewLeasesClient(c.conn)
	found, err := api.List(ctx, &leases.ListRequest{})
	if err != nil {
		return err
	}
	for _, lease := range found.Leases {
		held, err := api.ListResources(ctx, &leases.ListResourcesRequest{ID: lease.ID})
		if notThere(err) != nil {
			return err
		}
		for _, r := range held.GetResources() {
			if r.Type != "snapshots/"+snapshotter {
				continue
			}
			_, err := api.DeleteResource(ctx, &leases.DeleteResourceRequest{ID: lease.ID, Resource: r})
			if notThere(err) != nil {
				return fmt.Errorf("take %s out of the lease %s: %w", r.ID, lease.ID, err)
			}
		}
	}
	return nil
}

// dropSnapshots removes snapshots by their names, as far as that goes.
func (c *Client) dropSnapshots(ctx context.Context, snapshotter string) error {
	all, err := c.list(ctx, snapshotter)
	if err != nil {
		return err
	}
	api := snapshots.NewSnapshotsClient(c.conn)
	for _, info := range childrenFirst(all) {
		_, err := api.Remove(ctx, &snapshots.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: info.Name})
		if errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
			// It is left to the collection, which takes none with this label.
			_, err = api.Update(ctx, &snapshots.UpdateSnapshotRequest{
				Snapshotter: snapshotter, Info: &snapshots.Info{Name: info.Name},
				UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels.containerd.io/gc.root"}},
			})
		}
		if notThere(err) != nil {
			return fmt.Errorf("remove the snapshot %s: %w", info.Name, err)
		}
	}
	return nil
}

// collect waits for a collection, which the end of a lease brings about.
func (c *Client) collect(ctx context.Context, _ string) error {
	api := leases.NewLeasesClient(c.conn)
	const id = "cvmfs-graphdriver-uninstall"
	_, err := api.Create(ctx, &leases.CreateRequest{ID: id})
	if err != nil && !errdefs.IsAlreadyExists(errgrpc.ToNative(err)) {
		return err
	}
	_, err = api.Delete(ctx, &leases.DeleteRequest{ID: id, Sync: true})
	return err
}

// childrenFirst sorts snapshots so that each comes before the one it stands on.
func childrenFirst(all []*snapshots.Info) []*snapshots.Info {
	parents := map[string]string{}
	for _, info := range all {
		parents[info.Name] = info.Parent
	}
	depth := func(name string) (n int) {
		for ; name != "" && n <= len(parents); name = parents[name] {
			n++
		}
		return n
	}
	slices.SortStableFunc(all, func(a, b *snapshots.Info) int { return cmp.Compare(depth(b.Name), depth(a.Name)) })
	return all
}
