package metrics

import (
	"maps"
	"slices"

	"cvmfs-graphdriver/driver/status"
)

// Family is a metric with all its labels.
type Family struct {
	Name   string
	Type   string   // counter, gauge or histogram
	Labels []string // names
	Help   string

	samples func(w *writer, st *status.Node)
}

// Families returns all metrics there are, in the order in which they are written.
func Families() []Family { return slices.Concat(node, cache, fetching, images, work, process) }

// counter makes a family of one counter, whose value is in the state of the node.
func counter(name, help string, value func(*status.Node) int64) Family {
	return Family{Name: name, Type: "counter", Help: help, samples: func(w *writer, st *status.Node) {
		w.count(value(st))
	}}
}

// gauge makes a family of one gauge.
func gauge(name, help string, value func(*status.Node) int64) Family {
	return Family{Name: name, Type: "gauge", Help: help, samples: func(w *writer, st *status.Node) {
		w.count(value(st))
	}}
}

// byHost makes a family with samples of each host of each repository's servers.
func byHost(name, kind, help string, label []string,
	each func(w *writer, h status.Host, labels ...string),
) Family {
	return Family{
		Name: name, Type: kind, Help: help, Labels: append([]string{"repository", "server"}, label...),
		samples: func(w *writer, st *status.Node) {
			for _, repository := range slices.Sorted(maps.Keys(st.Servers)) {
				for _, h := range st.Servers[repository].Hosts {
					each(w, h, "repository", repository, "server", h.Host)
				}
			}
		},
	}
}

// byRepository makes a family of counters with a sample of each repository.
func byRepository(name, help string, value func(status.Fetch) int64) Family {
	return Family{
		Name: name, Type: "counter", Help: help, Labels: []string{"repository"},
		samples: func(w *writer, st *status.Node) {
			for _, repository := range slices.Sorted(maps.Keys(st.Fetch)) {
				w.count(value(st.Fetch[repository]), "repository", repository)
			}
		},
	}
}

// byMember makes a family with samples of the servers and of the proxies of each repository.
func byMember(name, kind, help string, value func(status.Standing) int64) Family {
	return Family{
		Name: name, Type: kind, Help: help, Labels: []string{"repository", "member"},
		samples: func(w *writer, st *status.Node) {
			for _, repository := range slices.Sorted(maps.Keys(st.Servers)) {
				ways := st.Servers[repository]
				w.count(value(ways.Servers), "repository", repository, "member", "server")
				w.count(value(ways.Proxies), "repository", repository, "member", "proxy")
			}
		},
	}
}

// byImage makes a family of gauges with a sample of each image of which ok is true.
func byImage(name, help string, value func(*status.Node, *status.Image) (n int64, ok bool)) Family {
	return Family{
		Name: name, Type: "gauge", Help: help, Labels: []string{"origin", "image"},
		samples: func(w *writer, st *status.Node) {
			for i := range st.Store.Images {
				image := &st.Store.Images[i]
				if n, ok := value(st, image); ok {
					w.count(n, "origin", image.Origin, "image", short(image.Key))
				}
			}
		},
	}
}

// short is as much of an image's key as tells it from others.
func short(key string) string { return key[:min(12, len(key))] }

// known says a value of an image that can be read.
func known(value func(*status.Image) int64) func(*status.Node, *status.Image) (int64, bool) {
	return func(_ *status.Node, i *status.Image) (int64, bool) { return value(i), i.Err == "" }
}

var node = []Family{
	{
		Name: "cvmfs_build_info", Type: "gauge", Labels: []string{"version", "commit"},
		Help:    "Always 1; the labels say which build runs.",
		samples: func(w *writer, st *status.Node) { w.count(1, "version", st.Version, "commit", st.Commit) },
	},
	gauge("cvmfs_state_unknown",
		"Whether the state of layers and images can't be told: the engine has not initialised the driver, or their "+
			"records can't be read. Then the metrics of images and mounts are missing.",
		func(st *status.Node) int64 { return toInt(st.Err != "") }),
}

func toInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

