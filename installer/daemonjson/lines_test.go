package daemonjson

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What somebody has changed of a text since is kept, and what can't be told apart isn't undone.
func TestTextsAreRestoredByLines(t *testing.T) {
	const before, after = "version = 2\n# a\n[debug]\n  level = 1\n", "version = 2\nimports = []\n# a\n[debug]\n  level = 1\n"
	for _, c := range []struct{ what, edited, restored string }{
		{"unchanged", after, before},
		{"below", strings.Replace(after, "1", "7", 1), strings.Replace(before, "1", "7", 1)},
		{"the same line", strings.Replace(after, "[]", "['x']", 1), strings.Replace(after, "[]", "['x']", 1)},
	} {
		t.Run(c.what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			must(t, os.WriteFile(path, []byte(before), 0o640))
			f, err := Read(path)
			must(t, err)
			f = f.With([]byte(after))
			backup, err := f.Backup(time.Now())
			must(t, err)
			must(t, f.Write())
			must(t, os.WriteFile(path, []byte(c.edited), 0o640))
			r, err := backup.Restore()
			must(t, err)
			got, err := os.ReadFile(path)
			must(t, err)
			if string(got) != c.restored || (len(r.Kept) > 0) != (c.restored == c.edited) {
				t.Errorf("%+v: %s", r, got)
			}
		})
	}
}
