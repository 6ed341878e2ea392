// Package archtest holds the arrows: which of the project's packages may import which. Imports run only downwards.
package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "cvmfs-graphdriver"

// formats are CernVM-FS's: bytes in, values out. Rules name all of them by this word.
const formats = "formats"

var formatPackages = []string{
	"cvmfs/fqrn", "cvmfs/hash", "cvmfs/manifest", "cvmfs/trust", "cvmfs/catalog", "cvmfs/history", "cvmfs/config",
	"cvmfs/pack", "cvmfs/sqlitefile",
}

// rules say for each package, or each below a folder, what of ours it may import besides packages below itself: what it
// needs, and nothing for later. The longest name that fits a package counts. A package that no rule fits has no place
// yet. The architecture document has them, too.
//
// Tests of a package, those outside of it too, may import what the package may, the package itself, what their rule in
// testRules adds, and the helpers of test.
var rules = map[string][]string{
	"cmd/cvmfs-graphdriver":        {"installer", "bundle", "rootfs", "driver", "cvmfs", "internal"},
	"cmd/cvmfs-graphdriver-plugin": {"rootfs", "driver", "cvmfs/pac", "pushback", "internal"},
	"cmd/cvmfs-snapshotter":        {"rootfs", "driver", "cvmfs/pac", "internal"},
	"cmd/cvmfs-node":               {"installer", "internal"},
	"cmd/docker2cvmfs":             {"convert", "cvmfs", "driver/record", "pushback/receive", "thin", "internal"},
	"installer":                    {"bundle", "rootfs", "driver/options", "driver/control", "driver/status", "thin", "cvmfs", "pushback", "internal"},
	"bundle":                       {"rootfs", "internal"},
	"packaging":                    {"bundle", "internal"},
	"rootfs":                       nil,
	"driver/graphdriver": {
		"driver/node", "driver/layers", "driver/lockorder", "driver/control", "driver/status", "driver/options", "cvmfs",
		"internal",
	},
	"driver/snapshotter": {"driver/node", "driver/layers", "driver/lockorder", "driver/control", "driver/status", "thin", "internal"},
	"driver/node": {
		"driver/layers", "driver/images", "driver/view", "driver/lockorder", "driver/control", "driver/metrics",
		"driver/status", "driver/options", "thin", "cvmfs", "pushback", "internal",
	},
	"driver/control": {"driver/status", "cvmfs/objects"},
	"driver/metrics": {"driver/status"},
	"driver/record": {
		"driver/node", "driver/layers", "driver/control", "driver/status", "rootfs", "thin", "cvmfs", "internal",
	},
	"driver/repomount":      {"driver/images", "driver/view", "driver/options", "cvmfs", "internal"},
	"driver/layers":         {"driver/lockorder", "thin", "internal"},
	"driver/images":         {"thin", "cvmfs", "internal"},
	"driver/view":           {"cvmfs", "internal"},
	"driver/supervise":      {"internal"},
	"driver/options":        {"cvmfs/fqrn"},
	"driver/lockorder":      nil,
	"driver/status":         nil,
	"driver/conformance":    nil,
	"thin":                  {"cvmfs/fqrn"},
	"convert":               {"thin", "cvmfs/catalog", "cvmfs/objects", "internal"},
	"convert/ducc":          {"convert"},
	"convert/sink":          {"thin", "cvmfs/publish", "cvmfs/catalog", "cvmfs/fqrn", "internal"},
	"convert/source":        {"internal"},
	"convert/thinimage":     {"convert/source", "thin", "internal"},
	"convert/wish":          {"cvmfs/fqrn"},
	"cvmfs/publish":         {formats, "internal"},
	"cvmfs/publish/storage": {formats, "internal"},
	"cvmfs/publish/s3":      {"cvmfs/publish/storage"},
	"cvmfs/publish/check":   {"cvmfs/publish/storage", formats, "thin"},
	"cvmfs/publish/gc":      {"cvmfs/publish", formats, "internal"},
	"cvmfs/client":          {"cvmfs/objects", "cvmfs/fetch", formats, "internal"},
	"cvmfs/listing":         {"cvmfs/client", "cvmfs/fetch", formats},
	"cvmfs/verify":          {"cvmfs/client", "cvmfs/objects", "cvmfs/fetch", formats},
	"cvmfs/pac":             nil,
	"cvmfs/pack":            nil,
	"cvmfs/objectfs":        {"cvmfs/objects", "cvmfs/fetch", "internal"},
	"cvmfs/objects":         {"cvmfs/fetch", "cvmfs/catalog", "cvmfs/hash", "cvmfs/pack", "internal"},
	"cvmfs/fetch":           {"cvmfs/pac", "internal"},
	"cvmfs/trust":           {"cvmfs/manifest", "cvmfs/hash", "internal"},
	"cvmfs/history":         {"cvmfs/manifest", "cvmfs/hash", "cvmfs/sqlitefile"},
	"cvmfs/catalog":         {"cvmfs/hash", "cvmfs/sqlitefile"},
	"cvmfs/manifest":        {"cvmfs/hash"},
	"cvmfs/config":          {"cvmfs/fqrn"},
	"cvmfs/fqrn":            nil,
	"cvmfs/hash":            nil,
	"cvmfs/sqlitefile":      nil,
	"internal":              nil,
	"test/referenceimage":   {"driver/conformance", "thin", "test/testutil"},
	"pushback/api":          nil,
	"pushback":              {"cvmfs/fqrn"},
	"pushback/receive":      {"pushback/api", "convert", "cvmfs/publish/s3", "internal"},
	"test/bench/scale":      {"driver/images", "thin", "cvmfs", "test/engine", "test/stand"},
	"test":                  {"cvmfs", "internal"},
}