var cache = []Family{
	gauge("cvmfs_cache_objects", "Objects on disk, complete.", func(st *status.Node) int64 { return st.Cache.Objects }),
	gauge("cvmfs_cache_used_bytes", "Disk that objects take, those of which only parts are here included.",
		func(st *status.Node) int64 { return st.Cache.Used }),
	gauge("cvmfs_cache_limit_bytes", "Disk that objects may take.",
		func(st *status.Node) int64 { return st.Cache.Limit }),
	gauge("cvmfs_cache_floor_bytes", "Disk that stays free: below it nothing is fetched.",
		func(st *status.Node) int64 { return st.Cache.Floor }),
	gauge("cvmfs_cache_free_bytes", "Disk that is free on the cache's file system.",
		func(st *status.Node) int64 { return st.Cache.Free }),
	gauge("cvmfs_cache_size_bytes", "Size of the cache's file system.",
		func(st *status.Node) int64 { return st.Cache.Size }),
	counter("cvmfs_cache_hits_total",
		"Objects that were asked for and on disk. What the kernel finds there by itself is not seen.",
		func(st *status.Node) int64 { return st.Cache.Hits }),
	counter("cvmfs_cache_misses_total", "Objects that were asked for and had to be fetched.",
		func(st *status.Node) int64 { return st.Cache.Misses }),
	counter("cvmfs_cache_evicted_objects_total", "Objects removed to make room.",
		func(st *status.Node) int64 { return st.Cache.Evicted }),
	counter("cvmfs_cache_evicted_bytes_total", "Disk that the objects took which were removed to make room.",
		func(st *status.Node) int64 { return st.Cache.EvictedBytes }),
	counter("cvmfs_cache_unstored_total",
		"Objects that were fetched, read and not kept, as images in use hold all up to the limit.",
		func(st *status.Node) int64 { return st.Cache.Unstored }),
	counter("cvmfs_cache_refused_total", "Fetches that ended at the floor, with \"no space left on device\".",
		func(st *status.Node) int64 { return st.Cache.Refused }),
	counter("cvmfs_cache_damaged_objects_total", "Objects removed because they were damaged on disk.",
		func(st *status.Node) int64 { return st.Cache.Damaged }),
	gauge("cvmfs_cache_partial_objects", "Objects of which only parts are here now.",
		func(st *status.Node) int64 { return st.Objects.Partials }),
	gauge("cvmfs_cache_partial_bytes", "Bytes of the parts of objects of which only parts are here now.",
		func(st *status.Node) int64 { return st.Objects.PartialBytes }),
}

var fetching = []Family{
	counter("cvmfs_objects_fetched_total", "Objects that arrived complete.",
		func(st *status.Node) int64 { return st.Objects.Fetched }),
	counter("cvmfs_objects_fetched_bytes_total", "Bytes of the objects that arrived, uncompressed.",
		func(st *status.Node) int64 { return st.Objects.FetchedBytes }),
	counter("cvmfs_objects_prefetched_total", "Objects that arrived before anybody asked for them.",
		func(st *status.Node) int64 { return st.Objects.Prefetched }),
	counter("cvmfs_objects_ahead_bytes_total",
		"Bytes of objects and chunks that arrived before anybody asked for them, uncompressed.",
		func(st *status.Node) int64 { return st.Objects.AheadBytes }),
	counter("cvmfs_objects_ahead_used_bytes_total",
		"Of these bytes, those that were asked for within two minutes; the others were fetched in vain so far.",
		func(st *status.Node) int64 { return st.Objects.AheadUsed }),
	counter("cvmfs_objects_start_bytes_total", "Bytes that arrived because a start profile names them, uncompressed.",
		func(st *status.Node) int64 { return st.Objects.StartBytes }),
	counter("cvmfs_objects_prefetch_dropped_total", "Objects that were not fetched ahead, as the queue was full.",
		func(st *status.Node) int64 { return st.Objects.Dropped }),
	counter("cvmfs_objects_chunks_total", "Chunks of large objects that arrived because a part was read.",
		func(st *status.Node) int64 { return st.Objects.Chunks }),
	counter("cvmfs_objects_failed_total",
		"Objects that could not be had from any server, those included for which nobody waited any more.",
		func(st *status.Node) int64 { return st.Objects.Failed }),
	gauge("cvmfs_objects_waiting", "Reads and other calls that wait for an object now.",
		func(st *status.Node) int64 { return st.Objects.Waiting }),
	gauge("cvmfs_objects_prefetch_queued", "Objects that wait to be fetched ahead now.",
		func(st *status.Node) int64 { return st.Objects.Queued }),
	gauge("cvmfs_fetch_queued", "Requests that wait for a connection to a server or proxy now.",
		func(st *status.Node) int64 { return int64(st.Queued) }),
	byRepository("cvmfs_fetch_received_bytes_total", "Bytes received from servers, compressed as they send them.",
		func(f status.Fetch) int64 { return f.Bytes }),
	byRepository("cvmfs_fetch_retries_total", "Attempts made again on the same way.",
		func(f status.Fetch) int64 { return f.Retries }),
	byRepository("cvmfs_fetch_unavailable_total",
		"Requests that failed at once, as all servers or proxies were known not to answer.",
		func(f status.Fetch) int64 { return f.Unavailable }),
	byHost("cvmfs_fetch_attempts_total", "counter", "Requests sent, for the host of the server that was meant.", nil,
		func(w *writer, h status.Host, labels ...string) { w.count(h.Attempts, labels...) }),
	byHost("cvmfs_fetch_errors_total", "counter",
		"Attempts that failed, by kind: missing (404), corrupt (the content is wrong), server_fault, proxy_fault "+
			"(answers), short, broken (transfers), dead (no answer in time), unreachable (no connection).",
		[]string{"kind"},
		func(w *writer, h status.Host, labels ...string) {
			for _, kind := range slices.Sorted(maps.Keys(h.Failures)) {
				w.count(h.Failures[kind], append(slices.Clip(labels), "kind", kind)...)
			}
		}),
	byHost("cvmfs_fetch_duration_seconds", "histogram",
		"How long attempts took that delivered, until the file was received, checked and written.", nil,
		func(w *writer, h status.Host, labels ...string) { w.durations(h.Latency, labels...) }),
	byMember("cvmfs_fetch_members", "gauge", "Servers of the repository, and addresses of proxies.",
		func(m status.Standing) int64 { return int64(m.Of) }),
	byMember("cvmfs_fetch_members_failed", "gauge", "Servers and proxies that are out of order now: others are tried first.",
		func(m status.Standing) int64 { return int64(m.Failed) }),
	byMember("cvmfs_fetch_failovers_total", "counter", "Times a server or proxy got out of order, and others were used.",
		func(m status.Standing) int64 { return m.Failovers }),
}

