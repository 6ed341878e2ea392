package archtest

import (
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/testutil"
)

// What the troubleshooting document quotes of our programs is in their source. That of the engine is seen by the
// guide's test, in part.
func TestTroubleshootingQuotesOurMessages(t *testing.T) {
	root := testutil.Root(t)
	text, err := os.ReadFile(filepath.Join(root, "docs/troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, ours, found := strings.Cut(string(text), "\n## What the plugin and the programs say\n")
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(ours, -1)
	if !found || len(rows) < 10 {
		t.Fatalf("%d messages of ours", len(rows))
	}
	var source strings.Builder
	if err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(name)
		source.Write(b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if message := row[1]; message != "no space left on device" && !strings.Contains(source.String(), message) {
			t.Errorf("no program says %q", message)
		}
	}
}

// Section 2 of the architecture document names each package, but for folders of what tests of a package share, named
// like it with "test" behind.
func TestArchitectureNamesEveryPackage(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(testutil.Root(t), "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, layout, _ := strings.Cut(string(text), "\n## 2. ")
	layout, _, found := strings.Cut(layout, "\nImports run ")
	list, err := exec.CommandContext(t.Context(), "go", "list", "-tags=guest", module+"/...").Output()
	packages := strings.Fields(string(list))
	if err != nil || !found || len(packages) < 50 {
		t.Fatalf("%d packages: %v", len(packages), err)
	}
	for _, pkg := range packages {
		if name := path.Base(pkg); name != path.Base(path.Dir(pkg))+"test" &&
			!regexp.MustCompile(`\b`+regexp.QuoteMeta(name)+`/`).MatchString(layout) {
			t.Errorf("docs/architecture.md doesn't name %s", pkg)
		}
	}
}

// The table of section 2 of the architecture document has the rules, but for the right to import internal.
func TestArchitectureHasTheRules(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(testutil.Root(t), "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`([^`]+)`|\\bformats\\b")
	told := map[string][]string{}
	rows := regexp.MustCompile("(?m)^\\| (`.*) \\| (.*) \\|$")
	for _, row := range rows.FindAllStringSubmatch(table(t, string(text)), -1) {
		for _, from := range names.FindAllString(row[1], -1) {
			rights := []string{}
			for _, to := range names.FindAllString(row[2], -1) {
				rights = append(rights, strings.Trim(to, "`"))
			}
			slices.Sort(rights)
			told[strings.Trim(from, "`")] = rights
		}
	}
	want := map[string][]string{}
	for name, rights := range rules {
		rights = slices.DeleteFunc(slices.Clone(rights), func(to string) bool { return to == "internal" })
		slices.Sort(rights)
		want[name] = append([]string{}, rights...)
	}
	if d := cmp.Diff(want, told); d != "" {
		t.Errorf("the table of docs/architecture.md, -rules +table\n%s", d)
	}
}

// table returns the table of rules in the architecture document.
func table(t *testing.T, text string) string {
	t.Helper()
	_, text, found := strings.Cut(text, "\n| package | may import, ")
	text, _, end := strings.Cut(text, "\n\n")
	if !found || !end {
		t.Fatal("docs/architecture.md has no table of rules")
	}
	return text
}

// What the contributors' documents name of the source is there.
func TestDocumentsNameWhatIsThere(t *testing.T) {
	root := testutil.Root(t)
	files, err := filepath.Glob(filepath.Join(root, "docs/adr/*.md"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d decisions: %v", len(files), err)
	}
	inSource := regexp.MustCompile("`((?:cmd|convert|cvmfs|driver|installer|internal|test|testdata)/[a-z0-9/_.-]+)`")
	named := 0
	for _, file := range append(files, filepath.Join(root, "docs/architecture.md"), filepath.Join(root, "CONTRIBUTING.md")) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range inSource.FindAllStringSubmatch(string(text), -1) {
			named++
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s names %s: %v", filepath.Base(file), m[1], err)
			}
		}
	}
	if named < 40 {
		t.Errorf("%d names were looked at", named)
	}
}

// The list of decisions has each of them.
func TestDecisionsAreListed(t *testing.T) {
	dir := filepath.Join(testutil.Root(t), "docs/adr")
	list, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "0*.md"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d decisions: %v", len(files), err)
	}
	for _, file := range files {
		if !strings.Contains(string(list), "]("+filepath.Base(file)+")") {
			t.Errorf("README.md doesn't list %s", filepath.Base(file))
		}
	}
}
