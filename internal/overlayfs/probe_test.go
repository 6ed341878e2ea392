package overlayfs

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

func TestProbeFindsTheWay(t *testing.T) {
	testutil.NeedRoot(t)
	probe := func(lack Lack) Support {
		s, err := (&Kernel{Lack: lack, Scratch: t.TempDir()}).Probe(t.TempDir())
		must(t, err)
		if !s.Overlay.Works() {
			t.Errorf("without %b: no overlays: %s", lack, s.Overlay.Err)
		}
		return s
	}
	this, _ := probe(0).Way()
	two := ByTwo
	if this == None {
		two = None
	}
	for name, c := range map[string]struct {
		lack Lack
		want Way
	}{
		"a line for all layers":             {NoMountAPI, this},
		"any string is a parameter":         {NoParameters, this},
		"no layers one by one":              {NoLayers, this},
		"data-only layers under an overlay": {NoDataForUpper, two},
		"no data-only layers":               {NoData, None},
		"no images from files":              {NoFileBackedEROFS, None},
		"Linux 5.2 to 6.4": {
			NoParameters | NoLayers | NoData | NoDataForUpper | NoFileBackedEROFS,
			None,
		},
		"Linux 4.18":                         {NoMountAPI | NoData | NoDataForUpper | NoFileBackedEROFS, None},
		"two overlays by a line, as on 6.12": {NoMountAPI | NoDataForUpper, two},
	} {
		way, why := probe(c.lack).Way()
		if way != c.want || (why == "") != (way == ByOne) {
			t.Errorf("%s: by %q because of %q, want %q", name, way, why, c.want)
		}
	}
}

func TestProbeFindsWhatThisKernelIsKnownFor(t *testing.T) {
	testutil.NeedRoot(t)
	want := map[string]Way{"erofs": ByOne, "erofs by two overlays": ByTwo, "fuse": None}[testutil.KnownView()]
	s, err := (&Kernel{Scratch: t.TempDir()}).Probe(t.TempDir())
	must(t, err)
	if way, why := s.Way(); way != want {
		t.Errorf("by %q because of %q, want %q: %+v", way, why, want, s)
	}
}

// The reason for a way is shown to people, and compared: it is the same every time.
func TestProbeSaysTheSameTwice(t *testing.T) {
	forKernels(t, func(t *testing.T, k *Kernel) {
		a, err := k.Probe(t.TempDir())
		must(t, err)
		b, err := (&Kernel{Lack: k.Lack, Scratch: t.TempDir()}).Probe(t.TempDir())
		must(t, err)
		if a != b {
			t.Errorf("%+v, then %+v", a, b)
		}
	})
}

func TestProbeLeavesNothing(t *testing.T) {
	testutil.NeedRoot(t)
	scratch, dir := t.TempDir(), t.TempDir()
	_, err := (&Kernel{Scratch: scratch}).Probe(dir)
	must(t, err)
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	if strings.Contains(string(mounts), scratch) {
		t.Error("something is mounted")
	}
	for _, d := range []string{scratch, dir} {
		if entries, err := os.ReadDir(d); err != nil || len(entries) > 0 {
			t.Errorf("left in %s: %v, %v", d, entries, err)
		}
	}
}

// Administrators read the kernel's log: what fails leaves one line in it, and what works none but that of EROFS, which
// tells of every mount. Others log meanwhile, so the quietest of some probes counts.
func TestProbeIsQuiet(t *testing.T) {
	testutil.NeedRoot(t)
	log, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(log)
	least, allowed := 1<<30, 0
	for range 5 {
		_, err := unix.Seek(log, 0, unix.SEEK_END)
		must(t, err)
		s, err := (&Kernel{Scratch: t.TempDir()}).Probe(t.TempDir())
		must(t, err)
		allowed = 0
		for _, try := range []Try{s.Overlay, s.EROFS, s.Direct, s.Stacked} {
			if try.Tried && !try.Works() {
				allowed++
			}
		}
		if s.EROFS.Works() {
			allowed++
		}
		least = min(least, linesAboutMounts(t, log))
	}
	if least > allowed {
		t.Errorf("%d lines, at most %d are needed", least, allowed)
	}
}

// linesAboutMounts counts what overlayfs and EROFS have logged since.
func linesAboutMounts(t *testing.T, log int) (n int) {
	t.Helper()
	buf := make([]byte, 8192)
	for {
		size, err := unix.Read(log, buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return n
		case errors.Is(err, unix.EPIPE): // some were overwritten
			continue
		}
		must(t, err)
		_, text, _ := strings.Cut(string(buf[:size]), ";")
		if strings.HasPrefix(text, "overlayfs") || strings.HasPrefix(text, "erofs") ||
			strings.Contains(text, "Can't open blockdev") {
			t.Log(text)
			n++
		}
	}
}
