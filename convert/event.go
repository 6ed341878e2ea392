package convert

import (
	"time"

	"cvmfs-graphdriver/convert/sink"
)

// Action says what an event tells.
type Action string

// The actions, in the order in which they come.
const (
	ImageStarted   Action = "image_started"   // Layers, Total
	LayerPresent   Action = "layer_present"   // Digest, Total; nothing is to be done
	LayerLacking   Action = "layer_lacking"   // Digest, Path, Total; its blob must be read to tell what it is
	LayerStarted   Action = "layer_started"   // Digest, Path, Total
	LayerProgress  Action = "layer_progress"  // Digest, Bytes read since the last one
	LayerDone      Action = "layer_done"      // Digest, Path, Stats, Elapsed
	LayerFailed    Action = "layer_failed"    // Digest, Path, Err, Elapsed
	Publishing     Action = "publishing"      // the transaction is being committed
	ImageWritten   Action = "image_written"   // Digest of the thin image, Note
	Recording      Action = "recording"       // the image is run to record its start
	ImageDone      Action = "image_done"      // Summary, Elapsed
	ImageUnchanged Action = "image_unchanged" // Elapsed
	ImageFailed    Action = "image_failed"    // Err, Elapsed
)

// Event is something that happened to an image.
type Event struct {
	Time    time.Time
	Action  Action
	Image   string
	Digest  string
	Path    string
	Layers  int
	Bytes   int64 // of blobs
	Total   int64 // bytes of blobs
	Stats   sink.Stats
	Summary *Summary
	Elapsed time.Duration
	Err     error
	Note    string // for people
}

// Summary is what a conversion came to.
type Summary struct {
	Image      string     `json:"image"`
	Thin       string     `json:"thin,omitempty"`    // where the thin image was put
	ThinDigest string     `json:"thin_digest"`       // of its manifest
	Unchanged  bool       `json:"unchanged"`         // nothing was done
	Layers     int        `json:"layers"`            // of the original
	Present    int        `json:"present"`           // layers that were there already
	Added      int        `json:"added"`             // layers that were put there
	Flattened  int        `json:"flattened"`         // thin layers replaced by those they name
	Read       int64      `json:"read"`              // bytes of blobs that were read
	Refreshed  int        `json:"refreshed"`         // layers that got the info they lacked
	Lacking    []string   `json:"lacking,omitempty"` // where layers are that lack theirs, if it was looked for
	Stats      sink.Stats `json:"stats"`             // of the layers added
	Paths      []string   `json:"layers_at"`         // where the layers are, bottom to top
	Seconds    float64    `json:"seconds"`
}

// emit tells an event to whoever listens.
func (c *Converter) emit(e Event) {
	if c.Progress == nil {
		return
	}
	e.Time = time.Now()
	c.progress.Lock()
	defer c.progress.Unlock()
	c.Progress(e)
}
