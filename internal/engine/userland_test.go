package engine

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// userlandApt knows of packages: "low" needs libc, "high" needs low and a library, with an epoch in its version.
const userlandApt = `case "$*" in
*indextargets*) printf 'Debian|Debian|http://mirror.example.org/debian/\n';;
*simulate*high*) printf 'Inst libc (1)\nInst low (2)\nInst lib++:amd64 (3)\nInst high (4)\nConf high (4)\n';;
*simulate*) printf 'Inst libc (1)\nInst low (2)\n';;
*download-only*) grep -q 'Dir::State::status "'"${2%/*}"'/status";' "$2" && cp "${2%/*}/status" "${2%/*}/../state-seen" || exit 1
	cd "${2%/*}/archive/archives" && touch libc_1_amd64.deb low_2_all.deb lib++_9%3a3_amd64.deb high_4_all.deb;;
esac`

// userland is one that lists the packages of each stage in a file.
func userland(made *[][]string, fail error) *Userland {
	return &Userland{
		Folder: "image", Suite: "bookworm", Stages: [][]string{{"low"}, {"high"}}, Without: []string{"unwanted"},
		Works: func(dir string) error {
			_, err := os.Stat(filepath.Join(dir, "made"))
			return err
		},
		Make: func(_ context.Context, dir string, debs [][]string) error {
			*made = nil
			for _, stage := range debs {
				var names []string
				for _, deb := range stage {
					names = append(names, filepath.Base(deb))
				}
				*made = append(*made, names)
			}
			return errors.Join(fail, os.WriteFile(filepath.Join(dir, "made"), nil, 0o644))
		},
	}
}

func TestAUserlandIsMadeOfWhatEachStageAdds(t *testing.T) {
	calls := fakeApt(t, userlandApt)
	cache := t.TempDir()
	var made [][]string
	for range 2 {
		if err := userland(&made, nil).Fetch(t.Context(), cache, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([][]string{{"libc_1_amd64.deb", "low_2_all.deb"}, {"high_4_all.deb", "lib++_9%3a3_amd64.deb"}}, made); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}
	if got := count(t, calls); got != 6 {
		t.Errorf("apt-get was called %d times, want 6: two updates, the mirror, the download, two stages, and nothing the second time", got)
	}
	status, err := os.ReadFile(filepath.Join(cache, "state-seen"))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(status); !strings.Contains(text, "Package: unwanted\n") || strings.Count(text, "Package:") != 1 {
		t.Errorf("apt was told of a machine with %q, want only what is left out", text)
	}
	if _, err := os.Stat(filepath.Join(cache, "fetching")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the work folder is left: %v", err)
	}
}

func TestAUserlandThatCannotBeMadeLeavesNothingThatCounts(t *testing.T) {
	fakeApt(t, userlandApt)
	cache := t.TempDir()
	var made [][]string
	u := userland(&made, errors.New("the disk is full"))
	if err := u.Fetch(t.Context(), cache, io.Discard); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("got %v, want the cause", err)
	}
	if err := u.Works(filepath.Join(cache, u.Folder)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("afterwards it is there: %v", err)
	}
	fakeApt(t, strings.Replace(userlandApt, "high_4_all.deb", "", 1))
	if err := u.Fetch(t.Context(), cache, io.Discard); err == nil || !strings.Contains(err.Error(), "find the package high") {
		t.Errorf("got %v, want the package that didn't come", err)
	}
}
