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
	"cvmfs/hash", "cvmfs/manifest", "cvmfs/trust", "cvmfs/catalog", "cvmfs/history", "cvmfs/config",
	"cvmfs/sqlitefile",
}

// rules say for each package, or each below a folder, what of ours it may import besides packages below itself. The
// longest name that fits a package counts. A package that no rule fits has no place yet.
var rules = map[string][]string{
	"cmd":                          {"installer", "bundle", "rootfs", "driver", "convert", "thin", "cvmfs", "internal"},
	"cmd/cvmfs-graphdriver-plugin": {"rootfs", "driver", "thin", "cvmfs", "internal"},
	"installer":                    {"bundle", "rootfs", "cvmfs", "internal"},
	"bundle":                       {"rootfs", "internal"},
	"packaging":                    {"bundle", "internal"},
	"rootfs":                       nil,
	"driver/graphdriver": {
		"driver/layers", "driver/images", "driver/view", "driver/supervise", "thin",
		"cvmfs", "internal",
	},
	"driver/conformance": nil,
	"driver/snapshotter": {
		"driver/layers", "driver/images", "driver/view", "driver/supervise", "thin",
		"cvmfs", "internal",
	},
	"driver/layers":    {"driver/images", "driver/view", "thin", "cvmfs", "internal"},
	"driver/images":    {"thin", "cvmfs", "internal"},
	"driver/view":      {"thin", "cvmfs", "internal"},
	"driver/supervise": {"cvmfs/objectfs", "internal"},
	"thin":             {"cvmfs/config", "cvmfs/hash"},
	"convert":          {"thin", "cvmfs", "internal"},
	"cvmfs/publish":    append([]string{"cvmfs/client", "cvmfs/fetch", "internal"}, formats...),
	"cvmfs/client":     append([]string{"cvmfs/fetch", "cvmfs/objects", "internal"}, formats...),
	"cvmfs/objectfs":   append([]string{"cvmfs/fetch", "cvmfs/objects", "internal"}, formats...),
	"cvmfs/objects":    append([]string{"cvmfs/fetch", "internal"}, formats...),
	"cvmfs/fetch":      append([]string{"internal"}, formats...),
	"cvmfs/hash":       nil,
	"cvmfs/manifest":   formats,
	"cvmfs/trust":      formats,
	"cvmfs/catalog":    formats,
	"cvmfs/history":    formats,
	"cvmfs/config":     formats,
	"cvmfs/sqlitefile": nil,
	"internal":         nil,
	"test":             {"bundle", "rootfs", "installer", "driver", "convert", "thin", "cvmfs", "internal"},
}

// within reports whether a package is the folder or below it.
func within(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

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
	return within(to, name) || slices.ContainsFunc(rules[name], func(folder string) bool { return within(to, folder) })
}

func TestImportsRunOnlyDownwards(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for in := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath string
			Imports    []string
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
		for _, path := range pkg.Imports {
			if to, ours := strings.CutPrefix(path, module+"/"); ours && !allowed(from, to) {
				t.Errorf("%s imports %s", from, to)
			}
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
		{"driver/graphdriver", "driver/snapshotter", false},
		{"driver/layers", "driver/graphdriver", false},
		{"driver/conformance", "driver/layers", false},
		{"installer", "driver/layers", false},
		{"driver/layers", "bundle", false},
		{"cmd/cvmfs-graphdriver-plugin", "installer", false},
		{"internal/erofs", "cvmfs/hash", false},
		{"test/engine", "test/testutil", true},
		{"cvmfsother", "cvmfs/hash", false},
	} {
		if got := allowed(arrow.from, arrow.to); got != arrow.want {
			t.Errorf("%s → %s: allowed %t, want %t", arrow.from, arrow.to, got, arrow.want)
		}
	}
}
