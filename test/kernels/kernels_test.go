package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/gotest"
	"cvmfs-graphdriver/test/vm"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheNewestKernelOfASeriesIsChosen(t *testing.T) {
	names := strings.Fields(`linux-image-cloud-amd64 linux-image-6.1-cloud-amd64 linux-image-6.1.0-9-cloud-amd64 linux-image-6.1.0-56-cloud-amd64
		linux-image-6.1.0-56-cloud-amd64-dbg linux-image-6.1.0-56-cloud-amd64-unsigned linux-image-6.1.0-56-amd64 linux-image-6.12.117+deb13-cloud-amd64
		linux-image-6.16.3+deb13-cloud-amd64 linux-image-6.16.12+deb13-cloud-amd64 linux-image-6.16~rc4-cloud-amd64 linux-image-7.3.4+deb13-cloud-amd64 linux-binary-7.3.4+deb13-cloud-amd64
		linux-modules-7.3.4+deb13-cloud-amd64 linux-base-7.3.4+deb13-cloud-amd64 linux-image-7.3.4+deb13-rt-amd64 linux-binary-7.10.1+deb13-cloud-amd64 linux-headers-7.10.1+deb13-cloud-amd64`)
	for series, want := range map[string]string{
		"6.1.":  "linux-image-6.1.0-56-cloud-amd64",
		"6.12.": "linux-image-6.12.117+deb13-cloud-amd64",
		"6.16.": "linux-image-6.16.12+deb13-cloud-amd64",
		"":      "linux-image-7.3.4+deb13-cloud-amd64 linux-binary-7.3.4+deb13-cloud-amd64 linux-modules-7.3.4+deb13-cloud-amd64",
	} {
		k := kernel{series: series}
		if got, err := k.choose(names); err != nil || strings.Join(got, " ") != want {
			t.Errorf("series %q: %q, %v; want %s", series, got, err, want)
		}
	}
	k := kernel{series: "5.10.", suites: []string{"bullseye"}}
	if got, err := k.choose(names); err == nil || !strings.Contains(err.Error(),
		"5.10.* for virtual machines in bullseye") {
		t.Errorf("%q, %v; want an error that says what isn't there", got, err)
	}
}

func TestNumbersInVersionsCountAsNumbers(t *testing.T) {
	ordered := strings.Fields("5.10.0-9 5.10.0-46 6.1.0-0.deb11.50 6.1.0-9 6.16 6.16.3+deb13 6.16.12+deb13 6.16.12+deb14 7.3.4")
	for i, a := range ordered {
		for j, b := range ordered {
			if older(a, b) != (i < j) {
				t.Errorf("%s older than %s: %v", a, b, older(a, b))
			}
		}
	}
}

func TestKernelsAreNamedOrAll(t *testing.T) {
	if all, err := named(""); err != nil || len(all) != len(kernels) {
		t.Errorf("%d kernels, %v", len(all), err)
	}
	if some, err := named("6.12,5.10"); err != nil || len(some) != 2 || some[0].name != "6.12" ||
		some[1].name != "5.10" {
		t.Errorf("%+v, %v", some, err)
	}
	if _, err := named("6.12,4.18"); err == nil || !strings.Contains(err.Error(), `"4.18"`) ||
		!strings.Contains(err.Error(), "6.16") {
		t.Errorf("%v, want what there is", err)
	}
}

func TestAnUnpackedKernelIsFoundWhereverItsPartsLie(t *testing.T) {
	for name, files := range map[string][]string{
		"up to trixie": {"boot/vmlinuz-6.1.0-56-cloud-amd64", "lib/modules/6.1.0-56-cloud-amd64/kernel/fs/x.ko"},
		"merged":       {"boot/vmlinuz-6.1.0-56-cloud-amd64", "usr/lib/modules/6.1.0-56-cloud-amd64/kernel/fs/x.ko"},
		"later": {
			"usr/lib/modules/6.1.0-56-cloud-amd64/vmlinuz",
			"usr/lib/modules/6.1.0-56-cloud-amd64/kernel/fs/x.ko",
		},
	} {
		dir := t.TempDir()
		for _, file := range files {
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755))
			must(t, os.WriteFile(filepath.Join(dir, file), nil, 0o644))
		}
		i, err := unpackedIn(dir)
		if err != nil || i.release != "6.1.0-56-cloud-amd64" || i.kernel != filepath.Join(dir, files[0]) ||
			i.modules != filepath.Join(dir, files[1], "../../..") {
			t.Errorf("%s: %+v, %v", name, i, err)
		}
		must(t, os.Remove(filepath.Join(dir, files[0])))
		if _, err := unpackedIn(dir); err == nil {
			t.Errorf("%s: modules without a kernel were taken for one", name)
		}
	}
}

