package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/testutil"
)

// writeProgram writes an executable's headers with one segment of the given type and pad bytes after them.
func writeProgram(t *testing.T, machine elf.Machine, segment elf.ProgType, pad int) string {
	t.Helper()
	var b bytes.Buffer
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64),
		byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	if err := errors.Join(
		binary.Write(&b, binary.LittleEndian, header),
		binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(segment)}),
	); err != nil {
		t.Fatal(err)
	}
	b.Write(make([]byte, pad))
	name := filepath.Join(t.TempDir(), "plugin")
	if err := os.WriteFile(name, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// small are programs for each architecture, of version 1.2.3 and commit c0ffee, built once.
var small = map[string]func(t *testing.T) string{}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cvmfs-bundle-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, arch := range Architectures() {
		var once sync.Once
		name := filepath.Join(dir, arch)
		small[arch] = func(t *testing.T) string {
			t.Helper()
			once.Do(func() {
				if err := os.Rename(testutil.PluginProgram(t, arch, "1.2.3", "c0ffee"), name); err != nil {
					t.Fatal(err)
				}
			})
			return name
		}
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// options are those of a bundle for this machine, an amd64 or arm64 one.
func options(t *testing.T) Options {
	return Options{
		Programs: []string{small[runtime.GOARCH](t)},
		Build:    rootfs.Build{Version: "1.2.3", Commit: "c0ffee", Time: time.Unix(1_600_000_000, 0)},
		Output:   filepath.Join(t.TempDir(), "dist"),
		Formats:  []Format{Folder, TarGz},
	}
}

// built builds bundles and gives their folder.
func built(t *testing.T, o Options) string {
	t.Helper()
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return o.Output
}

// names lists a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// tree lists a folder: name, mode, time and content of all that is in it.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	seen := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var content []byte
		if info.Mode().IsRegular() {
			if content, err = os.ReadFile(name); err != nil {
				return err
			}
		}
		relative, err := filepath.Rel(filepath.Dir(dir), name)
		seen[relative] = fmt.Sprintf("%v %v %x", info.Mode(), info.ModTime().UTC(), sha256.Sum256(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// untar lists an archive as tree lists a folder.
func untar(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader
	if strings.HasSuffix(file, ".gz") {
		r, err = gzip.NewReader(f)
	} else {
		r, err = zstd.NewReader(f)
	}
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	testutil.Untar(t, r, func(h *tar.Header, content []byte) {
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" {
			t.Errorf("%s belongs to %d:%d (%q:%q)", h.Name, h.Uid, h.Gid, h.Uname, h.Gname)
		}
		seen[filepath.Clean(h.Name)] = fmt.Sprintf("%v %v %x", h.FileInfo().Mode(), h.ModTime.UTC(),
			sha256.Sum256(content))
	})
	return seen
}

func TestFolderAndArchivesHoldTheSame(t *testing.T) {
	o := options(t)
	o.Formats = Formats()
	dir := built(t, o)
	const name = "cvmfs-graphdriver-plugin-1.2.3"
	full := name + "-" + runtime.GOARCH
	want := []string{SumsName, name, full + ".spdx.json", full + ".tar.gz", full + ".tar.zst"}
	if diff := cmp.Diff(want, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	folder := tree(t, filepath.Join(dir, name))
	for _, ending := range []string{".tar.gz", ".tar.zst"} {
		if diff := cmp.Diff(folder, untar(t, filepath.Join(dir, full+ending))); diff != "" {
			t.Errorf("folder and %s differ: %s", ending, diff)
		}
	}
	for _, file := range []string{
		"config.json", "rootfs/bin/cvmfs-graphdriver-plugin", "rootfs/run", "rootfs" + rootfs.PropagatedMount,
		"rootfs/etc/cvmfs", "rootfs/minio_ext_config",
		"rootfs/usr/share/cvmfs-graphdriver/build.json", "rootfs/usr/share/cvmfs-graphdriver/cvmfs/default.conf",
	} {
		if _, ok := folder[name+"/"+file]; !ok {
			t.Errorf("no %s", file)
		}
	}
	if out, err := exec.Command("sh", "-c", "cd \"$1\" && sha256sum --strict --check SHA256SUMS", "sh",
		dir).CombinedOutput(); err != nil || strings.Count(string(out), ": OK\n") != 7 {
		t.Errorf("sha256sum: %v: %s", err, out)
	}
}

// A bundle that is read, from whatever form, is written as it was.
func TestEveryFormReadsBackTheSame(t *testing.T) {
	o := options(t)
	o.Formats = Formats()
	dir := built(t, o)
	full := filepath.Join(dir, "cvmfs-graphdriver-plugin-1.2.3-"+runtime.GOARCH)
	var bundles []*Bundle
	for _, name := range []string{
		filepath.Join(dir, "cvmfs-graphdriver-plugin-1.2.3"), full + ".tar.gz",
		full + ".tar.zst",
	} {
		b, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		bundles = append(bundles, b)
	}
	var layer bytes.Buffer
	if err := bundles[0].WriteRootfs(&layer); err != nil {
		t.Fatal(err)
	}
	b, err := Read(bundles[0].ConfigJSON(), &layer)
	if err != nil {
		t.Fatal(err)
	}
	want := map[Format][]byte{}
	for _, format := range []Format{TarGz, TarZst} {
		if want[format], err = os.ReadFile(full + "." + string(format)); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range append(bundles, b) {
		if diff := cmp.Diff(rootfs.Build{
			Version: "1.2.3", Commit: "c0ffee", Arch: runtime.GOARCH,
			Time: time.Unix(1_600_000_000, 0).UTC(),
		}, b.Build); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(rootfs.PluginConfig(b.Build), b.Config); diff != "" {
			t.Error(diff)
		}
		if err := b.Check(); err != nil {
			t.Error(err)
		}
		for format, want := range want {
			var got bytes.Buffer
			if err := b.WriteArchive(&got, format); err != nil || !bytes.Equal(want, got.Bytes()) {
				t.Errorf("%s is other bytes: %v", format, err)
			}
		}
	}
	if a := bundles[1].Archive; a.Format != TarGz || a.Size != int64(len(want[TarGz])) ||
		a.SHA256 != fmt.Sprintf("%x", sha256.Sum256(want[TarGz])) {
		t.Errorf("got %+v", a)
	}
	var context bytes.Buffer
	if err := b.WriteContext(&context); err != nil {
		t.Fatal(err)
	}
	if h, err := tar.NewReader(&context).Next(); err != nil || h.Name != "config.json" {
		t.Errorf("the engine's context begins with %v, %v", h, err)
	}
}

func TestAnArchivesHeaderTellsNoTime(t *testing.T) {
	o := options(t)
	o.Formats = []Format{TarGz}
	f, err := os.Open(filepath.Join(built(t, o), "cvmfs-graphdriver-plugin-"+o.Build.Version+"-amd64.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if !z.ModTime.IsZero() {
		t.Errorf("it tells %v", z.ModTime)
	}
}

func TestBuildingTwiceGivesTheSameBytes(t *testing.T) {
	o := options(t)
	o.Formats = Formats()
	_, key := keys(t)
	o.Key = &key
	first := tree(t, built(t, o))
	defer unix.Umask(unix.Umask(0o077))
	for name, output := range map[string]string{
		"in its place": o.Output,
		"elsewhere":    filepath.Join(t.TempDir(), "dist"),
	} {
		t.Run(name, func(t *testing.T) {
			o.Output = output
			second := tree(t, built(t, o))
			for name, what := range second {
				// The times of the archives are those of their making.
				if !strings.HasPrefix(name, "dist/cvmfs-graphdriver-plugin-1.2.3/") {
					second[name] = what[strings.LastIndex(what, " "):]
					first[name] = first[name][strings.LastIndex(first[name], " "):]
				}
			}
			if diff := cmp.Diff(first, second); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestBundlesOfTwoArchitecturesStandSideBySide(t *testing.T) {
	o := options(t)
	o.Programs = []string{small["amd64"](t), small["arm64"](t)}
	o.Formats = []Format{Folder, TarGz}
	dir := built(t, o)
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	want := []string{
		SumsName, "cvmfs-graphdriver-plugin-1.2.3",
		"cvmfs-graphdriver-plugin-1.2.3-amd64.spdx.json", "cvmfs-graphdriver-plugin-1.2.3-amd64.tar.gz",
		"cvmfs-graphdriver-plugin-1.2.3-arm64.spdx.json", "cvmfs-graphdriver-plugin-1.2.3-arm64.tar.gz",
		"cvmfs-graphdriver-plugin-1.2.3-" + other,
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	for name, arch := range map[string]string{
		"cvmfs-graphdriver-plugin-1.2.3": runtime.GOARCH, "cvmfs-graphdriver-plugin-1.2.3-" + other: other,
		"cvmfs-graphdriver-plugin-1.2.3-arm64.tar.gz": "arm64",
	} {
		v, err := Verify(filepath.Join(dir, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		if v.Build.Arch != arch || v.Sums != filepath.Join(dir, SumsName) {
			t.Errorf("%s is for %s, compared with %q", name, v.Build.Arch, v.Sums)
		}
	}
}

func TestBuildRefusesWhatCannotBecomeAPlugin(t *testing.T) {
	script := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho a script is no program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(o *Options)
		says   string
	}{
		"a missing program": {
			func(o *Options) { o.Programs[0] += "-not" },
			"program is missing (build it",
		},
		"a script": {func(o *Options) { o.Programs[0] = script }, "isn't an ELF executable"},
		"a folder": {func(o *Options) { o.Programs[0] = t.TempDir() }, "not a regular file"},
		"another machine's program": {func(o *Options) {
			o.Programs[0] = writeProgram(t, elf.EM_MIPS, elf.PT_LOAD,
				0)
		}, "is for EM_MIPS"},
		"a foreign architecture": {
			func(o *Options) { o.Build.Arch = "riscv64" },
			"is for " + runtime.GOARCH + ", and a bundle for riscv64 is wanted",
		},
		"a dynamic program": {func(o *Options) {
			o.Programs[0] = writeProgram(t, elf.EM_AARCH64,
				elf.PT_INTERP, 0)
		}, "CGO_ENABLED=0"},
		"a program of another version": {
			func(o *Options) { o.Build.Version = "1.2.4" },
			"is version 1.2.3, commit \"c0ffee\", and the bundle would say version 1.2.4",
		},
		"a program without modules": {func(o *Options) {
			o.Programs[0] = writeProgram(t, elf.EM_X86_64,
				elf.PT_LOAD, 0)
		}, "doesn't tell its modules"},
		"two programs alike": {
			func(o *Options) { o.Programs = append(o.Programs, o.Programs[0]) },
			"two programs are for " + runtime.GOARCH,
		},
		"no program":             {func(o *Options) { o.Programs = nil }, "no program"},
		"a version with a slash": {func(o *Options) { o.Build.Version = "../1" }, `version "../1"`},
		"no version":             {func(o *Options) { o.Build.Version = "" }, `version ""`},
		"an output that can't be made": {
			func(o *Options) { o.Output = filepath.Join(script, "dist") },
			"not a directory",
		},
		"an output that is not a folder": {func(o *Options) { o.Output = script }, "not a directory"},
		"an output in use": {func(o *Options) {
			lock, err := os.Open(o.Output)
			if err := errors.Join(err, unix.Flock(int(lock.Fd()), unix.LOCK_EX)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { lock.Close() })
		}, "another build is at work there"},
		"sums that are none": {func(o *Options) {
			if err := os.WriteFile(filepath.Join(o.Output, SumsName), []byte("none\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "SHA256SUMS: line 1 isn't one of sha256sum's"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			if err := os.MkdirAll(o.Output, 0o755); err != nil {
				t.Fatal(err)
			}
			test.change(&o)
			_, err := Build(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v, want an error with %q", err, test.says)
			}
			if !strings.Contains(err.Error(), "build plugin bundles in "+o.Output) {
				t.Errorf("the error doesn't say what was done: %v", err)
			}
			if left, err := os.ReadDir(o.Output); err == nil && len(left) > 0 && left[0].Name() != SumsName {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestAFullDiskLeavesNoPartOfABundle(t *testing.T) {
	o := options(t)
	o.Output = testutil.SmallDisk(t, "1m")
	if _, err := Build(t.Context(), o); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if left := names(t, o.Output); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// endsAfter is a context that ends when it was asked so many times.
type endsAfter struct {
	context.Context
	n int
}

func (e *endsAfter) Err() error {
	if e.n--; e.n < 0 {
		return context.Canceled
	}
	return nil
}

func TestAnInterruptedBuildLeavesWhatWasThere(t *testing.T) {
	o := options(t)
	o.Formats = []Format{TarGz}
	output := built(t, o)
	former := tree(t, output)
	delete(former, "dist")
	o.Build.Time = time.Unix(1_700_000_000, 0)
	const most = 1 << 30
	whole := &endsAfter{context.Background(), most}
	o.Output = t.TempDir()
	if _, err := Build(whole, o); err != nil {
		t.Fatal(err)
	}
	looks := most - whole.n
	o.Output = output
	for _, n := range []int{0, 1, looks / 2, looks - 2, looks - 1} {
		if _, err := Build(&endsAfter{context.Background(), n}, o); !errors.Is(err, context.Canceled) {
			t.Fatalf("after %d of %d: %v", n, looks, err)
		}
		now := tree(t, output)
		delete(now, "dist") // its time: something was made in it, and removed
		if diff := cmp.Diff(former, now); diff != "" {
			t.Fatalf("after %d of %d: %s", n, looks, diff)
		}
	}
}

func TestWhatAKilledBuildLeftIsRemoved(t *testing.T) {
	o := options(t)
	if err := os.MkdirAll(filepath.Join(o.Output, workPrefix+"123", "part"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names(t, built(t, o)) {
		if strings.HasPrefix(name, ".") {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestSourceDate(t *testing.T) {
	for value, want := range map[string]int64{"": 0, "0": 0, "1600000000": 1_600_000_000} {
		t.Setenv("SOURCE_DATE_EPOCH", value)
		if got, err := SourceDate(); err != nil || got.Unix() != want {
			t.Errorf("%q: got %v, %v", value, got, err)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := SourceDate(); err == nil {
		t.Error("a date that is no number was taken")
	}
}
