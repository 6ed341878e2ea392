package conformance_test

import (
	"testing"

	"cvmfs-graphdriver/driver/conformance"
	"cvmfs-graphdriver/driver/conformance/reference"
)

// The control: what the suite asks for is what overlayfs and the engine's own library do.
func TestReferenceDriver(t *testing.T) {
	target := reference.Target(t)
	overlay2 := "as in the engine's overlay2, where it rests with the engine"
	target.Skip = map[string]string{
		"OverlayAttributesInstructNobody":   overlay2,
		"TruncatedArchivesLeaveNothing":     overlay2,
		"RetriesOfHalfReadBodiesAreRefused": overlay2,
		"HalfMadeLayersGoAtInit":            overlay2,
		"EqualLayersGiveEqualArchives":      "as in the engine's overlay2, whose whiteouts have the time of their unpacking",
		"SparseFiles":                       "as in the engine's overlay2, which refuses sparse entries",
	}
	conformance.Run(t, target)
}

func TestRandomSequencesOnTheReferenceDriver(t *testing.T) {
	conformance.Sequences(t, reference.Target(t), reference.Target(t), 20)
}
