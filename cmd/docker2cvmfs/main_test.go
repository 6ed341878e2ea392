package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/internal/program"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

const testFQRN = "layers.example.org"

// call runs the program and gives its exit code, output and errors.
func call(t testing.TB, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), append([]string{"docker2cvmfs"}, args...), &o, &e)
	return code, o.String(), e.String()
}

// must runs the program, which has to succeed, and gives its output.
func must(t testing.TB, args ...string) string {
	t.Helper()
	code, out, errOut := call(t, args...)
	if code != 0 {
		t.Fatalf("%v: exit code %d: %s", args, code, errOut)
	}
	return out
}

// alone keeps the user's credentials out of a test.
func alone(t testing.TB) {
	if t, ok := t.(*testing.T); ok {
		t.Setenv("DOCKER_CONFIG", t.TempDir())
	}
}

func newPublisher(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "publisher")
	if err := publish.Create(t.Context(), dir, publish.Settings{FQRN: testFQRN}, publish.Options{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func tiny(t testing.TB) v1.Image {
	t.Helper()
	image, err := tarball.ImageFromPath(testutil.Data(t, "images", "tiny.tar"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestManualWay(t *testing.T) {
	alone(t)
	registry := testutil.NewRegistry(t, "", "")
	registry.Push(t, "library/tiny:1", tiny(t), nil)
	dir := t.TempDir()
	must(t, "--registry", registry.URL+"/v2", "pull", "library/tiny:1", dir)
	for _, line := range []string{
		`for layer in *.tar.gz; do mkdir -p layers/${layer%.tar.gz} && tar -xzf $layer -C layers/${layer%.tar.gz} && touch layers/${layer%.tar.gz}/.cvmfscatalog; done`,
		`test "$(sha256sum *.tar.gz | while read sum name; do test $sum.tar.gz = $name && echo ok; done | wc -l)" = 3`,
	} {
		c := exec.CommandContext(t.Context(), "sh", "-ec", line)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	text := must(t, "--registry", registry.URL+"/v2", "thin", "library/tiny:1", testFQRN+"/layers")
	d, err := thin.Parse([]byte(text))
	if err != nil || len(d.Layers) != 3 {
		t.Fatalf("%s: %v", text, err)
	}
	for _, l := range d.Layers {
		if _, err := os.Stat(filepath.Join(dir, l.Path, ".cvmfscatalog")); err != nil || l.FQRN != testFQRN {
			t.Errorf("%+v: %v", l, err)
		}
	}
	manifest := must(t, "--registry", registry.URL+"/v2", "manifest", "library/tiny:1")
	config := must(t, "--registry", registry.URL+"/v2", "config", "library/tiny:1")
	for name, want := range map[string]string{"manifest.json": manifest, "config.json": config} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %v, other than printed", name, err)
		}
	}
	before := registry.Requests("/blobs/")
	must(t, "--registry", registry.URL+"/v2", "pull", "library/tiny:1", dir)
	if after := registry.Requests("/blobs/"); after != before+1 { // the configuration
		t.Errorf("pulling again asked for %d blobs", after-before)
	}
}

func TestMakeThinDoesEverything(t *testing.T) {
	alone(t)
	registry := testutil.NewRegistry(t, "", "")
	in := registry.Push(t, "library/tiny:1", tiny(t), nil)
	dir := newPublisher(t)
	args := []string{
		"make-thin", "--input-reference", in, "--output-reference", registry.Host + "/thin/tiny:1",
		"--repository", testFQRN, "--subdirectory", "some/layers", "--target", "native:" + dir,
	}
	out := must(t, args...)
	if !strings.Contains(out, "3 added, 0 there already") || !strings.Contains(out, "thin/tiny:1@sha256:") {
		t.Errorf("summary: %s", out)
	}
	if out := must(t, args...); !strings.Contains(out, "unchanged") {
		t.Errorf("again: %s", out)
	}
	folder := t.TempDir()
	must(t, "pull", registry.Host+"/thin/tiny:1", folder)
	layers, err := filepath.Glob(filepath.Join(folder, "*.tar.gz"))
	if err != nil || len(layers) != 1 {
		t.Fatalf("%v, %v", layers, err)
	}
	text, err := exec.CommandContext(t.Context(), "tar", "-xzOf", layers[0], "thin.json").Output()
	if err != nil {
		t.Fatal(err)
	}
	d, err := thin.Parse(text)
	if err != nil || len(d.Layers) != 3 || !strings.HasPrefix(d.Layers[0].Path, "/some/layers/") {
		t.Errorf("%s: %v", text, err)
	}
}

func TestProgressIsForProgramsToo(t *testing.T) {
	alone(t)
	registry := testutil.NewRegistry(t, "", "")
	in := registry.Push(t, "tiny:1", tiny(t), nil)
	code, out, errOut := call(t, "make-thin", "-i", in, "--target", "native:"+newPublisher(t), "--json")
	if code != 0 {
		t.Fatal(errOut)
	}
	seen := map[convert.Action]int{}
	for in := json.NewDecoder(strings.NewReader(out)); ; {
		var e struct {
			Action  convert.Action
			Summary *convert.Summary
		}
		if err := in.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if seen[e.Action]++; e.Action == convert.ImageDone && (e.Summary == nil || e.Summary.Added != 3) {
			t.Errorf("summary %+v", e.Summary)
		}
	}
	for action, want := range map[convert.Action]int{
		convert.ImageStarted: 1, convert.LayerStarted: 3,
		convert.LayerDone: 3, convert.Publishing: 1, convert.ImageDone: 1,
	} {
		if seen[action] != want {
			t.Errorf("%d times %s, want %d", seen[action], action, want)
		}
	}
}

func TestWishListsAreConvertedAndCollected(t *testing.T) {
	alone(t)
	registry := testutil.NewRegistry(t, "robot", "secret")
	auth := &authn.Basic{Username: "robot", Password: "secret"}
	registry.Push(t, "a:1.0", tiny(t), auth)
	t.Setenv("DUCC_AUTH_REGISTRIES", "TEST")
	t.Setenv("DUCC_TEST_IDENT", registry.URL)
	t.Setenv("DUCC_TEST_USER", "robot")
	t.Setenv("DUCC_TEST_PASS", "secret")
	t.Setenv("DUCC_OUTPUT_REGISTRY_PASS", "secret")
	dir, tmp := newPublisher(t), t.TempDir()
	list, notes := filepath.Join(tmp, "wishes.yaml"), filepath.Join(tmp, "notes")
	write := func(images string) {
		t.Helper()
		text := fmt.Sprintf("version: 1\nuser: robot\ncvmfs_repo: %s\noutput_format: 'http://%s/thin/$(image)'\ninput: [%s]\n", testFQRN, registry.Host, images)
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(fmt.Sprintf("'http://%[1]s/a:1.*', 'http://%[1]s/none:1'", registry.Host))
	code, out, errOut := call(t, "convert", "--target", "native:"+dir, "--notification-file", notes, list)
	if code != 1 || !strings.Contains(out, "1 converted, 0 unchanged, 1 failed; 3 layers added") ||
		!strings.Contains(errOut, "1 of 2 images failed") {
		t.Errorf("exit code %d: %s%s", code, out, errOut)
	}
	b, err := os.ReadFile(notes)
	if err != nil {
		t.Fatal(err)
	}
	actions := map[string]int{}
	for line := range strings.Lines(string(b)) {
		var n map[string]string
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		actions[n["action"]]++
		if _, err := time.Parse("_2 Jan 2006 - 15:04:05.000", n["time"]); err != nil || n["id"] == "" {
			t.Errorf("%s: %v", line, err)
		}
	}
	if actions["start_ducc"] != 1 || actions["start_layer_conversion"] != 3 || actions["end_layer_conversion"] != 3 ||
		actions["end_ducc"] != 1 {
		t.Errorf("actions %v", actions)
	}
	write(fmt.Sprintf("'http://%s/b:1'", registry.Host))
	if out := must(t, "gc", "--target", "native:"+dir, "--dry-run", "--grace-period", "0", list); !strings.Contains(out,
		"3 would be removed") {
		t.Errorf("dry run: %s", out)
	}
	if out := must(t, "gc", "--target", "native:"+dir, "--grace-period", "0", list); !strings.Contains(out,
		"0 layers kept, 3 removed") {
		t.Errorf("collection: %s", out)
	}
}

// bad is what a test of bad input has.
type bad struct {
	registry *testutil.Registry
	in       string
	dir      string // of the publisher
}

func TestBadInputIsToldClearly(t *testing.T) {
	testutil.NeedRoot(t)
	expired := func(t *testing.T, b *bad) {
		b.dir = filepath.Join(t.TempDir(), "publisher")
		past := func() time.Time { return time.Now().AddDate(0, -3, 0) }
		if err := publish.Create(t.Context(), b.dir, publish.Settings{FQRN: testFQRN},
			publish.Options{Now: past}); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		spoil func(t *testing.T, b *bad)
		code  int
		want  []string
	}{
		"missing tag": {
			func(_ *testing.T, b *bad) { b.in = b.registry.Host + "/a:none" }, 1,
			[]string{"no such tag", "check the tag"},
		},
		"no such image": {
			func(_ *testing.T, b *bad) { b.in = b.registry.Host + "/none:1" }, 1,
			[]string{"no such image", "check the name"},
		},
		"wrong credentials": {
			func(_ *testing.T, b *bad) { b.registry.Set(testutil.Fault{Status: 401}) }, 1,
			[]string{"access denied", "docker login"},
		},
		"other platform": {func(t *testing.T, b *bad) {
			list := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
				Add:        tiny(t),
				Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}},
			})
			b.in = b.registry.Push(t, "list:1", list, nil)
		}, 1, []string{"no image for the platform linux/amd64", "linux/s390x", "--platform"}},
		"damaged layer": {
			func(_ *testing.T, b *bad) { b.registry.Set(testutil.Fault{Path: "/blobs/", Flip: true}) },
			1,
			[]string{"damaged", "digest"},
		},
		"wrong manifest": {func(_ *testing.T,
			b *bad,
		) {
			b.registry.Set(testutil.Fault{Path: "/manifests/", Extra: "}"})
		}, 1, []string{"manifest"}},
		"truncated layer": {func(t *testing.T, b *bad) {
			whole := testutil.Tar(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Linkname: strings.Repeat("x", 9000)})
			image, err := mutate.AppendLayers(tiny(t), static.NewLayer(whole[:5000], types.DockerUncompressedLayer))
			if err != nil {
				t.Fatal(err)
			}
			b.in = b.registry.Push(t, "cut:1", image, nil)
		}, 1, []string{"EOF"}},
		"repository locked": {func(t *testing.T, b *bad) {
			repo, err := publish.Open(b.dir, publish.Options{})
			if err != nil {
				t.Fatal(err)
			}
			unlock, err := repo.Lock(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unlock() })
		}, 1, []string{"locked by process"}},
		"expired whitelist": {expired, 1, []string{"expired", "publish resign"}},
		"read-only target": {func(t *testing.T, b *bad) {
			for _, flags := range []uintptr{unix.MS_BIND, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY} {
				if err := unix.Mount(b.dir, b.dir, "", flags, ""); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() {
				if err := unix.Unmount(b.dir, 0); err != nil {
					t.Error(err)
				}
			})
		}, 1, []string{"read-only file system"}},
		"full disk": {func(t *testing.T, b *bad) {
			full := testutil.SmallDisk(t, "4m")
			b.dir = filepath.Join(full, "publisher")
			if err := publish.Create(t.Context(), b.dir, publish.Settings{FQRN: testFQRN, Compression: "none"},
				publish.Options{}); err != nil {
				t.Fatal(err)
			}
			big := publishtest.Pack(t, publishtest.File("a", string(testutil.Sample(5<<20))))
			image, err := mutate.AppendLayers(tiny(t), static.NewLayer(big, types.DockerUncompressedLayer))
			if err != nil {
				t.Fatal(err)
			}
			b.in = b.registry.Push(t, "big:1", image, nil)
		}, 1, []string{"no space left"}},
		"no publisher's folder": {func(t *testing.T, b *bad) { b.dir = t.TempDir() }, 1, []string{"publish create"}},
	} {
		t.Run(name, func(t *testing.T) {
			alone(t)
			b := &bad{registry: testutil.NewRegistry(t, "", ""), dir: newPublisher(t)}
			b.in = b.registry.Push(t, "a:1", tiny(t), nil)
			c.spoil(t, b)
			out := filepath.Join(t.TempDir(), "thin.tar")
			code, _, errOut := call(t, "make-thin", "-i", b.in, "-o", "docker-archive:"+out, "--target",
				"native:"+b.dir)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(errOut, want) {
					t.Errorf("message lacks %q: %s", want, errOut)
				}
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("there is a thin image")
			}
			repo, err := publish.Open(b.dir, publish.Options{})
			if err != nil {
				return // it is none
			}
			if head, err := repo.Head(t.Context()); head != nil && head.Manifest.Revision != 0 {
				t.Errorf("revision %d was published, %v", head.Manifest.Revision, err)
			}
		})
	}
}

