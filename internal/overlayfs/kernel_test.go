package overlayfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

// kernels are this kernel, and older ones.
var kernels = map[string]Lack{
	"this kernel":               0,
	"before the mount API":      NoMountAPI | NoData | NoFileBackedEROFS,
	"any string is a parameter": NoParameters | NoData | NoFileBackedEROFS,
	"no layers one by one":      NoLayers | NoFileBackedEROFS,
	"a line for all layers":     NoMountAPI,
}

// forKernels runs a test on each kernel.
func forKernels(t *testing.T, f func(t *testing.T, k *Kernel)) {
	testutil.NeedRoot(t)
	for name, lack := range kernels {
		t.Run(name, func(t *testing.T) { f(t, &Kernel{Lack: lack, Scratch: t.TempDir()}) })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// overlay makes the folders of an overlay, with a file in each lower layer, and gives what is to be mounted, and where.
func overlay(t *testing.T, dir string, layers int) (string, *Spec) {
	t.Helper()
	target := filepath.Join(dir, "target")
	s := &Spec{Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	for i := range layers {
		lower := fmt.Sprintf("%s/%s-%04d", dir, strings.Repeat("l", 60), i)
		must(t, os.MkdirAll(lower, 0o755))
		must(t, os.WriteFile(fmt.Sprintf("%s/%d", lower, i), []byte("x"), 0o644))
		s.Lower = append(s.Lower, lower)
	}
	for _, d := range []string{target, s.Upper, s.Work} {
		must(t, os.MkdirAll(d, 0o755))
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) }) // it may not be mounted
	return target, s
}

func TestOverlaysAreMounted(t *testing.T) {
	long := strings.Repeat("long", 60) // a path with two of them is longer than a parameter may be
	for name, c := range map[string]struct {
		dir    string
		layers int
	}{
		"one layer":                     {"", 1},
		"three layers":                  {"", 3},
		"more than a page holds":        {"", 150},
		"names that mean something":     {`a:b,c\d::e"f`, 2},
		"a name that would be a number": {"0", 2},
		"long paths":                    {long + "/" + long, 2},
	} {
		t.Run(name, func(t *testing.T) {
			forKernels(t, func(t *testing.T, k *Kernel) {
				target, s := overlay(t, filepath.Join(t.TempDir(), c.dir), c.layers)
				must(t, k.Mount(target, s))
				entries, err := os.ReadDir(target)
				if err != nil || len(entries) != c.layers {
					t.Errorf("%d files of %d, %v", len(entries), c.layers, err)
				}
				must(t, os.WriteFile(filepath.Join(target, "new"), nil, 0o644))
				if _, err := os.Stat(filepath.Join(s.Upper, "new")); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What is to be used is found out where nothing tells that layers can't be given one by one but the mount itself.
func TestWayIsFoundByAMount(t *testing.T) {
	testutil.NeedRoot(t)
	real := &Kernel{Scratch: t.TempDir()}
	real.settle()
	for name, lack := range kernels {
		k := &Kernel{Lack: lack, Scratch: t.TempDir()}
		k.settle()
		if want := real.api && lack&(NoMountAPI|NoParameters|NoLayers) == 0; k.api != want {
			t.Errorf("%s: layers are given one by one: %t, want %t", name, k.api, want)
		}
	}
}

// Kernels without parameters of overlayfs' own take any, and refuse them when the file system is made.
func TestAnyStringIsTakenBeforeOverlayfsHasParameters(t *testing.T) {
	testutil.NeedRoot(t)
	k := &Kernel{Lack: NoParameters}
	c, err := k.open("overlay")
	if errors.Is(err, unix.ENOSYS) {
		testutil.KernelLacks(t, "the mount API")
	}
	must(t, err)
	defer c.close()
	for _, p := range []param{{"datadir+", "/"}, {"lowerdir+", "/proc/none"}, {"no-such-parameter", "1"}} {
		if err := c.set(p); err != nil {
			t.Errorf("%s=%s: %v", p.key, p.value, err)
		}
	}
	if err := c.create(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("create: %v, want %v", err, unix.EINVAL)
	}
}

func TestMountErrorsSayWhatTheKernelSays(t *testing.T) {
	forKernels(t, func(t *testing.T, k *Kernel) {
		dir := t.TempDir()
		target, whole := overlay(t, dir, 2)
		zeros := filepath.Join(dir, "zeros")
		must(t, os.WriteFile(zeros, make([]byte, 1<<16), 0o600))
		for name, c := range map[string]struct {
			mount func() error
			want  []string
		}{
			"missing layer": {func() error {
				return k.Mount(target, &Spec{Lower: []string{whole.Lower[0], dir + "/missing"}})
			}, []string{"mount overlay on " + target, dir + "/missing", "no such file"}},
			"missing layer with a colon": {func() error {
				return k.Mount(target, &Spec{Lower: []string{whole.Lower[0], "/missing:"}})
			}, []string{"/missing:", "no such file"}},
			"one layer without an upper folder": {func() error {
				return k.Mount(target, &Spec{Lower: whole.Lower[:1]})
			}, []string{"invalid argument"}},
			"no image": {func() error { return k.MountImage(zeros, target) }, []string{"mount erofs on " + target}},
		} {
			t.Run(name, func(t *testing.T) {
				err := c.mount()
				if err == nil {
					t.Fatal("mounted")
				}
				for _, want := range c.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%v: want %q", err, want)
					}
				}
				var failed *MountError
				if !errors.As(err, &failed) || strings.Contains(failed.Reason(), target) {
					t.Errorf("reason of %#v", err)
				}
			})
		}
	})
}

func TestALineTakesNoMoreLayersThanAPageHolds(t *testing.T) {
	testutil.NeedRoot(t)
	k := &Kernel{Lack: NoMountAPI, Scratch: t.TempDir()}
	target, s := overlay(t, t.TempDir(), 300)
	if err := k.Mount(target, s); err == nil || !strings.Contains(err.Error(),
		"300 layers are more than this kernel takes") {
		t.Error(err)
	}
}

// A folder renamed or a file's mode changed must leave whole content in the upper folder: it is a layer by itself.
func TestUpperFolderIsComplete(t *testing.T) {
	forKernels(t, func(t *testing.T, k *Kernel) {
		target, s := overlay(t, t.TempDir(), 1)
		must(t, os.Mkdir(filepath.Join(s.Lower[0], "d"), 0o755))
		must(t, k.Mount(target, s))
		must(t, os.Chmod(filepath.Join(target, "0"), 0o600))
		if b, err := os.ReadFile(filepath.Join(s.Upper, "0")); err != nil || string(b) != "x" {
			t.Errorf("upper file: %q, %v", b, err)
		}
		if err := os.Rename(filepath.Join(target, "d"), filepath.Join(target, "e")); err == nil {
			t.Error("a lower folder was renamed without copying")
		}
	})
}

func TestLacksHaveWords(t *testing.T) {
	if got := ParseLack(""); got != 0 {
		t.Errorf("nothing: %b", got)
	}
	if got, want := ParseLack("resend,mountapi,metacopy=off"), NoMountAPI|NoDataForUpper; got != want {
		t.Errorf("%b, want %b", got, want)
	}
	all := map[Lack]bool{}
	for _, l := range lacks {
		all[ParseLack("x,"+l.word)] = true
	}
	want := map[Lack]bool{
		NoMountAPI: true, NoParameters: true, NoLayers: true, NoData: true, NoDataForUpper: true,
		NoFileBackedEROFS: true, NoMapped: true,
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
}

// The kernel says "invalid argument" of much: data-only layers are blamed only where they are the reason.
func TestDataOnlyLayersAreBlamedOnlyWhereTheyAreTheReason(t *testing.T) {
	forKernels(t, func(t *testing.T, k *Kernel) {
		target, s := overlay(t, t.TempDir(), 1)
		data := t.TempDir()
		s.Data = []string{data}
		if err := k.Mount(target, s); err != nil {
			if !errors.Is(err, ErrData) {
				t.Errorf("a kernel without them says %v", err)
			}
			return
		}
		target, s = overlay(t, t.TempDir(), 1)
		s.Data, s.Work = []string{data}, filepath.Join(s.Upper, "work") // which no kernel takes
		must(t, os.Mkdir(s.Work, 0o700))
		if err := k.Mount(target, s); !errors.Is(err, unix.EINVAL) || errors.Is(err, ErrData) {
			t.Error(err)
		}
	})
}

func TestClassicOptionsAreThoseThatOthersKnow(t *testing.T) {
	s := &Spec{Lower: []string{"/a", "/b"}, Data: []string{"/c", "/d"}, Upper: "/u", Work: "/w"}
	options, err := s.ClassicOptions()
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Join(options, ",")
	if !strings.HasPrefix(line, "lowerdir=/a:/b::/c::/d,upperdir=/u,workdir=/w") || !strings.Contains(line, "index=off") {
		t.Error(line)
	}
	for _, name := range []string{"metacopy", "redirect_dir"} {
		if said := strings.Contains(line, name+"=off"); said != onByDefault(name) {
			t.Errorf("%s: on by default %t, said %t", name, onByDefault(name), said)
		}
	}
	for _, dir := range []string{"/a:b", "/a,b", `/a\b`} {
		if _, err := (&Spec{Lower: []string{dir}}).ClassicOptions(); err == nil {
			t.Errorf("%s is taken", dir)
		}
	}
}