// testRules say what tests below a folder may import besides: what the package under test is held against.
var testRules = map[string][]string{
	// what is in the images that are made and pulled
	"cmd/cvmfs-snapshotter":        {"driver", "internal"},
	"cmd/docker2cvmfs":             {"thin"},
	"cmd/cvmfs-graphdriver-plugin": {"thin", "cvmfs"},
	// what publishes and reads what is converted
	"convert": {"cvmfs"},
	// where objects come from, and what they are
	"cvmfs/objectfs": {"cvmfs/catalog", "cvmfs/hash"},
	// what makes the repositories that are checked
	"cvmfs/publish/check": {"cvmfs/publish"},
	// what makes the repositories that are read
	"cvmfs/client": {"cvmfs/publish"},
	// where what is received is published, and read
	"pushback/receive": {"cvmfs", "thin"},
	"pushback":         {"cvmfs/publish/s3"},
	// what stands in for a node's images
	"driver/graphdriver": {"driver/images"},
	// what reads the examples, and what they name
	"packaging": {"convert/wish", "cvmfs/config", "driver/metrics", "pushback/receive"},
	// what whole programs are made of
	"test": {"bundle", "convert", "driver", "installer", "rootfs", "thin"},
}

// within reports whether a package is the folder or below it.
func within(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

// anyWithin reports whether a package is one of the folders or below one.
func anyWithin(pkg string, folders []string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool {
		return within(pkg, folder) || folder == formats && anyWithin(pkg, formatPackages)
	})
}

// rule returns the name of the rule for a package, or "".
func rule(pkg string) string {
	var best string
	for name := range rules {
		if within(pkg, name) && len(name) > len(best) {
			best = name
		}
	}
	return best
}

// allowed reports whether package from may import package to; both are relative to the module.
func allowed(from, to string) bool {
	name := rule(from)
	return within(to, name) || anyWithin(to, rules[name])
}

// allowedInTests reports whether tests of package from, in it or outside of it, may import package to.
func allowedInTests(from, to string) bool {
	return allowed(from, to) || within(to, "test") || anyWithin(to, testRules[rule(from)])
}

// ours is a package of ours, with what it and its tests import of ours. Names are relative to the module.
type ours struct {
	name           string
	imports, tests []string
}

// packages lists ours.
func packages(t *testing.T) (list []ours) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-tags=guest",
		"-json=ImportPath,Imports,TestImports,XTestImports", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	relative := func(paths ...string) (names []string) {
		for _, path := range paths {
			if name, is := strings.CutPrefix(path, module+"/"); is {
				names = append(names, name)
			}
		}
		return names
	}
	for in := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := in.Decode(&pkg); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, ours{
			strings.TrimPrefix(pkg.ImportPath, module+"/"), relative(pkg.Imports...),
			relative(append(pkg.TestImports, pkg.XTestImports...)...),
		})
	}
}

func TestImportsRunOnlyDownwards(t *testing.T) {
	for _, pkg := range packages(t) {
		if rule(pkg.name) == "" {
			t.Errorf("%s: no rule says what it may import", pkg.name)
			continue
		}
		for _, to := range pkg.imports {
			if !allowed(pkg.name, to) {
				t.Errorf("%s imports %s", pkg.name, to)
			}
		}
		for _, to := range pkg.tests {
			if !allowedInTests(pkg.name, to) {
				t.Errorf("a test of %s imports %s", pkg.name, to)
			}
		}
	}
}

// A rule that allows what nobody needs is one that nobody has thought about.
func TestRulesAllowNothingThatIsNotNeeded(t *testing.T) {
	list := packages(t)
	for name, rights := range rules {
		if name == "driver/snapshotter" && !slices.ContainsFunc(list, func(p ours) bool { return p.name == name }) {
			continue // planned
		}
		for _, right := range rights {
			if !slices.ContainsFunc(list, func(p ours) bool {
				return rule(p.name) == name && slices.ContainsFunc(p.imports, func(to string) bool {
					return !within(to, name) && anyWithin(to, []string{right})
				})
			}) {
				t.Errorf("%s may import %s, and doesn't", name, right)
			}
		}
	}
}