func TestWrongUsageIsToldApart(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"pull"}, program.Usage, "want IMAGE DIR"},
		{[]string{"pull", "a"}, program.Usage, "want IMAGE DIR"},
		{[]string{"unknown"}, program.Usage, "unknown command"},
		{[]string{"make-thin"}, program.Usage, "--input-reference"},
		{[]string{"make-thin", "-i", "a"}, program.Usage, "no target"},
		{
			[]string{"make-thin", "-i", "a", "-o", "b@sha256:" + strings.Repeat("0", 64), "--target", "dir:/x"},
			program.Usage, "give a tag",
		},
		{[]string{"make-thin", "-i", "docker-archive:", "--target", "dir:/x"}, program.Usage, "nothing follows"},
		{[]string{"make-thin", "-i", "a", "--layout", "other", "--target", "dir:/x"}, program.Usage, "layers or ducc"},
		{[]string{"make-thin", "-i", "a", "--nonsense"}, program.Usage, "nonsense"},
		{[]string{"make-thin", "-i", "a", "-r", testFQRN}, program.Unfit, "release manager machine"},
		{[]string{"thin", "a", "NOT A NAME/x"}, program.Usage, "NOT A NAME"},
		{[]string{"manifest", "ftp://a/b"}, program.Usage, "scheme"},
		{[]string{"--registry", "http://u:p@host", "manifest", "a"}, program.Usage, "docker login"},
		{[]string{"gc"}, program.Usage, "wish list"},
		{[]string{"convert", "/no/such.yaml"}, program.Failed, "no such file"},
		{[]string{"loop", "--interval", "0s", "/no/such.yaml"}, program.Usage, "interval"},
		{[]string{"version", "x"}, program.Usage, "unknown argument"},
	} {
		code, _, errOut := call(t, c.args...)
		if code != c.code || !strings.Contains(errOut, c.want) {
			t.Errorf("%v: exit code %d, want %d; message lacks %q: %s", c.args, code, c.code, c.want, errOut)
		}
	}
	if out := must(t, "version"); !strings.HasPrefix(out, "docker2cvmfs ") {
		t.Errorf("version: %s", out)
	}
}

