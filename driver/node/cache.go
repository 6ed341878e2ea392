package node

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/options"
)

// cachedImages tells the object store which images there are.
type cachedImages struct{ *Node }

// Images lists the composed images on disk. Mounted is what mounts of the face read from, and what a shared overlay of
// the erofs view shows, which keeps the files it has looked up. One of the FUSE view keeps none. Both stay mounted when
// the last container has ended. Before Configure that isn't known, and all images count as mounted.
func (c cachedImages) Images() (list []objects.Image, err error) {
	entries, err := os.ReadDir(c.Path("images"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	now, notReady := c.configured()
	mounted := map[string]bool{}
	if notReady == nil {
		if mounted, err = now.face.Images(); err != nil {
			return nil, err
		}
	}
	shared, err := os.ReadDir(c.run("shared"))
	if err != nil {
		return nil, err
	}
	for _, e := range shared {
		if key, ok := strings.CutSuffix(e.Name(), erofsSuffix); ok {
			mounted[key] = true
		}
	}
	loaded := c.index.ByPath()
	for _, e := range entries {
		if key := e.Name(); !strings.HasPrefix(key, ".") { // else half-written
			t := c.tableFile(key)
			list = append(list, objects.Image{
				Key: key, Table: t, Mounted: notReady != nil || mounted[key], Loaded: loaded[t],
			})
		}
	}
	return list, nil
}

// tableFile is the file of the objects that an image names.
func (n *Node) tableFile(key string) string { return n.Path("images", key, "objects") }

// limitAgain bounds the object store as the settings that hold, and the host's files, say now.
func (n *Node) limitAgain() error {
	n.limiting.Lock()
	defer n.limiting.Unlock()
	c, err := n.configured()
	if err != nil {
		return err
	}
	return n.limitCache(c)
}

// kubernetesYield is how many percent of the file system the cache leaves to others beside kubelet, which by default
// removes images and then pods when 15 are left: the cache gives way first.
const kubernetesYield = 20

// limitCache bounds the object store as a configuration says, or else the host's configuration. One that can't be read
// changes nothing: repositories say what is wrong with it. The caller holds limiting.
func (n *Node) limitCache(c *configuration) error {
	limits := objects.Limits{Limit: c.settings.CacheLimit, Floor: c.settings.CacheFloor}
	if limits.Floor == 0 && c.face.Kubernetes() {
		limits.Yield = kubernetesYield
	}
	by := "storage option " + options.CacheLimit
	if limits.Limit == 0 {
		now := limits
		if now.Limit = n.limits.Limit; n.limits == now && n.quotaSeen.Same() {
			return nil
		}
		var err error
		if limits.Limit, by, err = n.quota(); err != nil && n.limitedBy() != "" {
			return nil
		}
	}
	if n.limitedBy() == by && n.limits == limits {
		return nil
	}
	if err := n.objects.SetLimits(limits); err != nil {
		return err
	}
	n.limits = limits
	n.mu.Lock()
	defer n.mu.Unlock()
	n.limitBy = by
	n.cfg.Log.Info("object cache", "limited_by", by)
	return nil
}

// limitedBy tells what says the cache's limit; "" before it is said.
func (n *Node) limitedBy() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.limitBy
}

// quota returns the limit that the host's configuration sets, and where; 0 for the default.
func (n *Node) quota() (limit int64, by string, err error) {
	const none = "half of the file system"
	if n.cfg.NewComposer != nil {
		return 0, none, nil
	}
	folder, err := n.configurationFolder()
	if err != nil {
		return 0, none, err
	}
	n.quotaSeen = &config.Seen{}
	folder.Seen = n.quotaSeen
	q, ok, err := folder.Quota()
	switch {
	case err != nil || !ok || q.Unused != "":
		return 0, none, err
	case q.Bytes == 0:
		return math.MaxInt64, fmt.Sprintf("CVMFS_QUOTA_LIMIT (%v): none of its own", q.Place), nil
	}
	return q.Bytes, fmt.Sprintf("CVMFS_QUOTA_LIMIT (%v)", q.Place), nil
}
