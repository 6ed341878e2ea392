package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/test/testutil"
)

// made is the date of what tests make.
var made = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

// maintainer is that of the packages that tests make.
const maintainer = "Jo Doe <jo@example.org>"

// makeRelease runs `make release`, and gives the folder that it makes everything in.
func makeRelease(t *testing.T, version, arches string, settings ...string) string {
	t.Helper()
	dist := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "make", append([]string{
		"release",
		"DIST=" + dist, "VERSION=" + version, "ARCHS=" + arches, "MAINTAINER=" + maintainer,
	}, settings...)...)
	cmd.Dir = testutil.Root(t)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MAKE") { // those of the make that runs the tests
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", made.Unix()))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make release: %v\n%s", err, out)
	}
	return dist
}

// again returns what makes packages again of what `make release` made.
func again(t *testing.T, dist, version string) *release {
	return &release{
		source: testutil.Root(t), programs: filepath.Join(dist, "bin"), bundles: filepath.Join(dist, "release"),
		output: t.TempDir(), version: version, maintainer: maintainer, date: made,
	}
}

// sums returns the SHA-256 of the files of a folder, by their names.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, f := range files {
		content, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(content)
		found[f.Name()] = hex.EncodeToString(sum[:])
	}
	return found
}

// foreign is an architecture that this machine isn't of.
func foreign() string {
	i := slices.Index(bundle.Architectures(), runtime.GOARCH)
	return bundle.Architectures()[1-i]
}

