package conformance

import (
	"context"
	"net"
	"testing"
)

// Target is a driver under test.
type Target struct {
	// Dial connects to the driver's socket; it may fail while the driver restarts.
	Dial func(ctx context.Context) (net.Conn, error)
	// Path returns the path by which this process reaches a folder the driver has named; nil where it is the same.
	Path func(dir string) string
	// Options are storage options for Init, "name=value".
	Options []string
	// Thin are layers in repositories the driver is configured for, bottom to top, three at least, that make one image;
	// nil where the driver knows no thin images. They may lie in several repositories, whose mixture is checked so.
	Thin []ThinLayer
	// Restart ends the driver as the engine does and starts it again, on the same files; the engine sends no Init then.
	// nil where that can't be done.
	Restart func(t testing.TB)
	// Kill ends what answers the socket by SIGKILL and returns; something brings it back. nil where that can't be done.
	Kill func(t testing.TB)
	// InodesChange says that a file of an image may change its inode number when it is first written to or linked, as
	// with overlayfs on file systems whose files it can't find by a handle: two links may differ until the kernel
	// forgets the older name.
	InodesChange bool
	// Skip names behaviours that this driver is known not to have, or after a slash a case of one, and why.
	Skip map[string]string
}

// ThinLayer is a layer in a repository.
type ThinLayer struct {
	Digest  string // of the layer, as descriptors have it: 64 hex digits
	URL     string // "cvmfs://<repository>/<path>"
	Archive []byte // the layer as ordinary images have it: an uncompressed tar archive
}

type behaviour struct {
	name  string
	check func(*testing.T, Target)
	needs func(Target) bool // what the driver must have for the question to arise; nil: nothing
}

func behaviours() []behaviour {
	return []behaviour{
		{"LongChain", LongChain, nil},
		{"ThinAnywhereInAChain", ThinAnywhereInAChain, thinImages},
		{"ThinImagesShareLayers", ThinImagesShareLayers, thinImages},
		{"ThinLayerKeepsItsBytes", ThinLayerKeepsItsBytes, thinImages},
		{"DescriptorAmongOtherFilesIsAFile", DescriptorAmongOtherFilesIsAFile, nil},
		{"DescriptorThatCannotBeUsedIsRefused", DescriptorThatCannotBeUsedIsRefused, thinImages},
		{"WhiteoutsHide", WhiteoutsHide, nil},
		{"FoldersAndFilesSwap", FoldersAndFilesSwap, nil},
		{"HardLinks", HardLinks, nil},
		{"ExtendedAttributes", ExtendedAttributes, nil},
		{"ModesAndOwners", ModesAndOwners, nil},
		{"SpecialFiles", SpecialFiles, nil},
		{"Names", Names, nil},
		{"Times", Times, nil},
		{"SparseFiles", SparseFiles, nil},
		{"BigFilesAreCopiedUp", BigFilesAreCopiedUp, nil},
		{"OverlayAttributesInstructNobody", OverlayAttributesInstructNobody, nil},
		{"ChangesDiffAndSizeAgree", ChangesDiffAndSizeAgree, nil},
		{"DiffIsDeterministic", DiffIsDeterministic, nil},
		{"EqualLayersGiveEqualArchives", EqualLayersGiveEqualArchives, nil},
		{"CommitWhileDiffIsRead", CommitWhileDiffIsRead, nil},
		{"InitMayComeAgain", InitMayComeAgain, nil},
		{"CallsMayBeRepeated", CallsMayBeRepeated, nil},
		{"UnknownLayersAreErrors", UnknownLayersAreErrors, nil},
		{"GetAndPutBalance", GetAndPutBalance, nil},
		{"LayersMayBeWrittenInPlace", LayersMayBeWrittenInPlace, nil},
		{"HalfMadeLayersGoAtInit", HalfMadeLayersGoAtInit, nil},
		{"TruncatedArchivesLeaveNothing", TruncatedArchivesLeaveNothing, nil},
		{"RetriesOfHalfReadBodiesAreRefused", RetriesOfHalfReadBodiesAreRefused, nil},
		{"ConcurrentCallsOfOneID", ConcurrentCallsOfOneID, nil},
		{"ManyAtOnce", ManyAtOnce, nil},
		{"KilledServerLosesNothing", KilledServerLosesNothing, func(t Target) bool { return t.Kill != nil }},
		{"RestartWithoutInit", RestartWithoutInit, func(t Target) bool { return t.Restart != nil }},
	}
}

// skips reports whether a driver is known not to have a behaviour, or a case of one, and logs it: a skipped test would
// be one that should have run.
func (target Target) skips(t *testing.T, name string) bool {
	why := target.Skip[name]
	if why != "" {
		t.Logf("%s is not checked: %s", name, why)
	}
	return why != ""
}

// Run initialises a driver and checks every behaviour, each as a subtest.
func Run(t *testing.T, target Target) {
	initialise(t, target)
	for _, b := range behaviours() {
		switch {
		case target.skips(t, b.name):
		case b.needs != nil && !b.needs(target):
			t.Logf("%s is not checked: the driver doesn't have what it is about", b.name)
		default:
			t.Run(b.name, func(t *testing.T) { b.check(t, target) })
		}
	}
}

func thinImages(t Target) bool { return len(t.Thin) >= 3 }
