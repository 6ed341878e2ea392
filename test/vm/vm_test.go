package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entries reads an archive: name, mode in octal and content of each entry.
func entries(t *testing.T, archive []byte) (list []string) {
	t.Helper()
	for at := 0; at < len(archive); {
		field := func(n int) int {
			v, err := strconv.ParseUint(string(archive[at+6+8*n:at+14+8*n]), 16, 32)
			must(t, err)
			return int(v)
		}
		if magic := string(archive[at : at+6]); magic != "070701" || at%4 != 0 {
			t.Fatalf("at %d: %q", at, magic)
		}
		mode, size, length := field(1), field(6), field(11)
		name := string(archive[at+110 : at+110+length-1])
		start := (at + 110 + length + 3) &^ 3
		list = append(list, fmt.Sprintf("%s %o %s", name, mode, archive[start:start+size]))
		at = (start + size + 3) &^ 3
	}
	return list
}

func TestArchivesAreWhatTheKernelReads(t *testing.T) {
	var b bytes.Buffer
	must(t, WriteArchive(&b, []File{
		{Name: "init", Mode: 0o755, Content: []byte("run")},
		{Name: "a/b/c", Mode: 0o644, Content: []byte("12345")},
		{Name: "a/b/d", Mode: 0o600},
	}))
	want := []string{
		"init 100755 run", "a 40755 ", "a/b 40755 ", "a/b/c 100644 12345", "a/b/d 100600 ",
		"TRAILER!!! 0 ",
	}
	if d := cmp.Diff(want, entries(t, b.Bytes())); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestTheInitialFileSystemHasModulesInTheirOrder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "initial")
	modules := []File{{Name: "z.ko", Mode: 0o644, Content: []byte("z")}, {Name: "a.ko", Mode: 0o644}}
	must(t, WriteInitial(file, []byte("guest"), modules, &Job{Init: "/sbin/init"}))
	b, err := os.ReadFile(file)
	must(t, err)
	list := entries(t, b)
	if list[0] != "init 100755 guest" || !strings.Contains(list[1], `"Init":"/sbin/init"`) ||
		list[3] != "modules/000-z.ko 100644 z" || list[4] != "modules/001-a.ko 100644 " {
		t.Errorf("%q", list)
	}
}

// module makes an ELF file that has nothing but a section .modinfo.
func module(info string) []byte {
	const header, section = 64, 64
	names := "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // to memory
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	put([]uint16{1, 62})                                  // relocatable, x86-64
	put([]uint32{1})                                      // version
	put([]uint64{0, 0, header + uint64(len(names+info))}) // entry, program headers, section headers
	put([]uint32{0})                                      // flags
	put([]uint16{header, 0, 0, section, 3, 2})            // sizes and counts; the names' section
	b.WriteString(names + info)
	put(make([]byte, section))
	for _, s := range []struct{ name, kind, at, size int }{
		{1, 1, header + len(names), len(info)}, {10, 3, header, len(names)},
	} {
		put([]uint32{uint32(s.name), uint32(s.kind)})
		put([]uint64{0, 0, uint64(s.at), uint64(s.size)})
		put([]uint32{0, 0})
		put([]uint64{1, 0})
	}
	return b.Bytes()
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	dir := t.TempDir()
	for name, info := range map[string]string{
		"fs/overlayfs/overlay.ko":     "license=GPL\x00depends=\x00",
		"fs/erofs/erofs.ko.xz":        "depends=netfs,lz4-decompress\x00softdep=pre: crc32c post: later\x00",
		"fs/netfs/netfs.ko":           "depends=\x00",
		"lib/lz4_decompress.ko":       "depends=netfs\x00",
		"crypto/crc32c.ko":            "",
		"fs/later.ko":                 "",
		"fs/other.ko":                 "depends=none-of-these\x00",
		"drivers/block/virtio-blk.ko": "",
	} {
		name = filepath.Join(dir, "kernel", name)
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, module(info), 0o644))
	}
	var opened []string
	unxz := func(file string) ([]byte, error) {
		opened = append(opened, filepath.Base(file))
		return os.ReadFile(file)
	}
	list, err := modulesOf(dir, unxz, "virtio_blk", "built_in", "overlay", "erofs", "overlay")
	must(t, err)
	var got []string
	for _, m := range list {
		got = append(got, m.Name)
	}
	if d := cmp.Diff([]string{"virtio_blk.ko", "overlay.ko", "netfs.ko", "lz4_decompress.ko", "crc32c.ko", "erofs.ko"},
		got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if d := cmp.Diff([]string{"erofs.ko.xz"}, opened); d != "" {
		t.Errorf("decompressed: -want +got\n%s", d)
	}
	must(t, os.WriteFile(filepath.Join(dir, "kernel/fs/bad.ko.gz"), nil, 0o644))
	if _, err := modulesOf(dir, unxz, "bad"); err == nil {
		t.Error("a module in an unknown form was taken")
	}
}

