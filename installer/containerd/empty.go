package containerd

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
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
			c.dropContainers, c.dropReferences, c.dropLeases, c.dropSnapshots,
			func(ctx context.Context, _ string) error { return c.collect(ctx) },
		} {
			if err := drop(ctx, snapshotter); err != nil {
				return fmt.Errorf("empty the namespace %s: %w", namespace, err)
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
	api := c.api.ContainerService()
	found, err := api.List(ctx)
	if err != nil {
		return err
	}
	for _, container := range found {
		if container.Snapshotter != snapshotter {
			continue
		}
		if err := notThere(api.Delete(ctx, container.ID)); err != nil {
			return fmt.Errorf("remove the container %s: %w", container.ID, err)
		}
	}
	return nil
}

// notThere takes the error of what is removed already for none.
func notThere(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// dropReferences removes the labels of blobs that hold snapshots. Without them containerd unpacks an image again.
func (c *Client) dropReferences(ctx context.Context, snapshotter string) error {
	return c.forReferences(ctx, snapshotter, func(blob content.Info, labels []string) error {
		var paths []string
		for _, label := range labels {
			paths = append(paths, "labels."+label)
		}
		_, err := c.api.ContentStore().Update(ctx, content.Info{Digest: blob.Digest}, paths...)
		if notThere(err) != nil {
			return fmt.Errorf("let go of what %s is unpacked to: %w", blob.Digest, err)
		}
		return nil
	})
}

// dropLeases takes snapshots out of leases.
func (c *Client) dropLeases(ctx context.Context, snapshotter string) error {
	api := c.api.LeasesService()
	found, err := api.List(ctx)
	if err != nil {
		return err
	}
	for _, lease := range found {
		held, err := api.ListResources(ctx, lease)
		if notThere(err) != nil {
			return err
		}
		for _, r := range held {
			if r.Type != "snapshots/"+snapshotter {
				continue
			}
			if err := notThere(api.DeleteResource(ctx, lease, r)); err != nil {
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
	api := c.api.SnapshotService(snapshotter)
	for _, info := range childrenFirst(all) {
		err := api.Remove(ctx, info.Name)
		if errdefs.IsFailedPrecondition(err) {
			// It is left to the collection, which takes none with this label.
			_, err = api.Update(ctx, snapshots.Info{Name: info.Name}, "labels.containerd.io/gc.root")
		}
		if notThere(err) != nil {
			return fmt.Errorf("remove the snapshot %s: %w", info.Name, err)
		}
	}
	return nil
}

// collect waits for a collection, which the end of a lease brings about.
func (c *Client) collect(ctx context.Context) error {
	api := c.api.LeasesService()
	lease := leases.Lease{ID: "cvmfs-graphdriver-collect"}
	_, err := api.Create(ctx, leases.WithID(lease.ID))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return api.Delete(ctx, lease, leases.SynchronousDelete)
}

// childrenFirst sorts snapshots so that each comes before the one it stands on.
func childrenFirst(all []snapshots.Info) []snapshots.Info {
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
	slices.SortStableFunc(all, func(a, b snapshots.Info) int { return cmp.Compare(depth(b.Name), depth(a.Name)) })
	return all
}
