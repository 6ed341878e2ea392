package convert

import (
	"encoding/json"
	"time"
)

// progressEvery is how often a program is told of a layer's progress.
const progressEvery = time.Second

// JSONLines returns what writes events for programs, each as an object. Of a layer's progress it tells once a second.
func JSONLines(out *json.Encoder) func(Event) {
	return (&jsonLines{out: out, read: map[string]int64{}, told: map[string]time.Time{}}).show
}

type jsonLines struct {
	out  *json.Encoder
	read map[string]int64
	told map[string]time.Time
}

// eventJSON is an event's form.
type eventJSON struct {
	Time    time.Time `json:"time"`
	Action  Action    `json:"action"`
	Image   string    `json:"image,omitempty"`
	Digest  string    `json:"digest,omitempty"`
	Path    string    `json:"path,omitempty"`
	Layers  int       `json:"layers,omitempty"`
	Bytes   int64     `json:"bytes,omitempty"` // of the layer, so far
	Total   int64     `json:"total,omitempty"`
	Stats   any       `json:"stats,omitempty"`
	Summary *Summary  `json:"summary,omitempty"`
	Seconds float64   `json:"seconds,omitempty"`
	Error   string    `json:"error,omitempty"`
	Note    string    `json:"note,omitempty"`
}

func (j *jsonLines) show(e Event) {
	out := eventJSON{
		Time: e.Time.UTC(), Action: e.Action, Image: e.Image, Digest: e.Digest, Path: e.Path, Layers: e.Layers,
		Total:   e.Total,
		Summary: e.Summary, Seconds: e.Elapsed.Seconds(), Note: e.Note,
	}
	switch e.Action {
	case LayerProgress:
		j.read[e.Digest] += e.Bytes
		if time.Since(j.told[e.Digest]) < progressEvery {
			return
		}
		j.told[e.Digest] = time.Now()
		out.Bytes = j.read[e.Digest]
	case LayerDone:
		out.Stats = e.Stats
	}
	if e.Err != nil {
		out.Error = e.Err.Error()
	}
	_ = j.out.Encode(out) // a reader that has gone is no reason to stop
}