func TestTheEmulatorsArguments(t *testing.T) {
	m := Machine{
		Arch: "amd64", Kernel: "/k", Initial: "/i", Append: "security=selinux", CPUs: 2, Memory: 512,
		Disks: []Disk{{Name: "root", File: "/r", Keep: true}, {Name: "tests", File: "/t"}},
	}
	got := strings.Join(m.arguments([]string{"/f"}, "/c"), " ")
	for _, want := range []string{
		"-kernel /k -initrd /i", "console=ttyS0 ", " panic=-1 ", " security=selinux -serial file:/c", "-smp 2 -m 512",
		"-no-reboot", "-L /f",
		"file=/r,format=raw,if=none,id=root,snapshot=off", "file=/t,format=raw,if=none,id=tests,snapshot=on",
		"drive=tests,serial=tests",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
}

// harness, in the environment, has this program run a machine by the emulator that it names.
const harness = "VM_TEST_EMULATOR"

func TestMain(m *testing.M) {
	program := os.Getenv(harness)
	if program == "" {
		os.Exit(m.Run())
	}
	err := (&Emulator{program: program}).Run(context.Background(), &Machine{Arch: "amd64", Limit: time.Minute},
		filepath.Dir(program), func(Event) {})
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// sleeper is a script that stands for an emulator: it writes its number to a file and sleeps.
func sleeper(pid string) string {
	return fmt.Sprintf("echo $$ >%[1]s.part; mv %[1]s.part %[1]s; exec sleep 60", pid)
}

// await waits until a file is there and gives its content.
func await(t *testing.T, file string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(file); err == nil {
			return strings.TrimSpace(string(b))
		}
		if time.Now().After(deadline) {
			t.Fatal(file, " doesn't come")
		}
	}
}

func TestTheEmulatorDiesWithItsHarness(t *testing.T) {
	dir := t.TempDir()
	program, pid := filepath.Join(dir, "qemu"), filepath.Join(dir, "pid")
	must(t, os.WriteFile(program, []byte("#!/bin/sh\n"+sleeper(pid)), 0o755))
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), harness+"="+program)
	must(t, cmd.Start())
	emulator := await(t, pid)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		// Whoever takes orphans may be slow to take note of its end.
		b, err := os.ReadFile("/proc/" + emulator + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the emulator lives on: %s", b)
		}
	}
}

// emulate runs a machine by a shell script that stands for the emulator: $console is the file of the console.
func emulate(t *testing.T, ctx context.Context, m Machine, script string) ([]Event, error) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "emulator")
	must(t, os.WriteFile(program,
		[]byte("#!/bin/sh\nfor a; do case $a in file:*) console=${a#file:};; esac; done\n"+script), 0o755))
	m.Arch = "amd64"
	if m.Limit == 0 {
		m.Limit = time.Minute
	}
	var seen []Event
	err := (&Emulator{program: program}).Run(ctx, &m, t.TempDir(), func(e Event) { seen = append(seen, e) })
	return seen, err
}

func TestAMachinesEventsComeOneByOne(t *testing.T) {
	seen, err := emulate(t, t.Context(), Machine{}, `echo 'not an event'; echo '{"Up":"6.1"}'; printf '%s\n' '{"Program":"p","Output":"a\nb"}'
echo '{"Program":"p","Ended":{"Code":1,"How":"exit status 1","Seconds":2.5}}'; echo '{"Done":true}'`)
	want := []Event{
		{Up: "6.1"},
		{Program: "p", Output: "a\nb"},
		{Program: "p", Ended: &Ended{Code: 1, How: "exit status 1", Seconds: 2.5}},
		{Done: true},
	}
	if d := cmp.Diff(want, seen); d != "" || err != nil {
		t.Errorf("%v; -want +got\n%s", err, d)
	}
}

func TestAMachineThatEndsBadlyIsAnErrorThatSaysWhy(t *testing.T) {
	for name, test := range map[string]struct {
		machine Machine
		script  string
		want    []string
	}{
		"panics": {
			Machine{},
			`echo 'Kernel panic - not syncing' >"$console"; echo '{"Up":"6.1"}'`,
			[]string{"in the middle of its job", "Kernel panic"},
		},
		"can't begin": {Machine{}, `echo '{"Failed":"find the disk"}'`, []string{"find the disk"}},
		"no emulator": {Machine{}, `echo "no such option" >&2; exit 1`, []string{"exit status 1", "no such option"}},
		"is silent": {
			Machine{Silence: 300 * time.Millisecond},
			`echo 'the last words' >"$console"; exec sleep 60`,
			[]string{"no sign of life for 300ms", "the last words"},
		},
		"is too slow": {
			Machine{Limit: 300 * time.Millisecond},
			`while echo '{"Alive":1}'; do sleep 0.01; done`,
			[]string{"longer than it may (300ms)"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			_, err := emulate(t, t.Context(), test.machine, test.script)
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, want %q", err, want)
				}
			}
			if time.Since(began) > 30*time.Second {
				t.Errorf("it took %v", time.Since(began))
			}
		})
	}
}

func TestAnInterruptedRunLeavesNoEmulator(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	pid := filepath.Join(t.TempDir(), "pid")
	go func() {
		await(t, pid)
		cancel()
	}()
	_, err := emulate(t, ctx, Machine{}, sleeper(pid))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was cancelled", err)
	}
	if _, err := os.Stat("/proc/" + await(t, pid)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the emulator is left: %v", err)
	}
}
