package control

import (
	"context"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/status"
)

// The commands of a node's object cache. Images are named by their keys.
const (
	// CacheStatus asks for the state of the cache.
	CacheStatus Question[None, CacheState] = "Cache.Status"
	// CacheList lists the images and how much of each is here.
	CacheList Task[None, None, []CachedImage] = "Cache.List"
	// CacheVerify verifies the objects of an image, or all.
	CacheVerify Task[CacheImage, objects.Verified, objects.Verified] = "Cache.Verify"
	// CacheClean removes objects.
	CacheClean Task[objects.CleanOptions, None, objects.Removed] = "Cache.Clean"
	// CachePrewarm fetches what of an image isn't here.
	CachePrewarm Task[CacheImage, objects.Completion, objects.Completion] = "Cache.Prewarm"
	// CacheProfile asks for the start profile that was recorded of an image.
	CacheProfile Task[CacheImage, None, string] = "Cache.Profile"
	// CachePin keeps the objects of an image, or ends that.
	CachePin Task[CachePinned, None, None] = "Cache.Pin"
)

// CacheState is the state of the cache.
type CacheState struct {
	objects.Status
	LimitBy string `json:"limit_by"` // what says the limit, for people
}

// CachedImage is an image in the list of what is here, with the folders that it was composed from.
type CachedImage struct {
	objects.Entry
	Layers []status.Pin `json:"layers,omitempty"`
}

// CacheImage names an image by its key, or where a command takes that all of them by "".
type CacheImage struct {
	Key string `json:"key"`
}

// CachePinned says whether an image is to be pinned.
type CachePinned struct {
	Key    string `json:"key"`
	Pinned bool   `json:"pinned"`
}

// Cache answers the commands of the object cache.
type Cache interface {
	CacheStatus() (CacheState, error)
	CacheList(ctx context.Context) ([]CachedImage, error)
	CacheVerify(ctx context.Context, key string, tell func(objects.Verified)) (objects.Verified, error)
	CacheClean(ctx context.Context, o objects.CleanOptions) (objects.Removed, error)
	CachePrewarm(ctx context.Context, key string, tell func(objects.Completion)) (objects.Completion, error)
	CacheProfile(ctx context.Context, key string) (string, error)
	CachePin(key string, pinned bool) error
}

// registerCache has a handler answer the commands of the cache.
func (h *Handler) registerCache(n Cache) {
	answer(h, CacheStatus, func(None) (CacheState, error) { return n.CacheStatus() })
	perform(h, CacheList, func(ctx context.Context, _ None, _ func(None)) ([]CachedImage, error) {
		return n.CacheList(ctx)
	})
	perform(h, CacheVerify, func(ctx context.Context, q CacheImage, tell func(objects.Verified)) (objects.Verified,
		error,
	) {
		return n.CacheVerify(ctx, q.Key, tell)
	})
	perform(h, CacheClean, func(ctx context.Context, o objects.CleanOptions, _ func(None)) (objects.Removed, error) {
		return n.CacheClean(ctx, o)
	})
	perform(h, CachePrewarm, func(ctx context.Context, q CacheImage, tell func(objects.Completion)) (objects.Completion,
		error,
	) {
		return n.CachePrewarm(ctx, q.Key, tell)
	})
	perform(h, CacheProfile, func(ctx context.Context, q CacheImage, _ func(None)) (string, error) {
		return n.CacheProfile(ctx, q.Key)
	})
	perform(h, CachePin, func(_ context.Context, q CachePinned, _ func(None)) (None, error) {
		return None{}, n.CachePin(q.Key, q.Pinned)
	})
}
