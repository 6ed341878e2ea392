package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/rootfs"
)

// program writes an executable's headers with one segment of the given type and pad bytes after them.
func program(t *testing.T, machine elf.Machine, segment elf.ProgType, pad int) string {
	t.Helper()
	var b bytes.Buffer
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
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

func options(t *testing.T) Options {
	return Options{
		Program: program(t, elf.EM_X86_64, elf.PT_LOAD, 0),
		Version: "1.2.3",
		Output:  filepath.Join(t.TempDir(), "dist"),
		Time:    time.Unix(1_600_000_000, 0),
	}
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
		seen[relative] = info.Mode().String() + " " + info.ModTime().UTC().String() + " " + string(content)
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
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return seen
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" {
			t.Errorf("%s belongs to %d:%d (%q:%q)", h.Name, h.Uid, h.Gid, h.Uname, h.Gname)
		}
		seen[filepath.Clean(h.Name)] = h.FileInfo().Mode().String() + " " + h.ModTime.UTC().String() + " " + string(content)
	}
}

func TestBundleHoldsTheProgramTheFoldersAndTheConfig(t *testing.T) {
	o := options(t)
	b, err := Write(o)
	if err != nil {
		t.Fatal(err)
	}
	want := &Bundle{
		Folder:  filepath.Join(o.Output, "cvmfs-graphdriver-plugin-1.2.3"),
		Archive: filepath.Join(o.Output, "cvmfs-graphdriver-plugin-1.2.3-amd64.tar.gz"),
		Arch:    "amd64",
	}
	if diff := cmp.Diff(want, b); diff != "" {
		t.Error(diff)
	}
	folder := tree(t, b.Folder)
	if diff := cmp.Diff(folder, untar(t, b.Archive)); diff != "" {
		t.Errorf("folder and archive differ: %s", diff)
	}
	for _, name := range []string{"rootfs/bin/cvmfs-graphdriver-plugin", "rootfs/run", "rootfs" + rootfs.PropagatedMount, "rootfs/etc/cvmfs", "rootfs/minio_ext_config", "rootfs/tmp"} {
		if _, ok := folder["cvmfs-graphdriver-plugin-1.2.3/"+name]; !ok {
			t.Errorf("no %s", name)
		}
	}
	if rest, err := os.ReadDir(o.Output); err != nil || len(rest) != 2 {
		t.Errorf("the output folder holds more than folder and archive: %v %v", rest, err)
	}
}

func TestConfigHasOneSettableFieldForEachSetting(t *testing.T) {
	b, err := Write(options(t))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(b.Folder, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	type setting struct {
		Name, Source, Destination, Value string
		Options, Settable                []string
	}
	var got struct {
		Mounts, Env     []setting
		PropagatedMount string
		Interface       struct{ Socket string }
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	wantMounts := []setting{
		{Name: "cvmfs_ext_config", Source: "/etc/cvmfs", Destination: "/etc/cvmfs", Options: []string{"rbind", "ro"}, Settable: []string{"source"}},
		{Name: "minio_ext_config", Source: "/etc/cvmfs", Destination: "/minio_ext_config", Options: []string{"rbind", "ro"}, Settable: []string{"source"}},
	}
	if diff := cmp.Diff(wantMounts, got.Mounts); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]setting{{Name: "DEBUG", Value: "0", Settable: []string{"value"}}}, got.Env); diff != "" {
		t.Error(diff)
	}
	if got.PropagatedMount != rootfs.PropagatedMount || got.Interface.Socket != "plugin.sock" {
		t.Errorf("got %+v", got)
	}
}

func TestBuildingTwiceGivesTheSameBytes(t *testing.T) {
	o := options(t)
	first, err := Write(o)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(first.Archive)
	if err != nil {
		t.Fatal(err)
	}
	folder := tree(t, first.Folder)
	again := o
	defer unix.Umask(unix.Umask(0o077))
	for name, output := range map[string]string{"in its place": o.Output, "elsewhere": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			again.Output = output
			second, err := Write(again)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(second.Archive)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(archive, b) {
				t.Error("the archives differ")
			}
			if diff := cmp.Diff(folder, tree(t, second.Folder)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWriteRefusesWhatCannotBecomeAPlugin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("#!/bin/sh\necho a script is no program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(o *Options)
		says   string
	}{
		"a missing program":              {func(o *Options) { o.Program += "-not" }, "program is missing (build it"},
		"a script":                       {func(o *Options) { o.Program = file }, "bad magic number"},
		"another machine's program":      {func(o *Options) { o.Program = program(t, elf.EM_MIPS, elf.PT_LOAD, 0) }, "is for EM_MIPS"},
		"a dynamic program":              {func(o *Options) { o.Program = program(t, elf.EM_AARCH64, elf.PT_INTERP, 0) }, "CGO_ENABLED=0"},
		"a version with a slash":         {func(o *Options) { o.Version = "../1" }, `version "../1"`},
		"no version":                     {func(o *Options) { o.Version = "" }, `version ""`},
		"an output that can't be made":   {func(o *Options) { o.Output = filepath.Join(file, "dist") }, "not a directory"},
		"an output that is not a folder": {func(o *Options) { o.Output = file }, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			test.change(&o)
			_, err := Write(o)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v, want an error with %q", err, test.says)
			}
			if !strings.Contains(err.Error(), "make a plugin bundle in "+o.Output) {
				t.Errorf("the error doesn't say what was done: %v", err)
			}
			if left, err := os.ReadDir(o.Output); err == nil && len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestAFullDiskLeavesNoPartOfABundle(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small tmpfs")
	}
	o := options(t)
	o.Output = t.TempDir()
	o.Program = program(t, elf.EM_X86_64, elf.PT_LOAD, 1<<20)
	if err := unix.Mount("tmpfs", o.Output, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("needs tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(o.Output, 0); err != nil {
			t.Error(err)
		}
	})
	if _, err := Write(o); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if left, err := os.ReadDir(o.Output); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
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
