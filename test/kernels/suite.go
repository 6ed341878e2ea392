package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/test/debian"
)

// program is a test program as a suite runs it.
type program struct {
	folder string // of the package
	run    string // which of its tests: the value of -test.run; "" for all. VIEW stands for the view in use, a word
	skip   string // which of these not: the value of -test.skip
	apart  string // names the machine, of its own or with others of this name; "" is a name, too
	with   string // words for the command line of the kernel, which gets a machine of its own
	// "" for a machine that has nothing but this; else systemd runs it, each in a machine of its own, one after the
	// other. Those on the same Debian have one disk
	host  string
	on    debian.Kind
	env   []string
	limit time.Duration
}

// labels and snapshotLabels are the tests that load a policy of SELinux, which stays until the machine ends.
const (
	labels         = "TestFilesHaveTheLabelOfTheirContainer"
	snapshotLabels = "TestFilesOfSnapshotsHaveTheLabelOfTheirContainer"
)

// forced are the subtests that play another kernel by going without something. make test runs them; here the kernel is
// the one that is meant.
const forced = "./_without_"

// figures measures the view, which takes minutes and asserts nothing: a suite of its own.
const figures = "TestFiguresOfTheView"

// soak fills a cache for as long as it takes to overflow, which says nothing of the kernel.
const soak = "TestSoak"

// long and longChains take minutes in an emulator, for chains of layers that can hardly be mounted and files that are
// copied up. The plugin's tests do the same, which are so much faster as no content store is in between; that the
// snapshotter mounts long chains has a test of its own.
const (
	long       = "TestConformance/./^(LongChain|BigFilesAreCopiedUp)$"
	longChains = "TestContainerdsSuite/./^128LayersMount$"
)

// beside needs a program that the machine hasn't got, and nothing of the kernel.
const beside = "TestTheDashboardShowsWhatThePluginDoes"

// parts are the packages that have to do with the kernel.
var parts = []program{
	{folder: "internal/fusewire", limit: 5 * time.Minute},
	{folder: "internal/overlayfs", limit: 5 * time.Minute},
	{folder: "internal/erofs", limit: 10 * time.Minute},
	{folder: "internal/hostfs", limit: 5 * time.Minute},
	{folder: "installer/preflight", run: only("TestKernelIsTriedAndNothingIsLeft"), limit: 5 * time.Minute},
	{folder: "cvmfs/objectfs", skip: only(soak), limit: 10 * time.Minute},
	{folder: "driver/supervise", limit: 10 * time.Minute},
	{folder: "driver/view", limit: 10 * time.Minute},
	{folder: "driver/images", limit: 10 * time.Minute},
	{folder: "driver/layers", limit: 10 * time.Minute},
	{folder: "driver/node", limit: 10 * time.Minute},
	{folder: "driver/graphdriver", limit: 10 * time.Minute},
	{folder: "driver/snapshotter", skip: longChains, limit: 10 * time.Minute},
	{folder: "driver/conformance", limit: 10 * time.Minute},
}

// whole is the driver as a whole, alone and in an engine.
var whole = []program{
	{
		folder: "cmd/cvmfs-graphdriver-plugin", apart: "plugin", skip: only(labels, figures, beside) + "|" + forced,
		env: []string{"CONFORMANCE_SEQUENCES=4"}, limit: 30 * time.Minute,
	},
	{
		folder: "cmd/cvmfs-snapshotter", apart: "snapshotter", skip: only(snapshotLabels) + "|" + forced + "|" + long,
		env: []string{"CONFORMANCE_SEQUENCES=4"}, limit: 30 * time.Minute,
	},
	{folder: "test/e2e", apart: "engine", run: only(
		"TestAThinContainerSaysWhatItsOrdinaryTwinSays", "TestAThinContainerShowsTheLayersMerged",
		"TestAThinContainerListsAsItsOrdinaryTwin",
		"TestARunningContainerOutlivesACrashOfTheDriver", "TestACommittedThinContainerRuns",
		"TestAThinImageIsMadeOfItsDescriptor",
		"TestAContainerKeepsItsChanges", "TestDoctorAndStatusKnowTheDriverInUse",
	), limit: 30 * time.Minute},
	{folder: "cmd/cvmfs-graphdriver-plugin", with: "security=selinux", run: only(labels), limit: 5 * time.Minute},
	{folder: "cmd/cvmfs-snapshotter", with: "security=selinux", run: only(snapshotLabels), limit: 5 * time.Minute},
}

