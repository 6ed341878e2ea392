// Package status is what a node tells of itself, as plain values: package node fills them in, and the programs that ask
// it (package control) read them. The JSON is part of the interface between versions: fields are added, never renamed.
package status

import "time"

// Node is the state of a node. Counters begin with the server's life.
type Node struct {
	Version string           `json:"version"`
	Commit  string           `json:"commit"`
	PID     int              `json:"pid"`
	Objects Objects          `json:"objects"`
	Cache   Cache            `json:"cache"`
	Fetch   map[string]Fetch `json:"fetch"`   // by repository, of those that images in use were composed from
	Servers map[string]Ways  `json:"servers"` // likewise
	Queued  int              `json:"queued"`  // requests that wait for a connection now
	Compose Work             `json:"compose"` // composing chains of layers, those found composed included
	Mounted Work             `json:"mounted"` // mounting layers
	Store   Store            `json:"store"`
	View    string           `json:"view,omitempty"` // how composed images are shown, and why by that
	// number of the peer group of the mount that layers are mounted on (mount_namespaces(7)); "" if it isn't shared
	PeerGroup string `json:"peer_group,omitempty"`
	// those in use, with the configuration that counts for them
	Repositories []Repository `json:"repositories,omitempty"`
	Memory       Memory       `json:"memory"`
	Metrics      *Metrics     `json:"metrics,omitempty"` // nil: they aren't meant to be served
	Err          string       `json:"error,omitempty"`   // why Store is empty
}

// Reload is what came of reading the configuration again, of the repositories in use. Others are read when they are
// asked for.
type Reload struct {
	Repositories []Reloaded `json:"repositories"`
}

// Reloaded is what came of it for a repository.
type Reloaded struct {
	FQRN    string   `json:"repository"`
	Changed []string `json:"changed,omitempty"` // parameters, and files with keys and the like: they count from now on
	Later   []string `json:"later,omitempty"`   // of Changed, those that count for images that are composed from now on
	Err     string   `json:"error,omitempty"`   // why the files can't be used: what counted before goes on to
}

// Objects counts what became of objects. The fields are those of objects.Stats.
type Objects struct {
	Fetched      int64 // objects that arrived complete
	FetchedBytes int64 // their plain bytes
	Failed       int64 // fetches that failed, those nobody waited for any more included
	Prefetched   int64 // of Fetched, those that nobody had asked for yet
	AheadBytes   int64 // plain bytes that arrived before anybody asked for them
	AheadUsed    int64 // of AheadBytes, those that somebody has asked for since
	StartBytes   int64 // plain bytes that arrived as start profiles name them
	Dropped      int64 // objects there was no room for to be fetched ahead
	Chunks       int64 // chunks that arrived in partial files
	Queued       int64 // objects that wait to be fetched ahead now
	Waiting      int64 // waits for objects now
	Partials     int64 // partial files now
	PartialBytes int64 // plain bytes in them now
	FreshLinks   int64 // fresh links now
}

// Fetch counts what was asked of a repository's servers. The fields are those of fetch.Stats.
type Fetch struct {
	Requests    int64 // attempts made
	Bytes       int64 // body bytes received
	Failures    int64 // attempts that failed, for whatever reason but the caller's
	Retries     int64 // attempts made again on the same route
	NotFound    int64 // answers 404
	BadData     int64 // bodies that were short or refused
	Unavailable int64 // calls that found no route to try
}

// Cache is the object store as a cache; bytes are of disk. The fields are those of objects.Status, and what says the
// limit.
type Cache struct {
	Limit   int64  `json:"limit"`              // bytes that objects may take
	LimitBy string `json:"limit_by,omitempty"` // what says so, for people; "" where the node doesn't tell
	Used    int64  `json:"used"`               // bytes that they take, partial files among them
	Objects int64  `json:"objects"`            // complete ones
	Floor   int64  `json:"floor"`              // bytes of the file system that stay free
	Free    int64  `json:"free"`               // bytes of it that are free
	Size    int64  `json:"size"`               // of the file system

	Hits         int64 `json:"hits"`     // objects that were asked for and here; what kernels find by themselves isn't seen
	Misses       int64 `json:"misses"`   // that had to be fetched
	Unstored     int64 `json:"unstored"` // fetches that were not stored, as images in use hold all up to the limit
	Refused      int64 `json:"refused"`  // fetches ended at the floor
	Evicted      int64 `json:"evicted"`  // objects
	EvictedBytes int64 `json:"evicted_bytes"`
	Damaged      int64 `json:"damaged"` // objects removed, as they were damaged
}

// Ways are the servers of a repository and the proxies on the way to them.
type Ways struct {
	Hosts   []Host   `json:"hosts"`
	Servers Standing `json:"servers"`
	Proxies Standing `json:"proxies"`
}

