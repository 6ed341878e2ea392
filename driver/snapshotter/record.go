package snapshotter

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// record is what containerd says of a snapshot, in the layer's note.
type record struct {
	Name    string            `json:"name"`
	Below   string            `json:"below,omitempty"` // the layer of its parent, as the layer's own record has it, too
	View    bool              `json:"view,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`

	// how owners are mapped below what is written to it, of one that isn't committed
	UIDs mapping `json:"uids,omitempty"`
	GIDs mapping `json:"gids,omitempty"`

	Usage *usage `json:"usage,omitempty"` // of a committed one
	Lazy  bool   `json:"lazy,omitempty"`  // its layer was found in a repository, and the blob was not downloaded

	// what the snapshot is from when its layer is committed; nil of one that is
	Commit *record `json:"commit,omitempty"`
}

// usage is what a layer takes of the disk.
type usage struct {
	Inodes int64 `json:"inodes"`
	Size   int64 `json:"size"` // bytes
}

func newRecord(name string, labels map[string]string) record {
	now := time.Now().UTC()
	return record{Name: name, Labels: labels, Created: now, Updated: now}
}

func (r record) encode() ([]byte, error) { return json.Marshal(r) }

// decode reads a record of a layer that is committed or not.
func decode(note []byte, committed bool) (r record, err error) {
	if err := json.Unmarshal(note, &r); err != nil {
		return record{}, err
	}
	if committed && r.Commit != nil {
		return *r.Commit, nil
	}
	r.Commit = nil
	return r, nil
}

// update returns the record with what info says of some fields; without fields, of all that can be changed.
func (r record) update(info snapshots.Info, fields []string) (record, error) {
	labels := maps.Clone(r.Labels)
	if len(fields) == 0 {
		labels = maps.Clone(info.Labels)
	}
	for _, field := range fields {
		name, one := strings.CutPrefix(field, "labels.")
		switch {
		case one && labels == nil:
			labels = map[string]string{name: info.Labels[name]}
		case one:
			labels[name] = info.Labels[name]
		case field == "labels":
			labels = maps.Clone(info.Labels)
		default:
			return record{}, fmt.Errorf("update snapshot %q: the field %q can't be changed: %w", r.Name, field,
				errdefs.ErrInvalidArgument)
		}
	}
	maps.DeleteFunc(labels, func(_, value string) bool { return value == "" })
	r.Labels, r.Updated = labels, time.Now().UTC()
	return r, nil
}

// labelsOf returns the labels that options ask for.
func labelsOf(opts []snapshots.Opt) (map[string]string, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	return info.Labels, nil
}
