package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/link"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// root is the folder of the project.
const root = "../../.."

func TestMain(m *testing.M) {
	engine.Main()
	os.Exit(m.Run())
}

// starts are some results: a link of 1 MB a second and 100 ms, three samples of each mode.
func starts(t *testing.T) *results {
	t.Helper()
	base := facts{Layers: 1, Size: 90e6, Compressed: 30e6, Touched: 3e6, Needed: 1e6}
	r := &results{Images: map[string]facts{"base": base}}
	for n, seconds := range []float64{3, 1, 2} {
		at := time.Date(2026, 1, 2, 3, n, 0, 0, time.UTC)
		for _, m := range modes {
			k := key{Image: "base", Link: "100mbit-20ms", Engine: "20.10", Mode: m.name}
			s := sample{Time: at, Version: "1.0", Load: seconds, Pull: seconds, Run: 1, Warm: seconds / 2}
			s.Registry = traffic{Requests: 3, Bytes: 30e6}
			if m.form == thin {
				k.View = "auto"
				s.Registry = traffic{Requests: 3, Bytes: 5e3}
				s.Site = traffic{Requests: 40, Catalogs: 245e3, Bytes: 3e6}
			}
			r.add(k, s)
		}
	}
	return r
}

func TestFloorIsWarmRunAndWhatIsNeeded(t *testing.T) {
	r := starts(t)
	n := network{"100mbit-20ms", link.Speed{Rate: 1e6, Trip: 100 * time.Millisecond}}
	got, known := r.floor("base", n, "20.10")
	// A warm run of 1 s, 1 MB touched, 245 + 5 kB of catalogs and descriptor, ten round trips.
	if want := 1 + 1.25 + 1.0; !known || got != want {
		t.Errorf("%v, %t; want %v", got, known, want)
	}
	if got, known := r.floor("gcc", n, "20.10"); known {
		t.Errorf("%v of an image that wasn't measured", got)
	}
}

func TestFiguresAreMediansWithTheirSpread(t *testing.T) {
	for _, tt := range []struct {
		figure figure
		want   string
	}{
		{nil, ""},
		{figure{1.25}, "1.2"},
		{figure{3, 1, 2}, "2.0 (1.0–3.0)"},
	} {
		if got := tt.figure.text("%.1f"); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.figure, got, tt.want)
		}
	}
}

func TestResultsAreReadAsWritten(t *testing.T) {
	r, file := starts(t), filepath.Join(t.TempDir(), "results.json")
	if err := r.write(file); err != nil {
		t.Fatal(err)
	}
	got, err := readResults(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got, cmp.AllowUnexported(cell{})); diff != "" {
		t.Error(diff)
	}
	if r, err := openResults(file); err == nil {
		t.Errorf("figures of the machine %+v were taken for this one's", r.Machine)
	}
}

func TestNamesThatAreUnknownAreRefused(t *testing.T) {
	p, err := options{images: list{"base", quickImage}, links: list{"none"}}.plan()
	if err != nil || len(p.images) != 2 || len(p.networks) != 1 || len(p.doors) != len(doors) ||
		len(p.modes) != len(modes) {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = (options{}).plan(); err != nil || len(p.images) != len(table)-1 {
		t.Errorf("%d images, %v; want all but %s", len(p.images), err, quickImage)
	}
	_, err = options{images: list{"windows"}}.plan()
	if err == nil {
		t.Error("an image that there is not was taken")
	}
}

func TestProcessesAreReadFromProc(t *testing.T) {
	const stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1"
	if got := processorSeconds(stat); got != 2 {
		t.Errorf("%v s of processors, want 2", got)
	}
	if got := peakMemory("Name:\tx\nVmHWM:\t    1024 kB\nVmRSS:\t 512 kB\n"); got != 1<<20 {
		t.Errorf("%d bytes of memory, want %d", got, 1<<20)
	}
}

// The document and its pictures are what the results beside them say.
func TestTheDocumentIsThatOfTheResults(t *testing.T) {
	docs := filepath.Join(root, "docs")
	r, err := readResults(filepath.Join(docs, pictureDir, resultsName))
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.document()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(docs, documentName))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("write it again with -report docs: %s", diff)
	}
	for _, p := range r.pictures() {
		if _, err := os.Stat(filepath.Join(docs, pictureDir, p.file)); err != nil {
			t.Error(err)
		}
	}
}