// Host counts the attempts at servers of one host. The fields are those of fetch.HostStats.
type Host struct {
	Host     string
	Attempts int64
	Failures map[string]int64 // by kind
	Latency  Durations        // of attempts that delivered
}

// Standing is that of servers or proxies together. The fields are those of fetch.Standing.
type Standing struct {
	Of        int   // there are
	Failed    int   // of them are out of order now
	Failovers int64 // times one of them got out of order
}

// Durations are durations in buckets. The fields are those of tally.Histogram.
type Durations struct {
	Bounds []float64 // upper ends of all buckets but the last one, which has none, in seconds
	Counts []int64   // of each bucket
	Sum    float64   // of all durations, in seconds
}

// Work is something that was done, time and again.
type Work struct {
	Took   Durations `json:"took"` // of each time, failures included
	Failed int64     `json:"failed"`
}

// Metrics is where metrics are served.
type Metrics struct {
	Address string `json:"address"`
	Err     string `json:"error,omitempty"` // why they aren't, for now
}

// Repository is a repository that is in use, as it is configured in the node.
type Repository struct {
	FQRN     string    `json:"repository"`
	Since    time.Time `json:"since"`           // when this configuration came to count
	Settings []Setting `json:"settings"`        // sorted by name
	Servers  []Member  `json:"servers"`         // in order of preference
	Proxies  []Member  `json:"proxies"`         // likewise
	Err      string    `json:"error,omitempty"` // why what the files say now can't be used
}

// Setting is a parameter that counts.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"` // without user names and passwords of URLs
	Place string `json:"place"` // FILE:LINE
	// no file of the host sets it
	BuiltIn bool `json:"built_in,omitempty"`
}

// Member is a server or a proxy as it was found.
type Member struct {
	Name     string  `json:"name"`
	Answers  int64   `json:"answers"`
	Failures int64   `json:"failures"`
	Wait     float64 `json:"wait"`            // seconds to the header of an answer, on average
	Err      string  `json:"error,omitempty"` // why others are preferred
}

// Memory of the server, in bytes.
type Memory struct {
	Heap     uint64 `json:"heap"`     // live and not yet collected
	Resident uint64 `json:"resident"` // 0 where /proc doesn't tell
}

// Store is the state of the layers.
type Store struct {
	Layers int     `json:"layers"`
	Thin   int     `json:"thin_layers"`
	Images []Image `json:"images"`
	Mounts []Mount `json:"mounts"`
}

// Image is a composed image that layers name.
type Image struct {
	Key     string `json:"key"`
	Origin  string `json:"origin,omitempty"` // the image it was converted from, as its descriptor names it
	Objects int    `json:"objects"`
	Size    int64  `json:"size"`            // plain bytes of all files
	Local   *Share `json:"local,omitempty"` // nil where it isn't known
	Layers  []Pin  `json:"layers"`
	Err     string `json:"error,omitempty"`
}

// Share is about how much of an image is on disk.
type Share struct {
	Objects int   `json:"objects"` // of Image.Objects
	Bytes   int64 `json:"bytes"`   // of Image.Size
}

// Pin is the state of a repository that an image was composed from. The fields are those of images.Pin.
type Pin struct {
	FQRN        string `json:"repository"`
	Path        string `json:"path"`
	Revision    uint64 `json:"revision"`
	Certificate string `json:"certificate"` // fingerprint
}

// Mount is a layer that is mounted and in use.
type Mount struct {
	Layer string `json:"layer"`
	Refs  int    `json:"refs"`
	Image string `json:"image,omitempty"` // key of the composed image it reads from
	Stale bool   `json:"stale,omitempty"` // hangs on a FUSE mount that has gone
	Name  string `json:"name,omitempty"`  // of the snapshot, where the layer is one
}

// Names are the names that an engine has for composed images.
type Names struct {
	Known  bool   `json:"known"` // the node can tell; else the engine itself is to be asked
	Images []Name `json:"images,omitempty"`
	Err    string `json:"error,omitempty"` // why some are missing
	// names of images some of whose layers were taken from repositories, and not downloaded yet
	Lacking []Lacking `json:"lacking,omitempty"`
}

// Lacking is the name of an image that can't be saved, and pushed only to a registry that has its layers.
type Lacking struct {
	Namespace string `json:"namespace"` // containerd's
	Name      string `json:"name"`
	Blobs     int    `json:"blobs"` // that are missing
}

// Name is one of them.
type Name struct {
	Key       string `json:"key"`       // of the composed image
	Namespace string `json:"namespace"` // containerd's, in which the name holds
	Name      string `json:"name,omitempty"`
	// digests by which the image is known: of its index, manifest and configuration, as far as there are
	IDs      []string `json:"ids,omitempty"`
	Snapshot string   `json:"snapshot,omitempty"` // where no image keeps it: the topmost snapshot
}
