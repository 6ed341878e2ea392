package thin

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Step is what the history of an image says of the layer that a thin image was given.
type Step struct {
	By      string // who made it
	Comment string
}

// ReplaceLayers returns the configuration of an image all of whose layers but the lowest keep ones are replaced by a
// thin one of that diffID, "sha256:…". All else is the original's, word for word, also what this program doesn't
// know: only the list of layers is another, and the history, whose steps that made a replaced layer made none now, and
// at whose end is the one that made the thin layer.
func ReplaceLayers(config []byte, keep int, diffID string, step Step) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	ids, err := lowest(fields, keep)
	if err != nil {
		return nil, fmt.Errorf("layers: %w", err)
	}
	history, err := historyOf(fields["history"], fields["created"], keep, step)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	// Engines read names in any case, and the last one counts: no other spelling may stay beside ours.
	for name := range fields {
		if strings.EqualFold(name, "rootfs") || strings.EqualFold(name, "history") {
			delete(fields, name)
		}
	}
	for name, value := range map[string]any{
		"rootfs":  rootFS{Type: "layers", DiffIDs: append(ids, diffID)},
		"history": history,
	} {
		if fields[name], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	return json.Marshal(fields)
}

// rootFS is a configuration's list of layers, bottom to top.
type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// lowest returns the diffIDs of the lowest layers.
func lowest(fields map[string]json.RawMessage, keep int) ([]string, error) {
	if keep == 0 {
		return nil, nil
	}
	var layers rootFS
	if err := json.Unmarshal(fields["rootfs"], &layers); err != nil {
		return nil, err
	}
	if len(layers.DiffIDs) < keep {
		return nil, errors.New("there are fewer than are to stay")
	}
	return layers.DiffIDs[:keep:keep], nil
}

// makesLayer reports whether a step of a history made a layer.
func makesLayer(step map[string]json.RawMessage) bool {
	for name, value := range step {
		if strings.EqualFold(name, "empty_layer") && string(value) == "true" {
			return false
		}
	}
	return true
}

// historyOf keeps each step, those that made a replaced layer as ones that made none, and adds the one that made the
// thin layer, at the original's time.
func historyOf(original, created json.RawMessage, keep int, last Step) ([]map[string]json.RawMessage, error) {
	var steps []map[string]json.RawMessage
	if original != nil {
		if err := json.Unmarshal(original, &steps); err != nil {
			return nil, err
		}
	}
	for i, s := range steps {
		if s == nil { // engines take null for a step that says nothing
			s = map[string]json.RawMessage{}
			steps[i] = s
		}
		if keep > 0 && makesLayer(s) {
			keep--
			continue
		}
		for name := range s {
			if strings.EqualFold(name, "empty_layer") {
				delete(s, name)
			}
		}
		s["empty_layer"] = json.RawMessage("true")
	}
	by, err := json.Marshal(last.By)
	if err != nil {
		return nil, err
	}
	comment, err := json.Marshal(last.Comment)
	if err != nil {
		return nil, err
	}
	added := map[string]json.RawMessage{"created_by": by, "comment": comment}
	if created != nil {
		added["created"] = created
	}
	return append(steps, added), nil
}
