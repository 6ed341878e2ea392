package bundle

import (
	"bytes"
	"context"
	"crypto/rand"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/internal/registry"
	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/testutil"
)

// made makes a bundle of a program that no other has and that compresses badly, so that its layer is long.
func made(t *testing.T, arch string) *Bundle {
	t.Helper()
	program := writeProgram(t, map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch],
		elf.PT_LOAD, 0)
	f, err := os.OpenFile(program, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 100_000)
	rand.Read(noise) // never fails
	if err := errors.Join(second(f.Write(noise)), f.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := New(program, rootfs.Build{Version: "1.2.3", Commit: "abc", Time: time.Unix(1_600_000_000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// second drops what a call gives besides its error.
func second(_ int, err error) error { return err }

// other is the architecture that this machine's isn't.
func other() string {
	return Architectures()[1-slices.Index(Architectures(), runtime.GOARCH)]
}

// archive returns the bytes of a bundle's archive.
func archive(t *testing.T, b *Bundle) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := b.WriteArchive(&out, TarGz); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestWhatIsPulledIsByteForByteWhatWasPushed(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	b := made(t, runtime.GOARCH)
	pushed, err := Push(t.Context(), r.Host+"/cvmfs/graphdriver:1", []*Bundle{b}, Remote{})
	if err != nil || len(pushed) != 1 || pushed[0].Ref != r.Host+"/cvmfs/graphdriver:1" ||
		pushed[0].Arch != runtime.GOARCH {
		t.Fatalf("%+v, %v", pushed, err)
	}
	for _, ref := range []string{
		pushed[0].Ref, "http://" + pushed[0].Ref,
		r.Host + "/cvmfs/graphdriver@" + pushed[0].Digest,
	} {
		for _, arch := range []string{"", runtime.GOARCH} {
			got, digest, err := Pull(t.Context(), ref, arch, Remote{})
			if err != nil || digest != pushed[0].Digest {
				t.Fatalf("%s: %s, %v, want %s", ref, digest, err, pushed[0].Digest)
			}
			dir := filepath.Join(t.TempDir(), "new")
			file, err := got.Save(t.Context(), dir, TarGz)
			if err != nil || file != filepath.Join(dir, "cvmfs-graphdriver-plugin-1.2.3-"+runtime.GOARCH+".tar.gz") {
				t.Fatalf("%s, %v", file, err)
			}
			if content, err := os.ReadFile(file); err != nil || !bytes.Equal(content, archive(t, b)) {
				t.Errorf("%s: the archive is another, %v", ref, err)
			}
			onlyIn(t, dir, filepath.Base(file))
			if err := got.Check(); err != nil {
				t.Error(err)
			}
		}
	}
	again, err := Push(t.Context(), r.Host+"/cvmfs/graphdriver:1", []*Bundle{b}, Remote{})
	if diff := cmp.Diff(pushed, again); diff != "" || err != nil {
		t.Errorf("pushed again: %s, %v", diff, err)
	}
}

// onlyIn checks what a folder holds.
func onlyIn(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("%s: %s", dir, diff)
	}
}

func TestSeveralArchitecturesAreTagsAndAList(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	bundles := map[string]*Bundle{"amd64": made(t, "amd64"), "arm64": made(t, "arm64")}
	pushed, err := Push(t.Context(), r.Host+"/plugin", []*Bundle{bundles["arm64"], bundles["amd64"]}, Remote{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range pushed {
		got = append(got, p.Arch+" "+strings.TrimPrefix(p.Ref, r.Host))
	}
	if diff := cmp.Diff([]string{"amd64 /plugin:latest-amd64", "arm64 /plugin:latest-arm64", " /plugin:latest"},
		got); diff != "" {
		t.Fatal(diff)
	}
	for i, p := range pushed {
		for _, arch := range []string{"", "amd64", "arm64"} {
			b, digest, err := Pull(t.Context(), p.Ref, arch, Remote{})
			if p.Arch != "" && arch != "" && arch != p.Arch {
				if err == nil || !strings.Contains(err.Error(), "one for "+arch+" is wanted") {
					t.Errorf("%s for %s: %v", p.Ref, arch, err)
				}
				continue
			}
			want := arch
			switch {
			case arch == "" && p.Arch != "":
				want = p.Arch
			case arch == "":
				want = runtime.GOARCH
			}
			if err != nil || b.Build.Arch != want || !bytes.Equal(archive(t, b), archive(t, bundles[want])) {
				t.Errorf("%s for %q is not the bundle for %s: %v", p.Ref, arch, want, err)
			}
			if i < 2 && digest != p.Digest {
				t.Errorf("%s has digest %s, want %s", p.Ref, digest, p.Digest)
			}
		}
	}
	if _, _, err := Pull(t.Context(), r.Host+"/plugin", "riscv64", Remote{}); err == nil ||
		!strings.Contains(err.Error(), "there are [\"linux/amd64\" \"linux/arm64\"]") {
		t.Errorf("%v", err)
	}
}

func TestProgressIsToldOfEveryByte(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	var arch string
	var done, total int64
	told := Remote{Progress: func(a string, d, of int64) { arch, done, total = a, d, of }}
	ref := r.Host + "/plugin:1"
	if _, err := Push(t.Context(), ref, []*Bundle{made(t, "arm64")}, told); err != nil || arch != "arm64" ||
		total < 100_000 || done != total {
		t.Errorf("pushed: %s, %d of %d, %v", arch, done, total, err)
	}
	arch, done, total = "", 0, 0
	if _, _, err := Pull(t.Context(), ref, "arm64", told); err != nil || arch != "arm64" || total < 100_000 ||
		done != total {
		t.Errorf("pulled: %s, %d of %d, %v", arch, done, total, err)
	}
}

func TestPushRefusesWhatNobodyCouldPull(t *testing.T) {
	b := made(t, runtime.GOARCH)
	newer := *made(t, other())
	newer.Build.Version = "2"
	for what, c := range map[string]struct {
		ref     string
		bundles []*Bundle
		says    string
	}{
		"a digest as the name": {
			"127.0.0.1:1/plugin@sha256:" + strings.Repeat("0", 64),
			[]*Bundle{b},
			"give a tag",
		},
		"no name":                {"", []*Bundle{b}, "push plugin bundle to"},
		"capitals":               {"127.0.0.1:1/Plugin", []*Bundle{b}, "push plugin bundle to"},
		"one architecture twice": {"127.0.0.1:1/plugin", []*Bundle{b, b}, "once for each architecture"},
		"two versions":           {"127.0.0.1:1/plugin", []*Bundle{b, &newer}, "want one version"},
		"a tag that gets too long": {
			"127.0.0.1:1/plugin:" + strings.Repeat("x", 125),
			[]*Bundle{b, made(t, other())},
			"tag",
		},
	} {
		if _, err := Push(t.Context(), c.ref, c.bundles, Remote{}); err == nil ||
			!strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", what, err, c.says)
		}
	}
}

func TestOtherArtefactsAreNoBundles(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	image, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	b := made(t, runtime.GOARCH)
	// with is the bundle as an artefact, its manifest changed.
	with := func(layer []byte, change func(*v1.Manifest)) v1.Image {
		t.Helper()
		return changed(t, b, layer, change)
	}
	sshfs := made(t, runtime.GOARCH)
	sshfs.entries = slices.DeleteFunc(slices.Clone(sshfs.entries),
		func(e Entry) bool { return strings.HasSuffix(e.Name, "build.json") })
	another, err := sshfs.image(Remote{})
	if err != nil {
		t.Fatal(err)
	}
	platforms := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}},
	})
	for what, c := range map[string]struct {
		put  remote.Taggable
		says string
	}{
		"an image":                   {image, "it is no plugin: its configuration's media type is"},
		"a list of images":           {platforms, "it is no plugin: its configuration's media type is"},
		"an empty list":              {empty.Index, "it is a list without linux/"},
		"another plugin":             {another, "not a bundle"},
		"a layer that is no archive": {with([]byte("text"), nil), "its layer: neither"},
		"a layer that isn't gzip":    {with([]byte("\x1f\x8b and no more of it"), nil), "its layer: gzip"},
		"a layer on another server": {with(nil,
			func(m *v1.Manifest) { m.Layers[0].URLs = []string{"http://127.0.0.1:1/"} }), "lies in the registry"},
		"two layers": {
			with(nil, func(m *v1.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }),
			"has one layer",
		},
		"a layer larger than allowed": {
			with(nil, func(m *v1.Manifest) { m.Layers[0].Size = maxSize + 1 }),
			"larger than any bundle",
		},
		"a configuration too large": {
			with(nil, func(m *v1.Manifest) { m.Config.Size = maxConfig + 1 }),
			"larger than any bundle",
		},
		"a layer longer than said":  {with(nil, func(m *v1.Manifest) { m.Layers[0].Size-- }), "its layer: "},
		"a layer shorter than said": {with(nil, func(m *v1.Manifest) { m.Layers[0].Size++ }), "its layer: "},
	} {
		t.Run(what, func(t *testing.T) {
			ref := put(t, r, c.put)
			if _, _, err := Pull(t.Context(), ref, "", Remote{}); err == nil ||
				!strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), ref) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// changed is a bundle as an artefact with another layer, unless that is nil, and a changed manifest.
func changed(t *testing.T, b *Bundle, layer []byte, change func(*v1.Manifest)) v1.Image {
	t.Helper()
	image, err := b.image(Remote{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	m = m.DeepCopy()
	blobs := map[v1.Hash]v1.Layer{}
	if layer != nil {
		blob := static.NewLayer(layer, types.DockerLayer)
		if m.Layers[0].Digest, err = blob.Digest(); err != nil {
			t.Fatal(err)
		}
		m.Layers[0].Size = int64(len(layer))
		blobs[m.Layers[0].Digest] = blob
	}
	if change != nil {
		change(m)
	}
	return &lying{image, m, blobs}
}

// lying is an image with another manifest.
type lying struct {
	v1.Image
	m     *v1.Manifest
	blobs map[v1.Hash]v1.Layer
}

// put puts an artefact into a registry, its blobs first and then the manifest as it is, and gives its name.
func put(t *testing.T, r *testutil.Registry, what remote.Taggable) string {
	t.Helper()
	l, lies := what.(*lying)
	if !lies {
		return r.Push(t, "other:1", what, nil)
	}
	ref, err := name.ParseReference(r.Push(t, "other:1", l.Image, nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, blob := range l.blobs {
		if err := remote.WriteLayer(ref.Context(), blob); err != nil {
			t.Fatal(err)
		}
	}
	if err := remote.Put(ref, raw{l.m}); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

// raw is a manifest by itself.
type raw struct{ m *v1.Manifest }

func (r raw) RawManifest() ([]byte, error)        { return json.Marshal(r.m) }
func (r raw) MediaType() (types.MediaType, error) { return types.DockerManifestSchema2, nil }

func TestFaultsOfRegistriesAreToldAndLeaveNothing(t *testing.T) {
	b := made(t, runtime.GOARCH)
	for what, c := range map[string]struct {
		fault    testutil.Fault
		is       error
		says     string
		pushOnly bool
		pullOnly bool
	}{
		"refused":         {fault: testutil.Fault{Status: 401}, is: registry.ErrCredentials, says: "docker login"},
		"forbidden":       {fault: testutil.Fault{Status: 403}, is: registry.ErrCredentials, says: "docker login"},
		"a broken server": {fault: testutil.Fault{Status: 501}, says: "501"},
		"the manifest denied": {
			fault: testutil.Fault{Path: "/manifests/", Status: 403}, is: registry.ErrCredentials,
			says: "docker login",
		},
		"uploads denied": {
			fault: testutil.Fault{Path: "/uploads/", Status: 403}, is: registry.ErrCredentials,
			says: "docker login", pushOnly: true,
		},
		"a blob is gone": {
			fault: testutil.Fault{Path: "/blobs/", Status: 404}, is: registry.ErrNoImage,
			says: "missing", pullOnly: true,
		},
		"a blob is cut": {
			fault: testutil.Fault{Path: "/blobs/", Cut: 200}, says: "unexpected EOF",
			pullOnly: true,
		},
		"a blob is changed": {fault: testutil.Fault{Path: "/blobs/", Flip: true}, says: "checksum", pullOnly: true},
		"a blob with a tail": {
			fault: testutil.Fault{Path: "/blobs/", Extra: "tail"},
			says:  "does not match expected size", pullOnly: true,
		},
		"a manifest is cut": {
			fault: testutil.Fault{Path: "/manifests/", Cut: 20}, says: "unexpected EOF",
			pullOnly: true,
		},
		"no manifest": {
			fault: testutil.Fault{Path: "/manifests/", Status: 404}, is: registry.ErrNoTag,
			says: "check the tag", pullOnly: true,
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := testutil.NewRegistry(t, "", "")
			ref := r.Host + "/plugin:1"
			if _, err := Push(t.Context(), ref, []*Bundle{b}, Remote{}); err != nil {
				t.Fatal(err)
			}
			r.Set(c.fault)
			check := func(did string, err error) {
				t.Helper()
				if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) ||
					!strings.Contains(err.Error(), did+" plugin bundle") {
					t.Errorf("%s: %v, want %q", did, err, c.says)
				}
			}
			if !c.pullOnly {
				_, err := Push(t.Context(), ref, []*Bundle{made(t, runtime.GOARCH)}, Remote{})
				check("push", err)
			}
			if !c.pushOnly {
				_, _, err := Pull(t.Context(), ref, "", Remote{})
				check("pull", err)
			}
			// What was there before is there still.
			r.Set()
			if got, _, err := Pull(t.Context(), ref, "", Remote{}); err != nil ||
				!bytes.Equal(archive(t, got), archive(t, b)) {
				t.Errorf("the former bundle: %v", err)
			}
		})
	}
	t.Run("down", func(t *testing.T) {
		r := testutil.NewRegistry(t, "", "")
		r.Close()
		for did, do := range map[string]func() error{
			"push": func() error { _, err := Push(t.Context(), r.Host+"/plugin", []*Bundle{b}, Remote{}); return err },
			"pull": func() error { _, _, err := Pull(t.Context(), r.Host+"/plugin", "", Remote{}); return err },
		} {
			if err := do(); err == nil || !strings.Contains(err.Error(), "connection refused") ||
				!strings.Contains(err.Error(), "registry "+r.Host) {
				t.Errorf("%s: %v", did, err)
			}
		}
	})
}

func TestALayerWhoseConnectionBreaksIsAskedForAgain(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	ref := r.Host + "/plugin:1"
	b := made(t, runtime.GOARCH)
	if _, err := Push(t.Context(), ref, []*Bundle{b}, Remote{}); err != nil {
		t.Fatal(err)
	}
	image, err := b.image(Remote{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	layer := "/blobs/" + m.Layers[0].Digest.String()
	r.Set(testutil.Fault{Path: layer, Cut: 50_000, Times: attempts - 1})
	before := r.Requests(layer)
	if got, _, err := Pull(t.Context(), ref, "", Remote{}); err != nil || !bytes.Equal(archive(t, got), archive(t, b)) {
		t.Errorf("%v", err)
	}
	if asked := r.Requests(layer) - before; asked != attempts {
		t.Errorf("asked for it %d times, want %d", asked, attempts)
	}
}

func TestWhatIsCancelledEnds(t *testing.T) {
	r := testutil.NewRegistry(t, "", "")
	ref := r.Host + "/plugin:1"
	b := made(t, runtime.GOARCH)
	if _, err := Push(t.Context(), ref, []*Bundle{b}, Remote{}); err != nil {
		t.Fatal(err)
	}
	for did, c := range map[string]struct {
		fault testutil.Fault
		do    func(context.Context, Remote) error
	}{
		"pull": {testutil.Fault{Path: "/blobs/", Stall: 50_000}, func(ctx context.Context, to Remote) error {
			_, _, err := Pull(ctx, ref, "", to)
			return err
		}},
		"push": {testutil.Fault{Path: "/uploads/", Silent: true}, func(ctx context.Context, to Remote) error {
			_, err := Push(ctx, r.Host+"/other:1", []*Bundle{made(t, runtime.GOARCH)}, to)
			return err
		}},
	} {
		t.Run(did, func(t *testing.T) {
			r.Set(c.fault)
			defer r.Set()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			before := r.Requests(c.fault.Path)
			go func() {
				defer cancel()
				for tick := time.Tick(time.Millisecond); ctx.Err() == nil && r.Requests(c.fault.Path) == before; {
					<-tick
				}
			}()
			if err := c.do(ctx, Remote{}); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := b.Save(ctx, dir, TarGz); !errors.Is(err, context.Canceled) {
		t.Errorf("save: %v", err)
	}
	onlyIn(t, dir)
}

func TestCredentialsAreSentToWhoIsAsked(t *testing.T) {
	r := testutil.NewRegistry(t, "user", "secret")
	ref := r.Host + "/plugin:1"
	b := made(t, runtime.GOARCH)
	_, err := Push(t.Context(), ref, []*Bundle{b}, Remote{})
	if !errors.Is(err, registry.ErrCredentials) {
		t.Errorf("without: %v", err)
	}
	known := Remote{Options: registry.Options{Keychain: keychain{r.Host: {Username: "user", Password: "secret"}}}}
	if _, err := Push(t.Context(), ref, []*Bundle{b}, known); err != nil {
		t.Error(err)
	}
	if _, _, err := Pull(t.Context(), ref, "", known); err != nil {
		t.Error(err)
	}
}

// keychain is credentials by registry.
type keychain map[string]authn.AuthConfig

func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if auth, ok := k[r.RegistryStr()]; ok {
		return authn.FromConfig(auth), nil
	}
	return authn.Anonymous, nil
}

func TestPlainHTTPToOthersIsAskedFor(t *testing.T) {
	_, _, err := Pull(t.Context(), "10.255.255.1:5000/plugin", "", Remote{})
	if err == nil || !strings.Contains(err.Error(), "--plain-http") {
		t.Errorf("%v", err)
	}
}

func TestAFullDiskLeavesNoPartOfAnArchive(t *testing.T) {
	b := made(t, runtime.GOARCH)
	dir := testutil.SmallDisk(t, "64k")
	if _, err := b.Save(t.Context(), dir, TarGz); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("%v", err)
	}
	onlyIn(t, dir)
}

func ExampleCheckName() {
	for _, n := range []string{"registry.example.org:5000/cvmfs/graphdriver:1.0", "overlay2"} {
		driver, err := CheckName(n)
		fmt.Printf("%q\n", driver)
		if err != nil {
			fmt.Println("error:", strings.ReplaceAll(err.Error(), ": ", ":\n"))
		}
	}
	// Output:
	// "registry.example.org:5000/cvmfs/graphdriver:1.0"
	// ""
	// error: plugin name "overlay2":
	// the engine has a storage driver of its own of that name:
	// take another, such as cvmfs-graphdriver
}
