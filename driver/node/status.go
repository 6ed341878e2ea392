package node

import (
	"bytes"
	"cmp"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/internal/hostfs"
	"cvmfs-graphdriver/internal/tally"
)

// Status tells the state of the node for programs. It reads no more than records of layers and images, and of each
// image a sample of its objects.
func (n *Node) Status() status.Node {
	st := status.Node{
		Version: n.cfg.Version, Commit: n.cfg.Commit, PID: os.Getpid(), Objects: status.Objects(n.objects.Stats()),
		Fetch: map[string]status.Fetch{}, Servers: map[string]status.Ways{}, Memory: usage(),
		Compose: n.composed.status(), Mounted: n.mounted.status(), Metrics: n.exporter.State(),
	}
	var err error
	st.Cache, err = n.cacheStatus()
	c, notReady := n.configured()
	err = cmp.Or(notReady, err)
	if err == nil {
		st.Store, err = n.storeStatus(c)
	}
	if err != nil {
		st.Err = err.Error()
		return st
	}
	st.View = n.ViewInUse()
	if st.PeerGroup, err = hostfs.PeerGroup(n.cfg.Root); err != nil {
		n.cfg.Log.Warn("whether the folder of layers is shared can't be told", "err", err)
	}
	if c.repositories == nil {
		return st
	}
	st.Queued = c.repositories.Queued()
	for _, r := range c.repositories.InUse() {
		st.Repositories = append(st.Repositories, inUse(r))
	}
	for _, image := range st.Store.Images {
		for _, pin := range image.Layers {
			if f, ok := c.repositories.Opened(pin.FQRN); ok { // one that isn't open has fetched nothing
				st.Fetch[pin.FQRN] = status.Fetch(f.Stats())
				st.Servers[pin.FQRN] = ways(f)
			}
		}
	}
	return st
}

// ways tells the state of a repository's servers and proxies.
func ways(f *fetch.Fetcher) (w status.Ways) {
	servers, proxies := f.Standing()
	w.Servers, w.Proxies = status.Standing(servers), status.Standing(proxies)
	for _, h := range f.Hosts() {
		w.Hosts = append(w.Hosts, status.Host{
			Host: h.Host, Attempts: h.Attempts, Failures: h.Failures, Latency: status.Durations(h.Latency),
		})
	}
	return w
}

// cacheStatus tells the state of the object store.
func (n *Node) cacheStatus() (status.Cache, error) {
	s, err := n.objects.Status()
	return status.Cache{
		Limit: s.Limit, LimitBy: n.limitedBy(), Used: s.Used, Objects: s.Objects, Floor: s.Floor, Free: s.Free,
		Size: s.Size,
		Hits: s.Hits, Misses: s.Misses, Unstored: s.Unstored, Refused: s.Refused,
		Evicted: s.Evicted.Objects, EvictedBytes: s.Evicted.Bytes, Damaged: s.Damaged,
	}, err
}

// inUse tells the state of a repository that is in use.
func inUse(r client.InUse) status.Repository {
	told := status.Repository{FQRN: r.Config.FQRN, Since: r.Since}
	if r.Err != nil {
		told.Err = r.Err.Error()
	}
	for _, s := range r.Config.Settings() {
		told.Settings = append(told.Settings, status.Setting{
			Name: s.Name, Value: s.Value, Place: s.Place.String(), BuiltIn: s.Place.File == config.BuiltIn,
		})
	}
	servers, proxies := r.Fetcher.Members()
	told.Servers, told.Proxies = members(servers), members(proxies)
	return told
}

func members(found []fetch.Member) []status.Member {
	list := []status.Member{}
	for _, m := range found {
		told := status.Member{Name: m.Name, Answers: m.Answers, Failures: m.Failures, Wait: m.Wait.Seconds()}
		if m.Err != nil {
			told.Err = m.Err.Error()
		}
		list = append(list, told)
	}
	return list
}

// storeStatus tells the state of layers and images.
func (n *Node) storeStatus(c *configuration) (st status.Store, err error) {
	st = status.Store{Images: []status.Image{}, Mounts: []status.Mount{}}
	var keys map[string]bool
	if st.Layers, st.Thin, keys, err = n.layers.Count(); err != nil {
		return status.Store{}, err
	}
	origins, err := n.layers.Origins()
	if err != nil {
		return status.Store{}, err
	}
	began := time.Now()
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		info := status.Image{Key: key, Origin: origins[key]}
		if image, err := c.composer.Describe(key); err != nil {
			info.Err = err.Error()
		} else {
			info.Objects, info.Size = image.Objects, image.Size
			for _, pin := range image.Layers {
				info.Layers = append(info.Layers, status.Pin(pin))
			}
			if time.Since(began) < glancing {
				info.Local = n.glance(image)
			}
		}
		st.Images = append(st.Images, info)
	}
	st.Mounts = append(st.Mounts, c.face.Mounts()...)
	return st, nil
}

// glancing is how long images are looked at for what of them is on disk, whose folders may be in no cache: of those
// that come later it isn't told.
const glancing = time.Second

// glance reports about how much of an image is on disk, without taking it into use; nil if that can't be told.
func (n *Node) glance(image *images.Image) *status.Share {
	s, err := n.objects.Glance(n.tableFile(image.Key))
	if err != nil {
		return nil // whoever needs the image is told
	}
	local := &status.Share{Objects: s.Objects}
	if s.OfBytes > 0 {
		local.Bytes = int64(float64(s.Bytes) / float64(s.OfBytes) * float64(image.Size))
	}
	return local
}

// work counts something that is done time and again.
type work struct {
	took   tally.Durations
	failed atomic.Int64
}

// begin begins it. What it returns ends it, with the error there is then.
func (w *work) begin() func(*error) {
	began := time.Now()
	return func(err *error) {
		w.took.Add(time.Since(began))
		if *err != nil {
			w.failed.Add(1)
		}
	}
}

func (w *work) status() status.Work {
	return status.Work{Took: status.Durations(w.took.Histogram()), Failed: w.failed.Load()}
}

// Image returns what is known of a composed image, and the folder that shows it, without taking it into use. The folder
// is known also where there is an error.
func (n *Node) Image(key string) (image *images.Image, shown string, err error) {
	c, err := n.configured()
	if err != nil {
		return nil, "", err
	}
	image, err = c.composer.Describe(key)
	return image, n.shownAt(c.view, key), err
}

// usage measures the server's memory.
func usage() status.Memory {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	m := status.Memory{Heap: stats.HeapAlloc}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := bytes.Fields(b); len(fields) > 1 {
			if pages, err := strconv.ParseUint(string(fields[1]), 10, 64); err == nil {
				m.Resident = pages * uint64(os.Getpagesize())
			}
		}
	}
	return m
}