var images = []Family{
	gauge("cvmfs_images", "Thin images on this host.",
		func(st *status.Node) int64 { return int64(len(st.Store.Images)) }),
	gauge("cvmfs_images_unreadable", "Thin images on this host whose records can't be read.",
		func(st *status.Node) (n int64) {
			for i := range st.Store.Images {
				n += toInt(st.Store.Images[i].Err != "")
			}
			return n
		}),
	byImage("cvmfs_image_objects", "Objects that the image consists of.",
		known(func(i *status.Image) int64 { return int64(i.Objects) })),
	byImage("cvmfs_image_size_bytes", "Bytes of all files of the image.",
		known(func(i *status.Image) int64 { return i.Size })),
	byImage("cvmfs_image_local_objects", "Objects of the image that are on disk, estimated from a sample of 256.",
		func(_ *status.Node, i *status.Image) (int64, bool) {
			if i.Local == nil {
				return 0, false
			}
			return int64(i.Local.Objects), true
		}),
	byImage("cvmfs_image_local_bytes", "Bytes of files of the image that are on disk, estimated from a sample of 256.",
		func(_ *status.Node, i *status.Image) (int64, bool) {
			if i.Local == nil {
				return 0, false
			}
			return i.Local.Bytes, true
		}),
	byImage("cvmfs_image_mounts", "Mounts in use that read from the image: its containers, mostly.",
		func(st *status.Node, i *status.Image) (n int64, ok bool) {
			for _, m := range st.Store.Mounts {
				n += toInt(m.Image == i.Key)
			}
			return n, true
		}),
	gauge("cvmfs_saved_bytes",
		"Bytes that would be on this host, and aren't, if the images had been pulled whole: of each image, the bytes of "+
			"its files that are not on disk. What images have in common counts for each of them. Estimated.", saved),
}

func saved(st *status.Node) (n int64) {
	for _, i := range st.Store.Images {
		if i.Local != nil {
			n += max(0, i.Size-i.Local.Bytes)
		}
	}
	return n
}

var work = []Family{
	{
		Name: "cvmfs_layers", Type: "gauge", Labels: []string{"kind"}, Help: "Layers on this host: thin ones and ordinary ones.",
		samples: func(w *writer, st *status.Node) {
			w.count(int64(st.Store.Thin), "kind", "thin")
			w.count(int64(st.Store.Layers-st.Store.Thin), "kind", "ordinary")
		},
	},
	gauge("cvmfs_mounts", "Layers that are mounted and in use.",
		func(st *status.Node) int64 { return int64(len(st.Store.Mounts)) }),
	gauge("cvmfs_mounts_stale", "Of these, those that can fetch nothing any more: their containers have to be started again.",
		func(st *status.Node) (n int64) {
			for _, m := range st.Store.Mounts {
				n += toInt(m.Stale)
			}
			return n
		}),
	{
		Name: "cvmfs_mount_duration_seconds", Type: "histogram", Help: "How long mounting a layer took, failures included.",
		samples: func(w *writer, st *status.Node) { w.durations(st.Mounted.Took) },
	},
	counter("cvmfs_mount_failures_total", "Layers that could not be mounted.",
		func(st *status.Node) int64 { return st.Mounted.Failed }),
	{
		Name: "cvmfs_compose_duration_seconds", Type: "histogram",
		Help:    "How long composing an image of its layers took, failures included, and those found composed already.",
		samples: func(w *writer, st *status.Node) { w.durations(st.Compose.Took) },
	},
	counter("cvmfs_compose_failures_total", "Images that could not be composed.",
		func(st *status.Node) int64 { return st.Compose.Failed }),
}
