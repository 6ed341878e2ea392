package containerd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
)

// Known is what containerd knows of a snapshotter's snapshots.
type Known struct {
	There int      `json:"there"`          // how many it knows that are there
	Lost  []string `json:"lost,omitempty"` // those of images and containers that aren't, as "namespace/key"
}

// Known returns what containerd knows of the snapshots of a snapshotter, which must run. containerd lists none that the
// snapshotter hasn't got: they are looked for by the images and containers that hold them.
func (c *Client) Known(ctx context.Context, snapshotter string) (known Known, err error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	err = c.forNamespaces(ctx, func(namespace string) error {
		ctx := in(ctx, namespace)
		all, err := c.list(ctx, snapshotter)
		if err != nil {
			return err
		}
		known.There += len(all)
		held, err := c.held(ctx, snapshotter)
		if err != nil {
			return fmt.Errorf("ask containerd for what images and containers of %s hold: %w", namespace, err)
		}
		for _, info := range all {
			delete(held, info.Name)
		}
		for key := range held {
			if _, err := c.api.SnapshotService(snapshotter).Stat(ctx, key); isLost(err) {
				known.Lost = append(known.Lost, namespace+"/"+key)
			}
		}
		return nil
	})
	slices.Sort(known.Lost)
	return known, err
}

// isLost tells the snapshotter's answer to a name from that of containerd, which doesn't ask for what its database
// hasn't got: that says "snapshot KEY does not exist".
func isLost(err error) bool {
	return errdefs.IsNotFound(err) && !strings.Contains(err.Error(), "does not exist")
}

// held returns the keys of the snapshots that images and containers of a namespace hold.
func (c *Client) held(ctx context.Context, snapshotter string) (map[string]bool, error) {
	keys := map[string]bool{}
	found, err := c.api.ContainerService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, container := range found {
		if container.Snapshotter == snapshotter && container.SnapshotKey != "" {
			keys[container.SnapshotKey] = true
		}
	}
	return keys, c.forReferences(ctx, snapshotter, func(blob content.Info, labels []string) error {
		for _, label := range labels {
			keys[blob.Labels[label]] = true
		}
		return nil
	})
}

// forReferences does something for each blob that holds snapshots of a snapshotter, with the labels that do.
func (c *Client) forReferences(ctx context.Context, snapshotter string,
	do func(blob content.Info, labels []string) error,
) error {
	return c.api.ContentStore().Walk(ctx, func(info content.Info) error {
		var labels []string
		for label := range info.Labels {
			if rest, ok := strings.CutPrefix(label, reference+snapshotter); ok && (rest == "" || rest[0] == '/') {
				labels = append(labels, label)
			}
		}
		if len(labels) == 0 {
			return nil
		}
		return do(info, labels)
	})
}