// What containerd's API brings along, 6 MB of it, is for the programs that speak it alone: not in the plugin's archive.
func TestContainerdIsItsFacesAlone(t *testing.T) {
	for program, want := range map[string]bool{
		"cmd/cvmfs-snapshotter": true, "cmd/cvmfs-graphdriver": true, "cmd/cvmfs-graphdriver-plugin": false,
		"cmd/docker2cvmfs": false, "cmd/cvmfs-node": true,
	} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"/"+program).Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		var found []string
		for pkg := range strings.FieldsSeq(string(out)) {
			if within(pkg, "github.com/containerd/containerd") || within(pkg, "google.golang.org/grpc") {
				found = append(found, pkg)
			}
		}
		if (len(found) > 0) != want {
			t.Errorf("%s has %d packages of containerd's API in it: %.200q", program, len(found), found)
		}
	}
}

// A program that fetches is started again for scripts of proxy auto-configuration, and has to evaluate them then.
func TestProgramsThatFetchEvaluateScripts(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f",
		`{{if eq .Name "main"}}{{.ImportPath}} {{join .Imports " "}} deps {{join .Deps " "}}{{end}}`,
		module+"/cmd/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	const evaluates = module + "/cvmfs/pac"
	var fetch int
	for line := range strings.Lines(string(out)) {
		direct, all, _ := strings.Cut(line, " deps ")
		if !slices.Contains(strings.Fields(all), evaluates) {
			continue
		}
		fetch++
		if imports := strings.Fields(direct); !slices.Contains(imports[1:], evaluates) {
			t.Errorf("%s can't evaluate scripts: its main calls no pac.Main", imports[0])
		}
	}
	if fetch < 3 {
		t.Errorf("%d programs fetch", fetch)
	}
}

func TestArrowsForbidWhatTheyShould(t *testing.T) {
	for _, arrow := range []struct {
		from, to string
		want     bool
	}{
		{"cvmfs/objects", "cvmfs/fetch", true},
		{"cvmfs/fetch", "cvmfs/objects", false},
		{"cvmfs/client", "driver/layers", false},
		{"cvmfs/hash", "cvmfs/catalog", false},
		{"cvmfs/client", "cvmfs/hash", true},
		{"cvmfs/fetch", "cvmfs/hash", false},
		{"cvmfs/fetch", "formats", false},
		{"driver/graphdriver", "driver/layers", true},
		{"driver/graphdriver", "driver/node", true},
		{"driver/node", "driver/graphdriver", false},
		{"driver/layers", "driver/images", false},
		{"driver/layers", "cvmfs/client", false},
		{"driver/graphdriver", "driver/snapshotter", false},
		{"driver/layers", "driver/graphdriver", false},
		{"driver/conformance", "driver/layers", false},
		{"installer", "driver/options", true},
		{"installer", "driver/layers", false},
		{"installer/preflight", "driver/status", true},
		{"driver/status", "driver/layers", false},
		{"driver/layers", "bundle", false},
		{"cvmfs/publish/gc", "cvmfs/publish", true},
		{"cvmfs/publish/check", "cvmfs/publish", false},
		{"cvmfs/publish/storage", "cvmfs/publish/s3", false},
		{"cvmfs/publish", "cvmfs/client", false},
		{"cmd/cvmfs-graphdriver-plugin", "installer", false},
		{"internal/erofs", "cvmfs/hash", false},
		{"test/engine", "test/testutil", true},
		{"cvmfsother", "cvmfs/hash", false},
		{"cvmfs/fetch", "test/testutil", false},
	} {
		if got := allowed(arrow.from, arrow.to); got != arrow.want {
			t.Errorf("%s → %s: allowed %t, want %t", arrow.from, arrow.to, got, arrow.want)
		}
	}
}

func TestArrowsOfTests(t *testing.T) {
	for _, arrow := range []struct {
		from, to string
		want     bool
	}{
		{"cvmfs/fetch", "test/testutil", true},
		{"cvmfs/fetch", "cvmfs/fetch", true},
		{"cvmfs/fetch", "cvmfs/objects", false},
		{"packaging", "cvmfs/config", true},
		{"packaging", "cvmfs/client", false},
		{"internal/erofs", "driver/images", false},
	} {
		if got := allowedInTests(arrow.from, arrow.to); got != arrow.want {
			t.Errorf("tests of %s → %s: allowed %t, want %t", arrow.from, arrow.to, got, arrow.want)
		}
	}
}
