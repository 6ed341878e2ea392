// Package status is what a node tells of itself, as plain values: package node fills them in, and the programs that ask
// it (package control) read them. The JSON is part of the interface between versions: fields are added, never renamed.
package status

// Node is the state of a node. Counters begin with the server's life.
type Node struct {
	Version string           `json:"version"`
	Commit  string           `json:"commit"`
	PID     int              `json:"pid"`
	Objects Objects          `json:"objects"`
	Fetch   map[string]Fetch `json:"fetch"` // by repository, of those that images in use were composed from
	Store   Store            `json:"store"`
	Memory  Memory           `json:"memory"`
	Err     string           `json:"error,omitempty"` // why Store is empty
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
	Objects int    `json:"objects"`
	Size    int64  `json:"size"` // plain bytes of all files
	Layers  []Pin  `json:"layers"`
	Err     string `json:"error,omitempty"`
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
}
