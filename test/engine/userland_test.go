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
	if diff := cmp.Diff([][]string{{"libc_1_amd64.deb", "low_2_all.deb"}, {"high_4_all.deb", "lib++_9%3a3_amd64.deb"}},
		made); diff != "" {
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
	if err := u.Fetch(t.Context(), cache, io.Discard); err == nil ||
		!strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("got %v, want the cause", err)
	}
	if err := u.Works(filepath.Join(cache, u.Folder)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("afterwards it is there: %v", err)
	}
	fakeApt(t, strings.Replace(userlandApt, "high_4_all.deb", "", 1))
	if err := u.Fetch(t.Context(), cache, io.Discard); err == nil ||
		!strings.Contains(err.Error(), "find the package high") {
		t.Errorf("got %v, want the package that didn't come", err)
	}
}

func TestUnpackedPackagesAreChosenAmongThoseOfSeveralReleases(t *testing.T) {
	for name, test := range map[string]struct{ sources, security string }{
		"the machine's own archive of security updates": {
			`Debian|Debian|http://mirror.example.org/debian/\nDebian|Debian-Security|http://security.example.org/\n`,
			"http://security.example.org/",
		},
		"the one beside the archive": {
			`Other|Debian|http://other.example.org/\nDebian|Debian|http://mirror.example.org/debian/\n`,
			"http://mirror.example.org/debian-security/",
		},
	} {
		t.Run(name, func(t *testing.T) {
			seen := filepath.Join(t.TempDir(), "seen")
			calls := fakeApt(t, `case "$*" in
*indextargets*) printf '`+test.sources+`';;
*download*) cat "${2%/*}/sources.list" >`+seen+`; touch thing-2_1_all.deb;;
esac`)
			u := Unpacked{
				Folder: "things", What: "Debian's things", Packages: []string{"base"},
				Suites: []string{"bookworm", "bookworm-security"},
				Choose: func(names []string) ([]string, error) {
					if diff := cmp.Diff([]string{"other", "thing-1", "thing-2"}, names); diff != "" {
						t.Errorf("names (-want +got):\n%s", diff)
					}
					return names[2:], nil
				},
				Works: func(dir string) error {
					_, err := os.Stat(filepath.Join(dir, "bin/busybox")) // which fakeApt's packages have
					return err
				},
			}
			cache := t.TempDir()
			if err := u.Fetch(t.Context(), cache, io.Discard); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(seen)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{
				"http://mirror.example.org/debian/ bookworm main\n", "] " + test.security + " bookworm-security main\n",
			} {
				if !strings.Contains(string(b), want) {
					t.Errorf("apt was told\n%s\nwhich lacks %q", b, want)
				}
			}
			lines, err := os.ReadFile(calls)
			if err != nil || !strings.Contains(string(lines), " download base thing-2\n") {
				t.Errorf("%v: apt-get was called\n%s", err, lines)
			}
		})
	}
}

func TestWhereNoPackageFitsTheErrorSaysWhatForItIs(t *testing.T) {
	fakeApt(t, userlandApt)
	u := Unpacked{
		Folder: "things", What: "Debian's things", Suites: []string{"bookworm"},
		Works:  func(string) error { return os.ErrNotExist },
		Choose: func([]string) ([]string, error) { return nil, errors.New("no thing fits") },
	}
	if err := u.Fetch(t.Context(), t.TempDir(), io.Discard); err == nil ||
		!strings.Contains(err.Error(), "fetch Debian's things: no thing fits") {
		t.Errorf("got %v", err)
	}
}
