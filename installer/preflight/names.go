package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/storage"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"
)

// Named is what the engine calls a composed image.
type Named struct {
	Images     []string // tags, or of an image without any the beginning of its id
	Containers []string // that run
	Local      string   // how much of it is on this host, as the driver tells the engine
}

// asking is how many questions the engine is asked at once.
const asking = 4

// Names asks an engine for the names of thin images and of the containers that run from them, by the keys of their
// composed images. The two are joined by what the driver tells the engine of an image and of a container: the key is
// the field Image of GraphDriver.Data in docker inspect. What goes while it is looked at is left out.
func Names(ctx context.Context, c *client.Client) (map[string]*Named, error) {
	images, err := c.ImageList(ctx, image.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("names of images: %w", err)
	}
	running, err := c.ContainerList(ctx, container.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("names of containers: %w", err)
	}
	n := names{byKey: map[string]*Named{}}
	var g errgroup.Group
	g.SetLimit(asking)
	for _, i := range images {
		g.Go(func() error {
			if inspected, err := c.ImageInspect(ctx, i.ID); err == nil { // else it has gone
				n.add(inspected.GraphDriver, func(to *Named) { to.Images = append(to.Images, tagsOf(i)...) })
			}
			return nil
		})
	}
	for _, r := range running {
		g.Go(func() error {
			inspected, err := c.ContainerInspect(ctx, r.ID)
			if err == nil && inspected.ContainerJSONBase != nil {
				n.add(inspected.GraphDriver, func(to *Named) { to.Containers = append(to.Containers, nameOf(r)) })
			}
			return nil
		})
	}
	g.Wait() // none fails
	for _, to := range n.byKey {
		slices.Sort(to.Images)
		slices.Sort(to.Containers)
	}
	return n.byKey, ctx.Err()
}

type names struct {
	mu    sync.Mutex // guards byKey and what is in it
	byKey map[string]*Named
}

// add adds a name to the composed image that the driver tells of; of an ordinary image it tells of none.
func (n *names) add(told storage.DriverData, name func(*Named)) {
	if told.Data["Image"] == "" {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	key := told.Data["Image"]
	if n.byKey[key] == nil {
		n.byKey[key] = &Named{}
	}
	n.byKey[key].Local = told.Data["Local"]
	name(n.byKey[key])
}

func tagsOf(i image.Summary) []string {
	tags := slices.DeleteFunc(slices.Clone(i.RepoTags), func(tag string) bool { return tag == "<none>:<none>" })
	if len(tags) > 0 {
		return tags
	}
	id := strings.TrimPrefix(i.ID, "sha256:")
	return []string{id[:min(12, len(id))]}
}
