package layers_test

import (
	"bytes"
	"testing"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/internal/layertar/layertartest"
)

func TestApplyDiffTakesWhatEnginesTake(t *testing.T) {
	r := newRig(t)
	layertartest.Run(t, false, func(t *testing.T, archive []byte) ([]string, error) {
		must(t, r.Create(layers.CreateArgs{ID: "layer"}))
		defer func() { must(t, r.remove("layer")) }()
		_, err := r.receive("layer", "", bytes.NewReader(archive))
		return layertartest.List(t, r.diff("layer"), true), err
	})
}
