package node

import (
	"context"
	"sync"
	"time"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
)

// CacheStatus returns the state of the object cache.
func (n *Node) CacheStatus() (control.CacheState, error) {
	st, err := n.objects.Status()
	return control.CacheState{Status: st, LimitBy: n.limitedBy()}, err
}

// CacheList lists the composed images, the one used last first, and how much of each is here.
func (n *Node) CacheList(ctx context.Context) ([]control.CachedImage, error) {
	c, err := n.configured()
	if err != nil {
		return nil, err
	}
	entries, err := n.objects.List(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]control.CachedImage, len(entries))
	for i, e := range entries {
		list[i].Entry = e
		if image, err := c.composer.Describe(e.Key); err == nil { // else the entry's own error is told
			for _, pin := range image.Layers {
				list[i].Layers = append(list[i].Layers, status.Pin(pin))
			}
		}
	}
	return list, nil
}

// Names returns what the engine calls composed images.
func (n *Node) Names(ctx context.Context) (status.Names, error) {
	c, err := n.configured()
	if err != nil {
		return status.Names{}, err
	}
	return c.face.Names(ctx)
}

// CacheVerify verifies the objects of an image, or with "" all of them, and removes damaged ones.
func (n *Node) CacheVerify(ctx context.Context, key string, tell func(objects.Verified)) (objects.Verified, error) {
	return n.objects.Verify(ctx, key, seldom(tell))
}

// CacheClean removes objects that no image in use names. Before the engine has said which are, it is an error.
func (n *Node) CacheClean(ctx context.Context, o objects.CleanOptions) (objects.Removed, error) {
	if _, err := n.configured(); err != nil {
		return objects.Removed{}, err
	}
	defer n.starts.unsettle()
	return n.objects.Clean(ctx, o)
}

// CachePrewarm fetches what of an image isn't here.
func (n *Node) CachePrewarm(ctx context.Context, key string, tell func(objects.Completion)) (objects.Completion,
	error,
) {
	if _, err := n.configured(); err != nil {
		return objects.Completion{}, err
	}
	return n.objects.Prewarm(ctx, n.index, key, seldom(tell))
}

// CachePin keeps the objects of an image that are here or come, or ends that.
func (n *Node) CachePin(key string, pinned bool) error { return n.objects.Pin(key, pinned) }

// seldom passes on what is told twice a second.
func seldom[T any](tell func(T)) func(T) {
	const pause = time.Second / 2
	var mu sync.Mutex
	var last time.Time
	return func(v T) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(last) >= pause {
			last = now
			tell(v)
		}
	}
}