func TestAReportIsWrittenOfAFewResults(t *testing.T) {
	dir := t.TempDir()
	if err := writeReport(starts(t), dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		documentName, filepath.Join(pictureDir, resultsName), filepath.Join(pictureDir, fetchedPicture),
		filepath.Join(pictureDir, "start-100mbit-20ms-docker-20.10.png"),
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Size() < 500 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// found are the ways to find engines without fetching them.
var found = map[string]func(context.Context, string) (*engine.Tools, error){
	"20.10": engine.Find, "29": engine.Stack29on21.Find,
}

// Bytes and requests vary little; times are of no interest here.
func TestAStartFetchesWhatItTouches(t *testing.T) {
	if err := engine.Supported(); err != nil {
		t.Skip(err)
	}
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := engine.FindProgram(cache, "busybox"); errors.Is(err, engine.ErrNotFetched) {
		t.Skip(err)
	}
	dist := t.TempDir()
	if out, err := exec.Command("make", "--silent", "--directory", root, "bundle", "DIST="+dist,
		"VERSION=0.test").CombinedOutput(); err != nil {
		t.Fatalf("make the programs: %v: %s", err, out)
	}
	for _, door := range doors {
		t.Run("docker "+door.name, func(t *testing.T) {
			if _, err := found[door.name](t.Context(), cache); errors.Is(err, engine.ErrNotFetched) {
				t.Skip(err)
			}
			o := options{
				stand: stand.Options{
					Quiet: true, Bundle: filepath.Join(dist, "cvmfs-graphdriver-plugin-0.test"),
					Testdata:    testutil.Data(t),
					Snapshotter: filepath.Join(dist, "bin/cvmfs-snapshotter"),
				},
				converter: filepath.Join(dist, "bin/docker2cvmfs"), results: filepath.Join(t.TempDir(), resultsName),
				engines: list{door.name}, view: "auto", isQuick: true,
			}
			if err := run(t.Context(), o.quick()); err != nil {
				t.Error(err)
			}
			r := &results{Images: map[string]facts{}}
			key := togetherKey{2, door.name, string(thin)}
			if err := o.measureTogether(t.Context(), r, []togetherKey{key}); err != nil {
				t.Fatal(err)
			}
			if m := find(r.Scale.Together, key).Measured; m.Took <= 0 || m.CPU <= 0 || m.Memory < 1<<20 {
				t.Errorf("%v: %+v", key, *m)
			}
			o.images = list{quickImage}
			one := hoardKey{1, door.name, string(thin)}
			if err := o.measureHoards(t.Context(), r, []hoardKey{one}); err != nil {
				t.Fatal(err)
			}
			if m := find(r.Scale.Hoards, one).Measured; m.Disk < 1<<20 || m.Fetched < 1<<20 {
				t.Errorf("%v: %+v", one, *m)
			}
		})
	}
}

func TestAStartThatFetchesMoreIsReported(t *testing.T) {
	for name, most := range limits {
		k := key{Image: quickImage, Link: "none", Engine: "29", Mode: name, View: "auto"}
		bytes, requests := int64(most.bytes), int(most.requests)
		for _, tt := range []struct {
			s  sample
			ok bool
		}{
			{sample{Site: traffic{Requests: requests, Bytes: bytes}}, true},
			{sample{Site: traffic{Requests: requests + 1, Bytes: bytes}}, false},
			{sample{Registry: traffic{Bytes: 1}, Site: traffic{Requests: 1, Bytes: bytes}}, false},
			{sample{}, false},
		} {
			r := &results{}
			r.add(k, tt.s)
			if err := r.checkQuick(); (err == nil) != tt.ok {
				t.Errorf("%s: %+v: %v", name, tt.s, err)
			}
		}
	}
}