func TestRelease(t *testing.T) {
	if testing.Short() {
		t.Skip("it compiles everything for each architecture, which takes minutes")
	}
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	text, err := private.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, text, 0o600); err != nil {
		t.Fatal(err)
	}
	dist := makeRelease(t, "1.2.3", "amd64 arm64", "SIGN_KEY="+key)
	t.Run("is whole", func(t *testing.T) { isWhole(t, filepath.Join(dist, "release"), public) })
	t.Run("packages are for their architecture", func(t *testing.T) {
		tree := filepath.Join(t.TempDir(), "tree")
		if err := again(t, dist, "1.2.3").tree(t.Context(), tree, foreign()); err != nil {
			t.Fatal(err)
		}
		if arch, err := bundle.ProgramArch(filepath.Join(tree, "usr/bin/docker2cvmfs")); err != nil ||
			arch != foreign() {
			t.Errorf("docker2cvmfs is for %q, want %q: %v", arch, foreign(), err)
		}
	})
	t.Run("programs of another architecture are refused", func(t *testing.T) {
		r := again(t, dist, "1.2.3")
		r.programs = t.TempDir()
		if err := os.Symlink(filepath.Join(dist, "bin", runtime.GOARCH),
			filepath.Join(r.programs, foreign())); err != nil {
			t.Fatal(err)
		}
		if _, err := r.packages(t.Context(), foreign()); err == nil ||
			!strings.Contains(err.Error(), "want one for "+foreign()) {
			t.Errorf("got %v", err)
		}
		if left := sums(t, r.output); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("bundles of another version are refused", func(t *testing.T) {
		r := again(t, dist, "1.2.4")
		if _, err := r.packages(t.Context(), runtime.GOARCH); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("packages are the same bytes each time", func(t *testing.T) {
		defer unix.Umask(unix.Umask(0o077))
		r := again(t, dist, "1.2.3")
		names, err := r.packages(t.Context(), runtime.GOARCH)
		if err != nil {
			t.Fatal(err)
		}
		first, second := sums(t, filepath.Join(dist, "release")), sums(t, r.output)
		for _, name := range names {
			if first[name] != second[name] {
				t.Errorf("%s is another file", name)
			}
		}
	})
	t.Run("a full disk leaves no part of a package", func(t *testing.T) {
		r := again(t, dist, "1.2.3")
		r.output = testutil.SmallDisk(t, "60m") // enough for what goes in, not for the packages
		if _, err := r.packages(t.Context(), runtime.GOARCH); err == nil ||
			!strings.Contains(err.Error(), "no space left") {
			t.Errorf("got %v", err)
		}
		if left := sums(t, r.output); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("packages are installed and removed", func(t *testing.T) {
		testutil.NeedRoot(t)
		share := t.TempDir()
		later := makeRelease(t, "1.2.4-1-gabcdef0", runtime.GOARCH)
		for _, dist := range []string{dist, later} {
			if err := os.CopyFS(share, packagesIn{os.DirFS(filepath.Join(dist, "release"))}); err != nil {
				t.Fatal(err)
			}
		}
		t.Run("deb", func(t *testing.T) { debComesAndGoes(t, machine(t, share)) })
		t.Run("rpm", func(t *testing.T) { rpmComesAndGoes(t, machine(t, share)) })
		t.Run("checked by others", func(t *testing.T) { checkedByOthers(t, machine(t, share)) })
	})
}

// isWhole checks that a release is there, all of it and nothing else, and that its sums and its signature are right.
func isWhole(t *testing.T, dir string, public minisign.PublicKey) {
	want := []string{
		"SHA256SUMS", "SHA256SUMS.minisig",
		"cvmfs-snapshotter-1.2.3-chart.tgz", "cvmfs-snapshotter-1.2.3-image.tar", "cvmfs-snapshotter-1.2.3.yaml",
	}
	for _, arch := range []string{"amd64", "arm64"} {
		rpm := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch]
		want = append(want,
			"cvmfs-graphdriver-1.2.3-"+arch, "cvmfs-snapshotter-1.2.3-"+arch, "docker2cvmfs-1.2.3-"+arch,
			"cvmfs-graphdriver-plugin-1.2.3-"+arch+".tar.gz", "cvmfs-graphdriver-plugin-1.2.3-"+arch+".tar.zst",
			"cvmfs-graphdriver-plugin-1.2.3-"+arch+".spdx.json",
			"cvmfs-graphdriver_1.2.3-1_"+arch+".deb", "cvmfs-graphdriver-1.2.3-1."+rpm+".rpm")
	}
	slices.Sort(want)
	found := sums(t, dir)
	var names, lines []string
	for name, sum := range found {
		names = append(names, name)
		if !strings.HasPrefix(name, "SHA256SUMS") {
			lines = append(lines, sum+"  "+name)
		}
	}
	slices.Sort(names)
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	listed, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(listed)), "\n")
	slices.Sort(got)
	slices.Sort(lines)
	if diff := cmp.Diff(lines, got); diff != "" {
		t.Errorf("sums (-want +got):\n%s", diff)
	}
	if out, err := command(t, dir, "sha256sum", "--strict", "--check", "SHA256SUMS"); err != nil {
		t.Errorf("sha256sum --check: %v\n%s", err, out)
	}
	signature, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS.minisig"))
	if err != nil {
		t.Fatal(err)
	}
	if !minisign.Verify(public, listed, signature) {
		t.Error("the signature of SHA256SUMS is wrong")
	}
}

// command runs a program in a folder and gives what it wrote.
func command(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// order are versions of programs and what packages make of them, in the order of packages.
var order = []struct{ version, want string }{
	{"7fb4ba7", "0~git20260131120000.7fb4ba7"},
	{"7fb4ba7-dirty", "0~git20260131120000.7fb4ba7+dirty"},
	{"v0.9.9-rc.1", "0.9.9~rc.1"},
	{"0.9.9-rc.1-2-gabcdef0", "0.9.9~rc.1+2.gabcdef0"},
	{"0.9.9-rc.2", "0.9.9~rc.2"},
	{"0.9.9", "0.9.9"},
	{"0.9.9-2-gabcdef0", "0.9.9+2.gabcdef0"},
	{"0.9.9-10-g0123456", "0.9.9+10.g0123456"},
	{"0.9.9-10-g0123456-dirty", "0.9.9+10.g0123456+dirty"},
	{"0.10.0", "0.10.0"},
	{"v1.2.3", "1.2.3"},
}

func TestVersionsOfPackages(t *testing.T) {
	for i, c := range order {
		got := packageVersion(c.version, made)
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.version, got, c.want)
		}
		if out, err := command(t, "", "dpkg", "--validate-version", got+"-1"); err != nil {
			t.Errorf("%s: %v: %s", got, err, out)
		}
		if i > 0 {
			if out, err := command(t, "", "dpkg", "--compare-versions", order[i-1].want+"-1", "lt",
				got+"-1"); err != nil {
				t.Errorf("%s isn't before %s: %v %s", order[i-1].want, got, err, out)
			}
		}
	}
	if got, want := packageVersion("unknown", made), "0~git20260131120000.unknown"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	later := packageVersion("0000000", made.Add(time.Second))
	if out, err := command(t, "", "dpkg", "--compare-versions", order[1].want, "lt", later); err != nil {
		t.Errorf("a later commit isn't after an earlier one: %v %s", err, out)
	}
	// Nothing that git can say, tags of any kind included, makes a version that dpkg refuses.
	for _, odd := range []string{"", "-dirty", "release/2026-01", "v", "1.2.3-foo", "1_2", "ü", "1.2.3+build"} {
		if out, err := command(t, "", "dpkg", "--validate-version", packageVersion(odd, made)+"-1"); err != nil {
			t.Errorf("%q: %v: %s", odd, err, out)
		}
	}
}

func TestLicencesAreThoseOfEachModule(t *testing.T) {
	dirs := map[string]string{}
	write := func(work, name, text string) {
		if dirs[work] == "" {
			dirs[work] = t.TempDir()
		}
		if err := os.WriteFile(filepath.Join(dirs[work], name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("c v1", "LICENSE.md", "terms of two\n")
	write("c v1", "NOTICE", "notice\n")
	write("b v1", "COPYING", "terms of one\n")
	write("b v1", "license.go", "package license")
	write("a v1", "LICENSE.md", "terms of two")
	write("a v1", "NOTICE", "notice")
	got, err := collect(dirs)
	if err != nil {
		t.Fatal(err)
	}
	rule, line := strings.Repeat("=", 80), strings.Repeat("-", 80)
	want := "What the programs of cvmfs-graphdriver are made of besides its own code, and the terms of each.\n" +
		"\n" + rule + "\na v1\nc v1\n\n" + line + "\n\nterms of two\n" + line + "\n\nnotice\n" +
		"\n" + rule + "\nb v1\n\n" + line + "\n\nterms of one\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	write("d v1", "README", "no terms")
	if _, err := collect(dirs); err == nil || !strings.Contains(err.Error(), "licence of d v1") {
		t.Errorf("a module without a licence: %v", err)
	}
}