func TestOnlyWhatAKernelIsKnownToLackMayBeSkipped(t *testing.T) {
	said := func(reason string) string { return "    x_test.go:1: " + reason + "\n--- SKIP: T (0.00s)\n" }
	for _, test := range []struct{ output, fault string }{
		{said("this kernel (6.1.0-56) lacks data-only layers"), ""},
		{said("this kernel (6.1.0-56) lacks SELinux"), "for want of SELinux"},
		{said("needs root: mounts"), "doesn't name anything"},
		{"", "doesn't name anything"},
	} {
		faults := wrongSkips([]gotest.Skip{{Test: "T", Output: test.output}}, []string{"data-only layers"})
		if got := strings.Join(faults, "\n"); (test.fault == "") != (got == "") || !strings.Contains(got, test.fault) {
			t.Errorf("%q: %q, want %q", test.output, got, test.fault)
		}
	}
}

// play returns a reader the events of a machine and returns the rows, and what was shown.
func play(t *testing.T, end error, events ...vm.Event) ([]row, string) {
	t.Helper()
	var out bytes.Buffer
	r := &reader{
		kernel: "6.1", lacks: []string{"data-only layers"}, dir: t.TempDir(), out: &out,
		programs: []program{{folder: "driver/good"}, {folder: "driver/bad"}},
	}
	for _, e := range events {
		must(t, r.read(t.Context(), e))
	}
	must(t, r.torn(end))
	for i := range r.rows {
		r.rows[i].Seconds = 0
	}
	return r.rows, out.String()
}

// event is one of a program's.
func event(program, output string) vm.Event { return vm.Event{Program: program, Output: output} }

func TestAMachinesEventsBecomeRows(t *testing.T) {
	rows, out := play(t, nil,
		vm.Event{Up: "6.1.0-56-cloud-amd64"},
		event("driver/good", "\x16=== RUN   TestA\nnoise\n"), vm.Event{Alive: 5},
		event("driver/good", "\x16--- PASS: TestA (0.01s)\n\x16=== RUN   TestB\n    b_test.go:1: this kernel (6.1) lacks data-only layers\n"),
		event("driver/good", "\x16--- SKIP: TestB (0.00s)\n\x16=== NAME  \nPASS\n"),
		vm.Event{Program: "driver/good", Ended: &vm.Ended{Seconds: 1.5}},
		event("driver/bad", "\x16=== RUN   TestC\n    c_test.go:1: why\n\x16--- FAIL: TestC (0.00s)\n\x16=== NAME  \nFAIL\n"),
		vm.Event{Program: "driver/bad", Ended: &vm.Ended{Code: 1, How: "exit status 1", Seconds: 2}},
		vm.Event{Done: true},
	)
	want := []row{
		{Kernel: "6.1", Program: "driver/good", Passed: 1, Skipped: 1},
		{Kernel: "6.1", Program: "driver/bad", Failed: 1},
	}
	if d := cmp.Diff(want, rows); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	for _, line := range []string{
		"ok  \tcvmfs-graphdriver/driver/good\t1.500s\t[kernel 6.1]\n", "c_test.go:1: why\n",
		"--- FAIL: TestC", "FAIL\tcvmfs-graphdriver/driver/bad\t2.000s",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("%q isn't shown:\n%s", line, out)
		}
	}
	if strings.Contains(out, "noise") {
		t.Errorf("what good tests say is shown:\n%s", out)
	}
}

func TestProgramsThatEndBadlyCountAsFailed(t *testing.T) {
	for name, test := range map[string]struct {
		end    error
		events []vm.Event
		fault  string // of the first program
	}{
		"killed at its limit": {nil, []vm.Event{
			event("driver/good", "\x16=== RUN   TestA\npanic: test timed out\n"),
			{Program: "driver/good", Ended: &vm.Ended{Code: -1, How: "it took longer than 5m0s"}},
		}, "panic: test timed out\n--- FAIL: TestA (unfinished)"},
		"killed before a test": {nil, []vm.Event{
			{Program: "driver/good", Ended: &vm.Ended{Code: -1, How: "it took longer than 5m0s"}},
		}, "it ended by it took longer"},
		"no test fits": {nil, []vm.Event{
			event("driver/good", "testing: warning: no tests to run\nPASS\n"),
			{Program: "driver/good", Ended: &vm.Ended{}},
		}, "no test was run"},
		"the machine dies": {
			errors.New("it died"),
			[]vm.Event{event("driver/good", "\x16=== RUN   TestA\n")},
			"the machine ended",
		},
	} {
		t.Run(name, func(t *testing.T) {
			rows, out := play(t, test.end, test.events...)
			if len(rows) == 0 || rows[0].ok() || !strings.Contains(out, test.fault) {
				t.Errorf("rows %+v, want %q; shown:\n%s", rows, test.fault, out)
			}
			if test.end != nil && (len(rows) != 2 || rows[1].ok()) {
				t.Errorf("rows %+v, want failed ones of all programs", rows)
			}
		})
	}
}

