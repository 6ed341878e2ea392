package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/debian"
	"cvmfs-graphdriver/test/engine"
)

// packagesIn are the packages for this machine in a folder, and no other files.
type packagesIn struct{ fs.FS }

func (p packagesIn) ReadDir(dir string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(p.FS, dir)
	var found []fs.DirEntry
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "_"+runtime.GOARCH+".deb") ||
			strings.HasSuffix(e.Name(), "."+rpmArch[runtime.GOARCH]+".rpm") {
			found = append(found, e)
		}
	}
	return found, err
}

// rpmArch are RPM's names of architectures.
var rpmArch = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// machine returns a Debian of the test's own, whose /mnt is a folder.
func machine(t *testing.T, share string) *debian.Machine {
	t.Helper()
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	m, err := debian.New(cache, debian.Tools, t.TempDir(), share)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// do runs a script, which must succeed, and gives what it said.
func do(t *testing.T, m *debian.Machine, script string) string {
	t.Helper()
	out, err := m.Run(t.Context(), script)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out
}

// common are folders that on systems with RPM belong to packages which are always there.
var common = []string{"/usr/share/licenses", "/usr/share/zsh/site-functions"}

// files lists a machine's files, but for those that package managers and tools keep about packages.
func files(t *testing.T, m *debian.Machine) []string {
	t.Helper()
	var found []string
	for name := range strings.Lines(do(t, m, "find / -xdev -not -type p")) {
		name = strings.TrimSpace(name)
		if !path.IsAbs(name) || strings.HasPrefix(name, "/var/") || strings.HasPrefix(name, "/tmp/") ||
			slices.Contains(common, name) {
			continue
		}
		found = append(found, name)
	}
	return found
}

// works checks that what a package of a version brings is there and works.
func works(t *testing.T, m *debian.Machine, version string) {
	t.Helper()
	for _, name := range programs {
		if got := do(t, m, name+" version"); !strings.HasPrefix(got, name+" "+version+" (") {
			t.Errorf("%s version: %q", name, got)
		}
	}
	archive := "/usr/share/cvmfs-graphdriver/cvmfs-graphdriver-plugin-" + version + "-" + runtime.GOARCH + ".tar.gz"
	if got := strings.TrimSpace(do(t, m, "ls /usr/share/cvmfs-graphdriver/*")); got != archive {
		t.Errorf("bundles: got %s, want %s", got, archive)
	}
	do(t, m, "cvmfs-graphdriver bundle verify "+archive)
	// The program alone builds the very bundle that it came with.
	do(t, m, fmt.Sprintf("SOURCE_DATE_EPOCH=%d cvmfs-graphdriver bundle build --format tar.gz --output /tmp/bundle-%s && cmp %s /tmp/bundle-%s/*.tar.gz",
		made.Unix(), version, archive, version))
	if got := do(t, m, "stat --format '%U %a' /etc/cvmfs"); got != "root 755\n" {
		t.Errorf("/etc/cvmfs: %q", got)
	}
}

// What an administrator has put into /etc/cvmfs, and where an engine keeps its data: no package of ours touches either.
const (
	configure = `mkdir -p /etc/cvmfs/config.d /var/lib/docker/plugins && echo mine >/etc/cvmfs/config.d/a.example.org.conf && echo data >/var/lib/docker/plugins/layer`
	untouched = `grep -q mine /etc/cvmfs/config.d/a.example.org.conf && grep -q data /var/lib/docker/plugins/layer`
)

func debComesAndGoes(t *testing.T, m *debian.Machine) {
	const first, second = "/mnt/cvmfs-graphdriver_1.2.3-1_*.deb", "/mnt/cvmfs-graphdriver_1.2.4+1.gabcdef0-1_*.deb"
	do(t, m, "echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/for-tests") // what is lost with the power needn't be kept
	before := files(t, m)
	if got := do(t, m, "dpkg-deb --info "+first); strings.Contains(got, "inst") && strings.Contains(got, "#!") {
		t.Errorf("the package has scripts:\n%s", got)
	}
	// apt says what would be in the way, as a package that is missing, and takes the later version for the later one.
	do(t, m, "apt-get install --yes "+first)
	works(t, m, "1.2.3")
	do(t, m, "apt-get install --yes "+second)
	works(t, m, "1.2.4-1-gabcdef0")
	do(t, m, "dpkg --verify cvmfs-graphdriver")

	do(t, m, "apt-get remove --yes cvmfs-graphdriver")
	do(t, m, "dpkg --purge cvmfs-graphdriver")
	if diff := cmp.Diff(before, files(t, m)); diff != "" {
		t.Errorf("after the purge (-before +after):\n%s", diff)
	}

	do(t, m, configure)
	do(t, m, "dpkg --install "+second)
	do(t, m, "apt-get purge --yes cvmfs-graphdriver")
	do(t, m, untouched)
	if got := do(t, m, "dpkg-query --show || true"); strings.Contains(got, "cvmfs") {
		t.Errorf("still known: %s", got)
	}

	// Another package has the folder, too.
	do(t, m, `mkdir -p /tmp/other/DEBIAN /tmp/other/etc/cvmfs /tmp/other/usr/share/other
echo other >/tmp/other/usr/share/other/file
printf 'Package: cvmfs\nVersion: 1\nArchitecture: all\nMaintainer: none <none@example.org>\nDescription: another\n' >/tmp/other/DEBIAN/control
dpkg-deb --build /tmp/other /tmp/other.deb
rm -r /etc/cvmfs
dpkg --install /tmp/other.deb `+second+`
dpkg --purge cvmfs-graphdriver
test -d /etc/cvmfs
dpkg --purge cvmfs
test ! -e /etc/cvmfs`)
}

func rpmComesAndGoes(t *testing.T, m *debian.Machine) {
	const first, second = "/mnt/cvmfs-graphdriver-1.2.3-1.*.rpm", "/mnt/cvmfs-graphdriver-1.2.4+1.gabcdef0-1.*.rpm"
	do(t, m, "rpm --checksig "+first+" "+second)
	if got := do(t, m, "rpm --query --package --scripts "+first); got != "" {
		t.Errorf("the package has scripts: %s", got)
	}
	for i := range order[1:] {
		compared := do(t, m, fmt.Sprintf(`rpm --eval "%%{lua: print(rpm.vercmp('%s', '%s'))}"`, order[i].want,
			order[i+1].want))
		if compared != "-1\n" {
			t.Errorf("%s isn't before %s for RPM: %s", order[i].want, order[i+1].want, compared)
		}
	}
	listed := do(t, m, "rpm --query --package --list "+first)
	do(t, m, "rpmdb --initdb")
	before := files(t, m)
	do(t, m, "rpm --install "+first)
	works(t, m, "1.2.3")
	for name := range strings.Lines(listed) {
		do(t, m, "test -e "+name)
	}
	do(t, m, "rpm --upgrade "+second)
	works(t, m, "1.2.4-1-gabcdef0")
	if out, err := m.Run(t.Context(), "rpm --upgrade "+first); err == nil || !strings.Contains(out, "newer") {
		t.Errorf("an upgrade to what is older: %v %s", err, out)
	}
	do(t, m, "rpm --verify cvmfs-graphdriver")
	do(t, m, configure)
	do(t, m, "rpm --erase cvmfs-graphdriver")
	do(t, m, untouched+" && rm -r /etc/cvmfs")
	if diff := cmp.Diff(before, files(t, m)); diff != "" {
		t.Errorf("after the erasure (-before +after):\n%s", diff)
	}
}

// checkedByOthers has programs whose matter it is look at what packages hold.
func checkedByOthers(t *testing.T, m *debian.Machine) {
	const deb = "/mnt/cvmfs-graphdriver_1.2.3-1_*.deb"
	t.Run("lintian", func(t *testing.T) {
		do(t, m, "lintian --allow-root --display-info --pedantic --fail-on error,warning,info,pedantic "+deb)
	})
	do(t, m, "dpkg --install "+deb)
	for _, name := range programs {
		t.Run(name, func(t *testing.T) {
			do(t, m, "zcat /usr/share/man/man1/"+name+".1.gz >/tmp/page.1 && mandoc -Tlint -Wwarning /tmp/page.1")
			page := do(t, m, "mandoc -Tutf8 /tmp/page.1 | col -b")
			for _, want := range []string{"NAME", "COMMANDS", name + " version", "EXIT STATUS"} {
				if !strings.Contains(page, want) {
					t.Errorf("no %q in the manual page:\n%s", want, page)
				}
			}
			do(t, m, "bash -n /usr/share/bash-completion/completions/"+name)
			do(t, m, "zsh -n /usr/share/zsh/vendor-completions/_"+name)
			do(t, m, "fish -n /usr/share/fish/vendor_completions.d/"+name+".fish")
			// fish finds the file, and that asks the program.
			if got := strings.Fields(do(t, m, "fish --command 'complete --do-complete \""+name+
				" ver\"'")); !cmp.Equal(got, []string{"version"}) {
				t.Errorf("fish completes to %q", got)
			}
		})
	}
	t.Run("licences", func(t *testing.T) {
		licences := do(t, m, "zcat /usr/share/doc/cvmfs-graphdriver/THIRD-PARTY-LICENSES.gz")
		for _, want := range []string{
			"Go, its standard library", "modernc.org/sqlite v", "github.com/urfave/cli/v2 v",
			"Apache License",
		} {
			if !strings.Contains(licences, want) {
				t.Errorf("nothing of %s in the licences", want)
			}
		}
	})
}
