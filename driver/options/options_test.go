package options_test

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/driver/options"
)

func TestOptionsAreRead(t *testing.T) {
	for _, c := range []struct {
		opts []string
		want options.Options
	}{
		{nil, options.Options{}},
		{
			[]string{"cvmfs.repositories=a.example.org, b.example.org"},
			options.Options{Repositories: []string{"a.example.org", "b.example.org"}},
		},
		{[]string{"CVMFS.View = fuse "}, options.Options{View: options.FUSE}},
		{[]string{"cvmfs.view=erofs"}, options.Options{View: options.EROFS}},
		{[]string{"cvmfs.view=fuse", "cvmfs.view=auto"}, options.Options{}},
		{[]string{"cvmfs.cache-limit=300G"}, options.Options{CacheLimit: 300 << 30}},
		{[]string{"Cvmfs.Cache-Limit= 1.5 TiB", "cvmfs.cache-floor=64m"}, options.Options{CacheLimit: 3 << 39, CacheFloor: 64 << 20}},
		{[]string{"cvmfs.isolate=yes"}, options.Options{Isolate: true}},
		{[]string{"cvmfs.isolate=yes", "cvmfs.isolate=no"}, options.Options{}},
		{[]string{"overlay2.override_kernel_check=1"}, options.Options{Override: true}},
		{[]string{"overlay2.override_kernel_check=false"}, options.Options{}},
	} {
		got, err := options.Parse(c.opts)
		if d := cmp.Diff(c.want, got); d != "" || err != nil {
			t.Errorf("%q: %v, -want +got\n%s", c.opts, err, d)
		}
	}
}

func TestOptionsThatTheDriverDoesNotTakeAreRefusedByName(t *testing.T) {
	for option, want := range map[string]string{
		"cvmfs.repositoris=x": `"cvmfs.repositoris": this driver takes cvmfs.cache-floor, cvmfs.cache-limit, ` +
			`cvmfs.isolate, cvmfs.metrics, cvmfs.repositories, cvmfs.view, overlay2`,
		"size=10G":                             `unknown storage option "size"`,
		"":                                     `unknown storage option ""`,
		"cvmfs.repositories=":                  "storage option cvmfs.repositories=: ",
		"cvmfs.repositories=a.example.org,b/c": "storage option cvmfs.repositories=a.example.org,b/c: ",
		"cvmfs.view":                           "storage option cvmfs.view=: there is auto, erofs and fuse",
		"Cvmfs.View=EROFS":                     "storage option cvmfs.view=EROFS: there is auto, erofs and fuse",
		"cvmfs.cache-limit=4000":               `4000 bytes are too few: want 64MiB at least, with its unit, as in "4000M"`,
		"cvmfs.cache-limit=0":                  "0 bytes are too few",
		"cvmfs.cache-limit=":                   "want a number of bytes",
		"cvmfs.cache-limit=-1":                 "want a number of bytes",
		"cvmfs.cache-limit=50%":                "want a number of bytes",
		"cvmfs.cache-limit=9999999P":           "too large",
		"cvmfs.cache-floor=63M":                "too few",
		"cvmfs.isolate=":                       "want yes or no",
		"cvmfs.isolate=maybe":                  "want yes or no",
		"overlay2.override_kernel_check=yes":   "override_kernel_check=yes: want true or false",
	} {
		if err := options.Check(option); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", option, err, want)
		}
	}
}

func TestSizesAreReadAsTheEngineReadsThem(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "4096": 4096, "1k": 1 << 10, "10G": 10 << 30, "1.5g": 3 << 29, "512MiB": 512 << 20, "2 tb": 2 << 40,
		"1P": 1 << 50, "7b": 7,
	} {
		if got, err := options.ContainerSize(map[string]string{"Size": text}); got != want || err != nil {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "G", "-1", "0x10", "1x", "1 G B", "9999999P", "8192P", strings.Repeat("9", 400), "Inf", "1\n",
	} {
		got, err := options.ContainerSize(map[string]string{"size": text})
		if err == nil || len(err.Error()) > 200 {
			t.Errorf("%.20q was taken for %d: %v", text, got, err)
		}
	}
	if _, err := options.ContainerSize(map[string]string{"inodes": "7"}); err == nil {
		t.Error("an option that isn't known was taken")
	}
}

func FuzzContainerSize(f *testing.F) {
	for _, seed := range []string{"10G", "1.5 mib", "0", "99999999999999999999", "1p"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := options.ContainerSize(map[string]string{"size": text}); err == nil && n > math.MaxInt64 {
			t.Errorf("%q is %d", text, n)
		}
	})
}

func TestLayersAreFoundWhereContainerdsDriverMayLook(t *testing.T) {
	const both = "cvmfs.lazy=a.example.org, b.example.org"
	for _, c := range []struct {
		opts []string
		want string // in the error; "" for none
	}{
		{[]string{both}, ""},
		{[]string{both, "cvmfs.repositories=b.example.org,a.example.org"}, ""},
		{[]string{"cvmfs.repositories=a.example.org", both}, "b.example.org may not be used: add it to cvmfs.repositories"},
		{[]string{"cvmfs.lazy="}, "storage option cvmfs.lazy=: "},
		{[]string{"cvmfs.lazy=../x"}, "storage option cvmfs.lazy=../x: "},
	} {
		got, err := options.ParseHost(c.opts)
		if c.want == "" {
			if d := cmp.Diff([]string{"a.example.org", "b.example.org"}, got.Lazy); d != "" || err != nil {
				t.Errorf("%q: %v, -want +got\n%s", c.opts, err, d)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.opts, err, c.want)
		}
	}
	if err := options.Check(both); err == nil {
		t.Error("the plugin takes the option, and can't do what it says")
	}
}