func TestWhatPassedIsKeptUntilSomethingChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results", "6.1-full.json")
	if o, err := load(file, "a"); o != nil || err != nil {
		t.Errorf("nothing was run: %+v, %v", o, err)
	}
	passed := &outcome{Inputs: "a", Rows: []row{{Kernel: "6.1", Program: "p", Passed: 3, Seconds: 1}}}
	must(t, passed.save(file))
	o, err := load(file, "a")
	must(t, err)
	if d := cmp.Diff(passed, o); d != "" || !o.ok() {
		t.Errorf("-saved +loaded\n%s", d)
	}
	if o, err := load(file, "b"); o != nil || err != nil {
		t.Errorf("of other inputs: %+v, %v", o, err)
	}
	must(t, os.WriteFile(file, []byte(`{"Inputs":"a","Ro`), 0o644))
	if o, err := load(file, "a"); o != nil || err != nil {
		t.Errorf("of a torn file: %+v, %v", o, err)
	}
	for _, bad := range []outcome{{}, {Rows: []row{{Failed: 1}}}, {Rows: []row{{Passed: 1}, {Faults: []string{"x"}}}}} {
		if bad.ok() {
			t.Errorf("%+v counts as passed", bad)
		}
	}
}

func TestInputsThatDifferHaveOtherHashes(t *testing.T) {
	hash := func(name, text string, mode os.FileMode) string {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "d"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "d", name), []byte(text), mode))
		var b bytes.Buffer
		size, err := hashTree(&b, dir)
		if err != nil || size != int64(len(text)) {
			t.Errorf("%d bytes, %v", size, err)
		}
		return b.String()
	}
	first := hash("a", "text", 0o755)
	if again := hash("a", "text", 0o755); again != first {
		t.Errorf("equal folders: %q, %q", first, again)
	}
	for _, other := range []string{
		hash("b", "text", 0o755), hash("a", "texT", 0o755), hash("a", "text", 0o644),
		hash("a", "text ", 0o755),
	} {
		if other == first {
			t.Errorf("other folders have the same: %q", first)
		}
	}
}

func TestOnlyTestdataGoesIntoMachines(t *testing.T) {
	module, tree := t.TempDir(), t.TempDir()
	for _, file := range []string{
		"p/p.go", "p/testdata/sub/.hidden", "testdata/x", ".git/testdata/x",
		"dist/testdata/x",
	} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(module, file)), 0o755))
		must(t, os.WriteFile(filepath.Join(module, file), nil, 0o644))
	}
	must(t, copyTestdata(module, tree))
	for file, want := range map[string]bool{
		"p/p.go": false, "p/testdata/sub/.hidden": true, "testdata/x": true,
		".git": false, "dist": false,
	} {
		if _, err := os.Stat(filepath.Join(tree, file)); (err == nil) != want {
			t.Errorf("%s is copied: %v", file, err == nil)
		}
	}
}

func TestMachinesDifferByNameCommandLineAndLife(t *testing.T) {
	list := boots([]program{
		{folder: "a"},
		{folder: "b"},
		{folder: "c", with: "security=selinux"},
		{folder: "d", with: "security=selinux"},
		{folder: "e"},
		{folder: "f", apart: "alone"},
		{folder: "g", host: "first"},
		{folder: "g", host: "second"},
	})
	var got []int
	for _, programs := range list {
		got = append(got, len(programs))
	}
	if d := cmp.Diff([]int{2, 2, 1, 1, 1, 1}, got); d != "" {
		t.Error(d)
	}
}

// A host's disk is kept from one of its lives to the next; all other machines run in any order.
func TestLivesOfAHostFollowOneAnother(t *testing.T) {
	var got [][]string
	for _, life := range lives(boots([]program{
		{folder: "a"},
		{folder: "g", host: "first"},
		{folder: "b", apart: "alone"},
		{folder: "g", host: "second"},
	})) {
		var folders []string
		for _, programs := range life {
			folders = append(folders, programs[0].folder+programs[0].host)
		}
		got = append(got, folders)
	}
	if d := cmp.Diff([][]string{{"a"}, {"b"}, {"gfirst", "gsecond"}}, got); d != "" {
		t.Error(d)
	}
}

func TestTwoRunsDoNotShareAFolder(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "work/left"), 0o755))
	work, done, err := workFolder(dir)
	must(t, err)
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		t.Errorf("of a run that was killed: %v, %v", left, err)
	}
	if _, _, err := workFolder(dir); err == nil || !strings.Contains(err.Error(), "another run") {
		t.Errorf("%v, want that another run is there", err)
	}
	must(t, done())
	if _, err := os.Stat(work); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}