func TestChunksHaveTheSizeThatIsAskedFor(t *testing.T) {
	alone(t)
	large := publishtest.Pack(t, publishtest.File("large", string(testutil.Sample(2<<20))))
	image, err := mutate.AppendLayers(tiny(t), static.NewLayer(large, types.DockerUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	tag, err := name.NewTag("example/large:1")
	if err == nil {
		err = tarball.WriteToFile(file, tag, image)
	}
	if err != nil {
		t.Fatal(err)
	}
	objects := func(options ...string) int {
		dir := newPublisher(t)
		must(t, append([]string{"make-thin", "-i", "docker-archive:" + file, "--target", "native:" + dir},
			options...)...)
		chunks, err := filepath.Glob(filepath.Join(dir, "www/cvmfs", testFQRN, "data/*/*P"))
		if err != nil {
			t.Fatal(err)
		}
		return len(chunks)
	}
	if fine, coarse := objects("--chunk-size", "16KiB"), objects("--chunk-size", "512KiB"); fine < 65 || coarse > 8 ||
		coarse < 2 {
		t.Errorf("%d chunks of 16 KiB, and %d of 512 KiB", fine, coarse)
	}
	for _, target := range []string{"dir:" + t.TempDir(), "native:" + newPublisher(t)} {
		if code, _, errOut := call(t, "make-thin", "-i", "docker-archive:"+file, "-r", testFQRN, "--target", target,
			"--chunk-size", "1"); code == 0 || !strings.Contains(errOut, "chunk") {
			t.Errorf("%s: exit code %d: %s", target, code, errOut)
		}
	}
}
