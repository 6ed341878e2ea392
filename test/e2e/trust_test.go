package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

func TestATamperedRepositoryIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		tamper func(t *testing.T, repository string)
		says   []string // parts of what the user or the log is told
	}{
		"manifest": {
			func(t *testing.T, dir string) {
				edit(t, filepath.Join(dir, ".cvmfspublished"),
					func(b []byte) { flip(b, bytes.Index(b, []byte("\nS"))+2) })
			},
			[]string{stand.Repository, "manifest", "digest"},
		},
		"signature of the manifest": {
			func(t *testing.T, dir string) {
				edit(t, filepath.Join(dir, ".cvmfspublished"), func(b []byte) { flip(b, len(b)-10) })
			},
			[]string{stand.Repository, "manifest", "signature"},
		},
		"whitelist": {
			func(t *testing.T, dir string) {
				edit(t, filepath.Join(dir, ".cvmfswhitelist"),
					func(b []byte) { flip(b, bytes.Index(b, []byte("\nE"))+2) })
			},
			[]string{stand.Repository, "whitelist"},
		},
		"catalog": {
			func(t *testing.T, dir string) { objects(t, dir, regexp.MustCompile(`C$`)) },
			[]string{stand.Repository, "catalog", "digest|checksum"},
		},
		"object": {
			func(t *testing.T, dir string) { objects(t, dir, regexp.MustCompile(`[0-9a-f]$`)) },
			[]string{stand.Repository, "data/[0-9a-f]{2}/[0-9a-f]{38}", "digest|checksum"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := onOwnStand(t)
			test.tamper(t, filepath.Join(u.Site.Dir, stand.Repository))
			before := len(u.Engine.Log())
			ctx := t.Context()
			said, err := u.Engine.Docker(ctx, "load", "--input", testutil.Data(t, "images", "thin_tiny.tar"))
			if err == nil {
				said, err = u.Engine.Docker(ctx, "run", "--network", "none", stand.Thin)
			}
			if err == nil {
				t.Fatalf("the container ran and said %q", said)
			}
			u.eventually("the reason is told", func() error {
				told := strings.ToLower(err.Error() + u.Engine.Log()[before:])
				for _, part := range test.says {
					if !regexp.MustCompile(part).MatchString(told) {
						return fmt.Errorf("nothing says %q: %w", part, err)
					}
				}
				return nil
			})
		})
	}
}

// edit changes a file's content in place.
func edit(t *testing.T, name string, change func(b []byte)) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	change(b)
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// flip makes a byte another one, a digit another digit.
func flip(b []byte, at int) { b[at] ^= 1 }

// objects damages the stored objects whose names match.
func objects(t *testing.T, repository string, names *regexp.Regexp) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(repository, "data"), func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && names.MatchString(d.Name()) {
			edit(t, name, func(b []byte) { flip(b, len(b)/2) })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
