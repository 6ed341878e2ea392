package graphdriver_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/node/nodetest"
	"cvmfs-graphdriver/internal/overlayfs"
)

func TestContainerSeesItsChainAndKeepsItsChanges(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "base a"}, file{Name: "b", Body: "base b"},
		file{Name: "d/", Kind: tar.TypeDir}, file{Name: "d/x", Body: "x"}))
	size := r.apply("top", "base", tarOf(t, file{Name: "a", Body: "top a"}, file{Name: ".wh.b"},
		file{Name: "d/", Kind: tar.TypeDir}, file{Name: "d/.wh..wh..opq"}, file{Name: "d/y", Body: "y"}))
	if size != 6 {
		t.Errorf("size is %d, want the 6 bytes of the files", size)
	}
	dir := r.container("c1", "top")
	want := []string{"a -rw-r--r-- 0:0 top a", "d drwxr-xr-x 0:0", "d/y -rw-r--r-- 0:0 y"}
	if d := cmp.Diff(want, list(t, dir)); d != "" {
		t.Errorf("view of the chain: -want +got\n%s", d)
	}
	must(t, os.WriteFile(filepath.Join(dir, "new"), []byte("written"), 0o600))
	must(t, r.Put("c1"))
	if r.mounted("c1") {
		t.Error("mounted after Put")
	}
	dir = r.get("c1")
	if b, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(b) != "written" {
		t.Errorf("file of the container after a remount: %q, %v", b, err)
	}
}

func TestReadOnlyLayerIsItsOwnContent(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.apply("top", "base", tarOf(t, file{Name: "b", Body: "b"}))
	if d := cmp.Diff([]string{"b -rw-r--r-- 0:0 b"}, list(t, r.get("top"))); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	must(t, r.Put("top"))
	must(t, r.Put("top"))
}

func TestBuildStepIsWrittenToWithoutApplyDiff(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	must(t, r.Create(graphdriver.CreateArgs{ID: "step", Parent: "base"}))
	must(t, os.WriteFile(filepath.Join(r.get("step"), "b"), []byte("b"), 0o644))
	must(t, r.Put("step"))
	must(t, r.Create(graphdriver.CreateArgs{ID: "idle", Parent: "step"})) // a step that changes nothing
	must(t, r.Create(graphdriver.CreateArgs{ID: "next", Parent: "idle"}))
	must(t, r.Init(graphdriver.InitArgs{}))
	want := []string{"a -rw-r--r-- 0:0 a", "b -rw-r--r-- 0:0 b"}
	must(t, r.Create(graphdriver.CreateArgs{ID: "again", Parent: "idle"}))
	if d := cmp.Diff(want, list(t, r.get("again"))); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if r.Exists("next") {
		t.Error("a layer that never got content was kept")
	}
}

func TestMountStaysUntilPutAsOftenAsGot(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.container("c1", "base")
	r.get("c1")
	r.reopen() // kill -9: the counts are on disk
	r.get("c1")
	for n := range 2 {
		must(t, r.Put("c1"))
		if !r.mounted("c1") {
			t.Fatalf("unmounted after %d of 3 Puts", n+1)
		}
	}
	must(t, r.Put("c1"))
	if r.mounted("c1") {
		t.Error("still mounted after the last Put")
	}
	must(t, r.Put("c1"))
	must(t, r.Put("no-such-layer"))
}

func TestMountNobodyAnswersForIsMadeAgain(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	dir := r.container("c1", "base")
	// killed between mounting and recording
	must(t, unix.Removexattr(filepath.Join(r.root, "layers", "c1"), "trusted.cvmfs-graphdriver.open"))
	if got := r.get("c1"); got != dir {
		t.Errorf("got %s, want %s", got, dir)
	}
	must(t, r.Put("c1"))
	if r.mounted("c1") {
		t.Error("the mount of the former life stayed")
	}
}

func TestMountNobodyAnswersForGoesWhenTheStoreOpens(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.container("c1", "base")
	r.container("c2", "base")
	// killed while Put unmounted
	must(t, unix.Removexattr(filepath.Join(r.root, "layers", "c1"), "trusted.cvmfs-graphdriver.open"))
	r.reopen()
	if r.mounted("c1") || !r.mounted("c2") {
		t.Errorf("the one nobody answers for is mounted: %v, the open one: %v", r.mounted("c1"), r.mounted("c2"))
	}
}

