package metrics

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/testutil"
)

var update = flag.Bool("update", false, "write the table of metrics in docs/operations.md")

// The guide for operators lists all metrics there are.
func TestTheGuideListsAllMetrics(t *testing.T) {
	file := filepath.Join(testutil.Root(t), "docs/operations.md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const head = "| metric | type | labels | what |\n|---|---|---|---|\n"
	before, rest, found := strings.Cut(string(text), head)
	if !found {
		t.Fatal("no table")
	}
	got, after, _ := strings.Cut(rest, "\n\n")
	var want strings.Builder
	for _, f := range Families() {
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s |\n", f.Name, f.Type, strings.Join(f.Labels, ", "),
			strings.TrimSuffix(f.Help, "."))
	}
	if *update {
		text := before + head + want.String() + "\n" + strings.TrimLeft(after, "\n")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want.String(), got+"\n"); d != "" {
		t.Errorf("docs/operations.md, mended by -update: -want +got\n%s", d)
	}
}