// host is one whose engine takes plugins, from the installation of our package to its removal.
var host = []program{
	{
		folder: "test/host", host: "first life", on: debian.Booted,
		run: only("TestInstalledCrashedAndUpgraded", "TestTheSnapshotterComesAndGoes"), limit: 30 * time.Minute,
	},
	{
		folder: "test/host", host: "second life", on: debian.Booted, run: only("TestRebootedAndUninstalled"),
		limit: 10 * time.Minute,
	},
}

// newestHost is one whose engine has its images in containerd.
var newestHost = []program{
	{
		folder: "test/host", host: "newest engine", on: debian.Newest, run: only("TestTheNewestEngine"),
		limit: 30 * time.Minute,
	},
	{
		folder: "test/host", host: "newest engine rebooted", on: debian.Newest,
		run: only("TestTheNewestEngineRebooted"), limit: 10 * time.Minute,
	},
}

// suites are what is run, by name.
var suites = map[string][]program{
	"full":  slices.Concat(parts, whole),
	"parts": parts,
	"whole": whole,
	// What there is time for at each change: the driver as a whole, in the view that it chooses.
	"ci": {
		{folder: "internal/overlayfs", limit: 5 * time.Minute},
		{folder: "cmd/cvmfs-graphdriver-plugin", run: strings.Join([]string{
			"^TestTheViewIsTheOneThatTheKernelIsProbedFor$/^#00$",
			"^TestConformance$/^VIEW$", "^TestRandomSequencesOfLayerOperations$/^VIEW$",
			"^TestThinImageShowsWhatTheOrdinaryOneDoes$/^VIEW$", "^TestLayersOfBothKindsMix$/^VIEW$",
			"^TestContainerOutlivesTheServer$/^VIEW$",
			"^TestRestartedPluginServesWithoutTheNetwork$/^VIEW$", "^TestServersKilledUnderLoadLoseNoRequest$/^VIEW$",
			"^TestManyContainersStartAtOnceFromOneThinImage$/^VIEW$",
		}, "|"), env: []string{"CONFORMANCE_SEQUENCES=3"}, limit: 10 * time.Minute},
		{folder: "test/e2e", run: strings.Join([]string{
			"^TestAThinContainerSaysWhatItsOrdinaryTwinSays$", "^TestDoctorAndStatusKnowTheDriverInUse$",
			"^TestARunningContainerOutlivesACrashOfTheDriver$/^its_server$",
		}, "|"), limit: 10 * time.Minute},
	},
	"host":        slices.Concat(host, newestHost),
	"newest-host": newestHost,
	"figures":     {{folder: "cmd/cvmfs-graphdriver-plugin", run: only(figures), limit: 10 * time.Minute}},
}

// only is a pattern that fits these tests and no others.
func only(names ...string) string { return "^(" + strings.Join(names, "|") + ")$" }

// machine says in which of the machines it is run.
func (p *program) machine() string { return strings.Join([]string{p.apart, p.with, p.host}, " ") }

// name is that of the file with the program.
func (p *program) name() string { return p.folder[strings.LastIndexByte(p.folder, '/')+1:] + ".test" }

// argv calls the program. Go's own limit ends it first, and shows what it did.
func (p *program) argv(root, view string) []string {
	argv := []string{root + "/" + p.folder + "/" + p.name(), "-test.v=test2json", fmt.Sprint("-test.timeout=", p.limit)}
	if p.run != "" {
		argv = append(argv, "-test.run="+strings.ReplaceAll(p.run, "VIEW", view))
	}
	if p.skip != "" {
		argv = append(argv, "-test.skip="+p.skip)
	}
	return argv
}