// watched is a kernel that counts its mounts, and unmounts a folder only when told.
type watched struct {
	node.Kernel
	mounts     atomic.Int32
	dir        string
	asked, may chan struct{}
}

func (m *watched) Mount(target string, s *overlayfs.Spec) error {
	m.mounts.Add(1)
	return m.Kernel.Mount(target, s)
}

func (m *watched) Unmount(dir string) error {
	if m.dir != "" && filepath.Base(dir) == m.dir {
		m.asked <- struct{}{}
		<-m.may
	}
	return m.Kernel.Unmount(dir)
}

// watch has the rig's mounts watched.
func (r *rig) watch(m *watched) *watched {
	m.Kernel, r.cfg.Kernel = r.cfg.Kernel, m
	r.reopen()
	must(r.t, r.Init(graphdriver.InitArgs{Home: "/mnt/x"}))
	m.mounts.Store(0)
	return m
}

func TestLayerThatIsGotAgainSoonIsNotMountedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
		m := r.watch(&watched{})
		dir := r.container("c1", "base")
		must(t, r.Put("c1"))
		time.Sleep(graphdriver.Linger / 2)
		r.get("c1")
		time.Sleep(2 * graphdriver.Linger)
		if b, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(b) != "a" || m.mounts.Load() != 1 {
			t.Errorf("an open layer shows %q, %v, mounted %d times", b, err, m.mounts.Load())
		}
		must(t, r.Put("c1"))
		must(t, r.Put("c1"))
		if b, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(b) != "a" {
			t.Errorf("a layer just put shows %q, %v", b, err)
		}
		time.Sleep(2 * graphdriver.Linger)
		synctest.Wait()
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("long after the last Put: %v", err)
		}
		if _, err := r.Get(t.Context(), "c1", "system_u:object_r:container_file_t:s0:c1,c2"); err == nil {
			must(t, r.Put("c1"))
		}
		mounts := m.mounts.Load()
		must(t, r.Put("c1"))
		r.get("c1")
		if m.mounts.Load() != mounts+1 {
			t.Errorf("a layer of another label was mounted %d times", m.mounts.Load()-mounts)
		}
	})
}

