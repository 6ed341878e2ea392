package node

import (
	"bytes"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"

	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/status"
)

// Status tells the state of the node for programs.
func (n *Node) Status() status.Node {
	st := status.Node{
		Version: n.cfg.Version, Commit: n.cfg.Commit, PID: os.Getpid(), Objects: status.Objects(n.objects.Stats()),
		Fetch: map[string]status.Fetch{}, Memory: usage(),
	}
	c, err := n.configured()
	if err == nil {
		st.Store, err = n.storeStatus(c)
	}
	if err != nil {
		st.Err = err.Error()
		return st
	}
	if c.repositories == nil {
		return st
	}
	for _, image := range st.Store.Images {
		for _, pin := range image.Layers {
			if f, ok := c.repositories.Opened(pin.FQRN); ok { // one that isn't open has fetched nothing
				st.Fetch[pin.FQRN] = status.Fetch(f.Stats())
			}
		}
	}
	return st
}

// storeStatus tells the state of layers and images.
func (n *Node) storeStatus(c *configuration) (st status.Store, err error) {
	st = status.Store{Images: []status.Image{}, Mounts: []status.Mount{}}
	var keys map[string]bool
	if st.Layers, st.Thin, keys, err = n.layers.Count(); err != nil {
		return status.Store{}, err
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		info := status.Image{Key: key}
		if image, err := c.composer.Describe(key); err != nil {
			info.Err = err.Error()
		} else {
			info.Objects, info.Size = image.Objects, image.Size
			for _, pin := range image.Layers {
				info.Layers = append(info.Layers, status.Pin(pin))
			}
		}
		st.Images = append(st.Images, info)
	}
	st.Mounts = append(st.Mounts, c.face.Mounts()...)
	return st, nil
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
