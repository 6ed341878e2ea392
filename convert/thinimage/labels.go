package thinimage

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/thin"
)

// The labels by which people and policies know a thin image. Engines show labels, and not annotations; and Docker's
// manifests have no annotations.
const (
	thinLabel = "cvmfs-graphdriver.thin-image"      // the version of the descriptor's format
	noteLabel = "cvmfs-graphdriver.thin-image.note" // for people who wonder why it doesn't run

	note = "The layers are in CernVM-FS; this image holds thin.json alone. It runs with the storage driver" +
		" cvmfs-graphdriver."
)

// labelsOf are the labels that a thin image has besides its original's.
func labelsOf(image *source.Image) map[string]string {
	labels := map[string]string{thinLabel: thin.Version, noteLabel: note, baseDigest: image.Digest.String()}
	if parsed, err := image.Reference.Parsed(); err == nil {
		labels[baseName] = parsed.Name()
	}
	return labels
}

// withLabels returns an image's configuration with the labels, of which nothing else is changed.
func withLabels(image *source.Image) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(image.RawConfig, &fields); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := setLabels(fields, image); err != nil {
		return nil, fmt.Errorf("labels: %w", err)
	}
	return json.Marshal(fields)
}

// setLabels adds the labels to a configuration, of which nothing else is changed.
func setLabels(fields map[string]json.RawMessage, image *source.Image) error {
	config, configName, err := inner(fields, "config")
	if err != nil {
		return err
	}
	labels, labelsName, err := inner(config, "Labels")
	if err != nil {
		return err
	}
	for name, value := range labelsOf(image) {
		if labels[name], err = json.Marshal(value); err != nil {
			return err
		}
	}
	if config[labelsName], err = json.Marshal(labels); err != nil {
		return err
	}
	fields[configName], err = json.Marshal(config)
	return err
}

// inner returns the object that a field holds, an empty one if there is none, and the name it has in the spelling that
// engines read last: they read names in any case, and we write them sorted.
func inner(fields map[string]json.RawMessage, name string) (map[string]json.RawMessage, string, error) {
	var spellings []string
	for other := range fields {
		if strings.EqualFold(other, name) {
			spellings = append(spellings, other)
		}
	}
	object := map[string]json.RawMessage{}
	if len(spellings) == 0 {
		return object, name, nil
	}
	name = slices.Max(spellings)
	if err := json.Unmarshal(fields[name], &object); err != nil {
		return nil, "", err
	}
	if object == nil { // null
		object = map[string]json.RawMessage{}
	}
	return object, name, nil
}