func TestPutDoesNotWaitForTheUnmountAndOthersDo(t *testing.T) {
	r := newRig(t)
	m := r.watch(&watched{dir: "init", asked: make(chan struct{}, 10), may: make(chan struct{})})
	allow := sync.OnceFunc(func() { close(m.may) })
	t.Cleanup(allow) // before the rig's own
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.container("init", "base")
	must(t, r.Put("init"))
	must(t, r.Create(graphdriver.CreateArgs{ID: "c1", Parent: "init", Writable: true}))
	<-m.asked

	others := map[string]func() error{
		"the layer itself": func() error { _, err := r.Get(t.Context(), "init", ""); return err },
		"one on top of it": func() error { _, err := r.Get(t.Context(), "c1", ""); return err },
	}
	done := make(chan error, len(others))
	for _, get := range others {
		go func() { done <- get() }()
	}
	select {
	case err := <-done:
		t.Fatalf("a layer was mounted while its folder was still in use: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	allow()
	for range others {
		must(t, <-done)
	}
	if !r.mounted("init") || !r.mounted("c1") {
		t.Error("not mounted")
	}
}

func TestInitDetachesMountsOfAnotherGeneration(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.container("c1", "base")
	r.cfg.Generation = "second"
	r.reopen()
	if !r.mounted("c1") {
		t.Error("a restart without Init took a container's mount away")
	}
	must(t, r.Init(graphdriver.InitArgs{Home: "/mnt/x"}))
	if r.mounted("c1") {
		t.Error("Init left a mount of another generation")
	}
	r.get("c1")
	must(t, r.Put("c1"))
	if r.mounted("c1") {
		t.Error("the count of the former generation was kept")
	}
}

func TestRestartedServerWorksWithoutInit(t *testing.T) {
	r := newRig(t)
	ids := []user.IDMap{{ID: 0, ParentID: 100000, Count: 65536}}
	must(t, r.Init(graphdriver.InitArgs{
		Opts: []string{"cvmfs.repositories=a.example.org, b.example.org"}, UIDMaps: ids,
		GIDMaps: ids,
	}))
	var got node.Settings
	r.cfg.NewComposer = func(s node.Settings) (node.Composer, error) { got = s; return r.composer, nil }
	r.reopen()
	want := node.Settings{
		Repositories: []string{"a.example.org", "b.example.org"},
		IDs:          user.IdentityMapping{UIDMaps: ids, GIDMaps: ids},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("settings of the second life: -want +got\n%s", d)
	}
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a", UID: 7, GID: 8}))
	dir := r.container("c1", "base")
	if d := cmp.Diff([]string{"a -rw-r--r-- 100007:100008 a"}, list(t, dir)); d != "" {
		t.Errorf("owners under userns-remap: -want +got\n%s", d)
	}
	if d := cmp.Diff([]string{"a 7:8"}, names(t, r, "base", "")); d != "" {
		t.Errorf("owners in the archive: -want +got\n%s", d)
	}
}

func TestNothingWorksBeforeInit(t *testing.T) {
	n, err := node.Open(nodetest.Config(t, t.TempDir(), &nodetest.Composer{}))
	must(t, err)
	defer n.Close()
	s, err := graphdriver.Open(graphdriver.Config{Node: n})
	must(t, err)
	if err := s.Create(graphdriver.CreateArgs{ID: "a"}); !errors.Is(err, node.ErrNotReady) {
		t.Errorf("Create before Init: %v", err)
	}
	if _, err := s.Get(t.Context(), "a", ""); !errors.Is(err, node.ErrNotReady) {
		t.Errorf("Get before Init: %v", err)
	}
}

func TestInitRefusesUnknownOptions(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct{ opt, want string }{
		{"cvmfs.repositoris=x", `unknown storage option "cvmfs.repositoris": this driver takes cvmfs.cache-floor, `},
		{"size=10G", `unknown storage option "size"`},
		{"cvmfs.repositories=a/b", "cvmfs.repositories=a/b"},
		{"cvmfs.repositories=", "cvmfs.repositories="},
	} {
		err := r.Init(graphdriver.InitArgs{Opts: []string{c.opt}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Init with %s: %v, want %q", c.opt, err, c.want)
		}
	}
	must(t, r.Init(graphdriver.InitArgs{Opts: []string{"overlay2.override_kernel_check=true"}}))
}

func TestCreateRefusesWhatIsNoLayer(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t))
	for _, c := range []struct {
		args graphdriver.CreateArgs
		want string
	}{
		{graphdriver.CreateArgs{ID: ""}, "layer id"},
		{graphdriver.CreateArgs{ID: ".."}, "layer id"},
		{graphdriver.CreateArgs{ID: ".new-1"}, "layer id"},
		{graphdriver.CreateArgs{ID: "a/b"}, "layer id"},
		{graphdriver.CreateArgs{ID: strings.Repeat("a", 101)}, "layer id"},
		{graphdriver.CreateArgs{ID: "a\x00b"}, "layer id"},
		{graphdriver.CreateArgs{ID: "a", Parent: "../base"}, "layer id"},
		{graphdriver.CreateArgs{ID: "a", Parent: "missing"}, "no such layer"},
		{graphdriver.CreateArgs{ID: "a", Parent: "a"}, "its own parent"},
		{
			graphdriver.CreateArgs{ID: "a", Parent: "base", StorageOpt: map[string]string{"size": "1G"}},
			"storage option size",
		},
	} {
		if err := r.Create(c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Create %+v: %v, want %q", c.args, err, c.want)
		}
	}
	for _, id := range []string{"..", "", "a/../base"} {
		if r.Exists(id) {
			t.Errorf("Exists(%q)", id)
		}
		if err := r.Remove(id); err == nil {
			t.Errorf("Remove(%q) was done", id)
		}
	}
	if got, _ := os.ReadDir(filepath.Join(r.root, "layers")); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

func TestRepeatedCallsChangeNothing(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	must(t, r.Create(graphdriver.CreateArgs{ID: "base"}))
	if err := r.Create(graphdriver.CreateArgs{ID: "base", Parent: "other"}); err == nil {
		t.Error("a layer was made again with another parent")
	}
	dir := r.container("c1", "base")
	must(t, os.WriteFile(filepath.Join(dir, "b"), nil, 0o644))
	must(t, r.Create(graphdriver.CreateArgs{ID: "c1", Parent: "base", Writable: true}))
	must(t, r.Init(graphdriver.InitArgs{Home: "/mnt/x"}))
	if d := cmp.Diff([]string{"a -rw-r--r-- 0:0 a", "b -rw-r--r-- 0:0"}, list(t, dir)); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	must(t, r.Remove("c1"))
	must(t, r.Remove("c1"))
	if r.Exists("c1") || r.mounted("c1") {
		t.Error("a mounted layer was not removed")
	}
}

func TestUnfinishedLayersAreRemoved(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	must(t, r.Create(graphdriver.CreateArgs{ID: "half", Parent: "base"}))
	folder := filepath.Join(r.root, "layers")
	for _, dir := range []string{".new-12/diff/x", ".dead-7/gone/diff"} {
		must(t, os.MkdirAll(filepath.Join(folder, dir), 0o700))
	}
	unwritten := filepath.Join(r.root, ".new-1") // where the version was to be written
	must(t, os.WriteFile(unwritten, nil, 0o600))
	r.reopen()
	if _, err := os.Lstat(unwritten); err == nil {
		t.Error("a half-written file stayed")
	}
	if !r.Exists("half") {
		t.Error("a restart of the server removed a layer whose content may be about to come")
	}
	must(t, r.Init(graphdriver.InitArgs{Home: "/mnt/x"}))
	entries, err := os.ReadDir(folder)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != "base" {
		t.Errorf("left behind: %v", entries)
	}
}

func TestOpenRefusesAForeignLayout(t *testing.T) {
	r := newRig(t)
	must(t, os.WriteFile(filepath.Join(r.root, "layout"), []byte("3\n"), 0o600))
	if _, err := node.Open(r.cfg); err == nil || !strings.Contains(err.Error(), `layout "3"`) {
		t.Errorf("layout 3: %v", err)
	}
	must(t, os.Remove(filepath.Join(r.root, "layout")))
	if _, err := node.Open(r.cfg); err == nil || !strings.Contains(err.Error(), "not of this driver's making") {
		t.Errorf("layers without a layout: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(r.root, "layout"), []byte("1\n"), 0o600))
}

func TestLongChainIsMounted(t *testing.T) {
	r := newRig(t)
	const layers = 125
	parent := ""
	for n := range layers {
		id := fmt.Sprintf("%064d", n)
		r.apply(id, parent, tarOf(t, file{Name: fmt.Sprintf("f%d", n), Body: "x"},
			file{Name: "last", Body: fmt.Sprint(n)}))
		parent = id
	}
	dir := r.container("c1", parent)
	if got := list(t, dir); len(got) != layers+1 {
		t.Errorf("%d names, want %d", len(got), layers+1)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "last")); string(b) != fmt.Sprint(layers-1) {
		t.Errorf("the topmost layer doesn't win: %q, %v", b, err)
	}
}

func TestCallsForOneLayerMayComeAtOnce(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if err := r.Create(graphdriver.CreateArgs{ID: "c1", Parent: "base", Writable: true}); err != nil {
					t.Error(err)
				}
				if _, err := r.Get(t.Context(), "c1", ""); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(filepath.Join(r.root, "mnt", "c1", "a")); err != nil {
					t.Error(err)
				}
				if err := r.Put("c1"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if r.mounted("c1") {
		t.Error("a mount is left")
	}
}

func TestDiffMayBePipedIntoApplyDiff(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: strings.Repeat("a", 1<<20)}))
	must(t, r.Create(graphdriver.CreateArgs{ID: "copy"}))
	rc, err := r.Diff(t.Context(), "base", "")
	must(t, err)
	defer rc.Close()
	_, err = r.ApplyDiff(t.Context(), "copy", "", rc)
	must(t, err)
	if d := cmp.Diff(list(t, r.diff("base")), list(t, r.diff("copy"))); d != "" {
		t.Errorf("-base +copy\n%s", d)
	}
}

const descriptor = `{"version":"1.0","layers":[{"digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","url":"cvmfs://x.example.org/layers/a"}]}`

func TestThinLayerIsComposedWithWhatLiesBelow(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.apply("thin1", "base", tarOf(t, file{Name: "./", Kind: tar.TypeDir}, file{Name: "./thin.json", Body: descriptor}))
	if len(r.composer.Chains) != 1 {
		t.Fatalf("composed %d times, want once", len(r.composer.Chains))
	}
	chain := r.composer.Chains[0]
	if len(chain) != 2 || chain[0].ID != "base" || chain[0].Diff != r.diff("base") || chain[1].Thin == nil ||
		chain[1].Thin.Layers[0].Path != "/layers/a" {
		t.Errorf("composed %+v", chain)
	}
	if b, err := os.ReadFile(filepath.Join(r.get("thin1"), "thin.json")); string(b) != descriptor {
		t.Errorf("the descriptor as it is exported: %q, %v", b, err)
	}
	m, err := r.Metadata("thin1")
	must(t, err)
	if m["Image"] != "key2" {
		t.Errorf("metadata: %v", m)
	}
	// The image goes with the last layer that names it.
	r.apply("thin2", "base", tarOf(t, file{Name: "thin.json", Body: descriptor}))
	must(t, r.Remove("thin1"))
	if len(r.composer.Images) != 1 {
		t.Error("an image was removed that a layer names")
	}
	must(t, r.Remove("thin2"))
	if len(r.composer.Images) != 0 {
		t.Error("an image was kept that no layer names")
	}
}

func TestThinLayerWaitsForTheNetwork(t *testing.T) {
	r := newRig(t)
	r.composer.Fail(fmt.Errorf("get catalog: %w", fetch.ErrUnavailable))
	r.apply("thin1", "", tarOf(t, file{Name: "thin.json", Body: descriptor}))
	must(t, r.Create(graphdriver.CreateArgs{ID: "c1", Parent: "thin1", Writable: true}))
	if _, err := r.Get(t.Context(), "c1", ""); !errors.Is(err, fetch.ErrUnavailable) {
		t.Errorf("Get without a network: %v", err)
	}
	if r.mounted("c1") {
		t.Error("mounted all the same")
	}
}

func TestThinLayerThatMayNotBeUsedIsRefused(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		name, body string
		err        error
		want       string
	}{
		{
			"by the configuration", descriptor, errors.New("repository x.example.org is not configured"),
			"not configured",
		},
		{"for its path", strings.Replace(descriptor, "/layers/a", "/layers/../a", 1), nil, ".."},
		{"for its version", strings.Replace(descriptor, `"layers"`, `"min_version":"2.0","layers"`, 1), nil, "2.0"},
		{"for its size", descriptor + strings.Repeat(" ", 1<<20), nil, "limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.composer.Fail(c.err)
			must(t, r.Create(graphdriver.CreateArgs{ID: "thin1"}))
			_, err := r.ApplyDiff(t.Context(), "thin1", "",
				bytes.NewReader(tarOf(t, file{Name: "thin.json", Body: c.body})))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if left := list(t, r.diff("thin1")); len(left) > 0 {
				t.Errorf("content was left: %v", left)
			}
		})
	}
}

func TestLayerWithMoreThanADescriptorIsOrdinary(t *testing.T) {
	r := newRig(t)
	for id, files := range map[string][]file{
		"two":     {{Name: "thin.json", Body: descriptor}, {Name: "b"}},
		"deeper":  {{Name: "d/thin.json", Body: descriptor}},
		"link":    {{Name: "thin.json", Kind: tar.TypeSymlink, Link: "x"}},
		"other":   {{Name: "thin.json", Body: `{"some":"thing"}`}},
		"nothing": {},
	} {
		r.apply(id, "", tarOf(t, files...))
	}
	if len(r.composer.Chains) != 0 {
		t.Errorf("composed %v", r.composer.Chains)
	}
}
