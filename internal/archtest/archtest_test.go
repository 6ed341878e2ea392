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

// formats are CernVM-FS's: bytes in, values out.
var formats = []string{
	"cvmfs/fqrn", "cvmfs/hash", "cvmfs/manifest", "cvmfs/trust", "cvmfs/catalog", "cvmfs/history", "cvmfs/config",
	"cvmfs/sqlitefile",
}

// below are the parts of the driver that a node wires, and its faces use.
var below = []string{
	"driver/layers", "driver/images", "driver/view", "driver/lockorder", "driver/metrics", "driver/status", "thin", "cvmfs", "internal",
}

// rules say for each package, or each below a folder, what of ours it may import besides packages below itself. The
// longest name that fits a package counts. A package that no rule fits has no place yet.
//
// Tests of a package, those outside of it too, may import what the package may, the package itself, what their rule in
// testRules adds, and the helpers of test.
var rules = map[string][]string{
	"cmd":                          {"installer", "bundle", "rootfs", "driver", "convert", "thin", "cvmfs", "internal"},
	"cmd/cvmfs-graphdriver-plugin": {"rootfs", "driver", "thin", "cvmfs", "internal"},
	"cmd/cvmfs-snapshotter":        {"rootfs", "driver", "thin", "cvmfs", "internal"},
	"installer":                    {"bundle", "rootfs", "driver/options", "driver/control", "driver/status", "cvmfs", "internal"},
	"bundle":                       {"rootfs", "internal"},
	"packaging":                    {"bundle", "internal"},
	"rootfs":                       nil,
	"driver/graphdriver":           append([]string{"driver/node", "driver/control", "driver/options"}, below...),
	"driver/snapshotter":           append([]string{"driver/node", "driver/control"}, below...),
	"driver/control":               {"driver/status", "cvmfs/objects"},
	"driver/conformance":           nil,
	"driver/node":                  append([]string{"driver/control"}, below...),
	"driver/options":               {"cvmfs/fqrn"},
	"driver/repomount":             append([]string{"driver/options"}, below...),
	"driver/layers":                {"driver/lockorder", "thin", "internal"},
	"driver/images":                {"thin", "cvmfs", "internal"},
	"driver/view":                  {"thin", "cvmfs", "internal"},
	"driver/lockorder":             nil,
	"driver/metrics":               {"driver/status", "internal"},
	"driver/status":                nil,
	"driver/supervise":             {"cvmfs/objectfs", "internal"},
	"thin":                         {"cvmfs/fqrn", "cvmfs/hash"},
	"convert":                      {"thin", "cvmfs", "internal"},
	"convert/ducc":                 {"convert"},
	"convert/sink":                 {"thin", "cvmfs", "internal"},
	"convert/source":               {"internal"},
	"convert/thinimage":            {"convert/source", "thin", "internal"},
	"convert/wish":                 {"cvmfs/fqrn"},
	"cvmfs/publish":                append([]string{"internal"}, formats...),
	"cvmfs/publish/storage":        append([]string{"internal"}, formats...),
	"cvmfs/publish/s3":             {"cvmfs/publish/storage"},
	"cvmfs/publish/check":          append([]string{"cvmfs/publish/storage"}, formats...),
	"cvmfs/publish/gc":             append([]string{"cvmfs/publish", "internal"}, formats...),
	"cvmfs/client":                 append([]string{"cvmfs/fetch", "cvmfs/objects", "internal"}, formats...),
	"cvmfs/listing":                append([]string{"cvmfs/client", "cvmfs/fetch"}, formats...),
	"cvmfs/verify":                 append([]string{"cvmfs/client", "cvmfs/objects", "cvmfs/fetch"}, formats...),
	"cvmfs/objectfs":               append([]string{"cvmfs/fetch", "cvmfs/objects", "internal"}, formats...),
	"cvmfs/objects":                append([]string{"cvmfs/fetch", "internal"}, formats...),
	"cvmfs/fetch":                  append([]string{"cvmfs/pac", "internal"}, formats...),
	"cvmfs/fqrn":                   nil,
	"cvmfs/hash":                   nil,
	"cvmfs/manifest":               formats,
	"cvmfs/trust":                  append([]string{"internal/durable"}, formats...),
	"cvmfs/catalog":                formats,
	"cvmfs/history":                formats,
	"cvmfs/config":                 formats,
	"cvmfs/sqlitefile":             nil,
	"cvmfs/pac":                    nil,
	"internal":                     nil,
	"test":                         {"bundle", "rootfs", "installer", "driver", "convert", "thin", "cvmfs", "internal"},
}

// testRules say what tests below a folder may import besides: what the package under test is held against.
var testRules = map[string][]string{
	"cvmfs/publish/check": {"cvmfs/publish"},                                  // what makes the repositories that are checked
	"cvmfs/client":        {"cvmfs/publish"},                                  // what makes the repositories that are read
	"packaging":           {"convert/wish", "cvmfs/config", "driver/metrics"}, // what reads the examples, and what they name
}

// within reports whether a package is the folder or below it.
func within(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

// anyWithin reports whether a package is one of the folders or below one.
func anyWithin(pkg string, folders []string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool { return within(pkg, folder) })
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

func TestImportsRunOnlyDownwards(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-tags=guest",
		"-json=ImportPath,Imports,TestImports,XTestImports", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for in := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := in.Decode(&pkg); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		from := strings.TrimPrefix(pkg.ImportPath, module+"/")
		if rule(from) == "" {
			t.Errorf("%s: no rule says what it may import", from)
			continue
		}
		check := func(imports []string, allowed func(from, to string) bool, who string) {
			for _, path := range imports {
				if to, ours := strings.CutPrefix(path, module+"/"); ours && !allowed(from, to) {
					t.Errorf("%s%s imports %s", who, from, to)
				}
			}
		}
		check(pkg.Imports, allowed, "")
		check(pkg.TestImports, allowedInTests, "a test of ")
		check(pkg.XTestImports, allowedInTests, "a test of ")
	}
}

// What containerd's API brings along, 6 MB of it, is for the program that speaks it alone.
func TestContainerdIsItsFacesAlone(t *testing.T) {
	for program, want := range map[string]bool{
		"cmd/cvmfs-snapshotter": true, "cmd/cvmfs-graphdriver-plugin": false, "cmd/cvmfs-graphdriver": false,
		"cmd/docker2cvmfs": false,
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

func TestArrowsForbidWhatTheyShould(t *testing.T) {
	for _, arrow := range []struct {
		from, to string
		want     bool
	}{
		{"cvmfs/objects", "cvmfs/fetch", true},
		{"cvmfs/fetch", "cvmfs/objects", false},
		{"cvmfs/client", "driver/layers", false},
		{"cvmfs/hash", "cvmfs/catalog", false},
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
		{"cmd/cvmfs-snapshotter", "installer", false},
		{"driver/snapshotter", "driver/node", true},
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
