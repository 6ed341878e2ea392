package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

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
