package graphdriver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/node/nodetest"
	"cvmfs-graphdriver/test/testutil"
)

// files stands in for the objects of composed images.
type files struct {
	mu      sync.Mutex
	asked   []string
	results []error // of Complete, one after the other; nil for an object that can't be had. Then all is there.
	hang    bool    // Complete goes on until its context ends
	share   objects.Share
}

func (f *files) Local(string) (objects.Share, error) { return f.share, nil }

func (f *files) Complete(ctx context.Context, image string) (objects.Completion, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, image)
	if f.hang {
		<-ctx.Done()
		return objects.Completion{}, context.Cause(ctx)
	}
	if len(f.results) == 0 {
		return objects.Completion{Fetched: 1}, nil
	}
	err := f.results[0]
	f.results = f.results[1:]
	return objects.Completion{Failed: 1}, err
}

// record changes the record of an open layer: image it reads from, generation and count.
func (r *rig) record(id, image, generation string, refs int) {
	r.t.Helper()
	r.opened(id, fmt.Sprintf(`{"refs":%d,"generation":%q,"image":%q}`, refs, generation, image))
}

// abandon makes a rig with two mounted layers of a thin image, as the plugin's restart leaves them, and opens the store
// anew.
func abandon(t *testing.T, f *files) *rig {
	t.Helper()
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.composer.Images = map[string]*images.Image{"k": {Key: "k"}}
	for _, id := range []string{"c1", "c2", "other"} {
		r.container(id, "base")
	}
	r.record("c1", "k", "before", 1)
	r.record("c2", "k", "before", 1)
	r.objects = f
	r.reopen()
	return r
}

func run(t *testing.T, r *rig) (ended chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan struct{})
	go func() {
		r.Run(ctx)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return ended
}

func wait(t *testing.T, ended chan struct{}) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
}

func TestWhatStrandedLayersMissIsFetchedInTheBackground(t *testing.T) {
	f := &files{results: []error{fmt.Errorf("get object: %w", fetch.ErrUnavailable), nil}}
	r := abandon(t, f)
	wait(t, run(t, r))
	if d := cmp.Diff([]string{"k", "k", "k"}, f.asked); d != "" {
		t.Errorf("fetched, after two failures: -want +got\n%s", d)
	}
	for _, id := range []string{"c1", "c2", "other"} {
		if !r.mounted(id) {
			t.Errorf("%s was unmounted", id)
		}
	}
}

func TestStrandedLayersThatAreClosedEndTheFetching(t *testing.T) {
	for name, end := range map[string]func(*rig) error{
		"put":    func(r *rig) error { return errors.Join(r.Put("c1"), r.Put("c2")) },
		"remove": func(r *rig) error { return errors.Join(r.Remove("c1"), r.Remove("c2")) },
		"init":   func(r *rig) error { return r.Init(graphdriver.InitArgs{Home: "/mnt/x"}) },
	} {
		t.Run(name, func(t *testing.T) {
			r := abandon(t, &files{hang: true})
			ended := run(t, r)
			must(t, r.Put("other"))
			time.Sleep(20 * time.Millisecond)
			select {
			case <-ended:
				t.Error("ended while layers were open")
			default:
			}
			must(t, end(r))
			wait(t, ended)
		})
	}
}

func TestNothingIsFetchedForLayersItIsNoUseTo(t *testing.T) {
	f := &files{}
	r := abandon(t, f)
	r.record("c1", "k", "first", 1) // of this life
	r.opened("other", `{"refs":1,"generation":"before","image":"k","view":"fuse"}`)
	must(t, r.cfg.Kernel.Unmount(filepath.Join(r.root, "mnt", "c2")))
	r.reopen()
	wait(t, run(t, r))
	if len(f.asked) > 0 {
		t.Errorf("fetched %v", f.asked)
	}
}

// An engine that is killed calls no Put, and one that meets a plugin's crash calls Get twice.
func TestMountThatOutlivesTheEngineCountsForOneGet(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.container("c1", "base")
	r.container("c2", "base")
	for range 3 {
		r.get("c1")
	}
	must(t, r.cfg.Kernel.Unmount(filepath.Join(r.root, "mnt", "c2"))) // by somebody else
	for range 2 {
		must(t, r.Init(graphdriver.InitArgs{Home: "/mnt/x"})) // a new engine, which repeats itself
	}
	if !r.mounted("c1") {
		t.Fatal("a container that outlived the engine lost its root")
	}
	// The new engine looks at what it finds, and stops it.
	r.get("c1")
	must(t, r.Put("c1"))
	if !r.mounted("c1") {
		t.Error("unmounted under a running container")
	}
	must(t, r.Put("c1"))
	if r.mounted("c1") {
		t.Error("the mount is left over")
	}
	if mounts := r.report().Store.Mounts; len(mounts) > 0 {
		t.Errorf("%+v", mounts)
	}
}

// successive composers log their lives.
type successor struct {
	nodetest.Composer
	name string
	log  *[]string
}

func (s *successor) Image(key string) (*images.Image, error) {
	*s.log = append(*s.log, s.name+" loads "+key)
	return &images.Image{Key: key}, nil
}

func (s *successor) Describe(key string) (*images.Image, error) {
	return &images.Image{Key: key}, nil
}
func (s *successor) Close() { *s.log = append(*s.log, s.name+" ends") }

func TestOtherOptionsReplaceTheComposer(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.container("c1", "base")
	r.record("c1", "k", "first", 1)
	var log []string
	n := 0
	r.cfg.NewComposer = func(node.Settings) (node.Composer, error) {
		n++
		return &successor{name: fmt.Sprint(n), log: &log}, nil
	}
	r.reopen()
	for _, opts := range [][]string{
		nil,
		{},
		{"cvmfs.repositories=a.example.org"},
		{"cvmfs.repositories=a.example.org"},
	} {
		must(t, r.Init(graphdriver.InitArgs{Opts: opts}))
	}
	if err := r.Init(graphdriver.InitArgs{Opts: []string{"cvmfs.repositories=*"}}); err == nil {
		t.Error("nonsense was taken")
	}
	want := []string{"1 loads k", "2 loads k", "1 ends"}
	if d := cmp.Diff(want, log); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestMetadataSaysWhatAThinChainIsMadeOf(t *testing.T) {
	r := newRig(t)
	r.objects = &files{share: objects.Share{Objects: 12, Of: 340, Bytes: 3_140_000, OfBytes: 820_500_000}}
	r.reopen()
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.apply("thin", "base", tarOf(t, file{Name: "thin.json", Body: descriptor}))
	r.apply("above", "thin", tarOf(t, file{Name: "b", Body: "b"}))
	r.composer.Images["key2"].Layers = []images.Pin{
		{FQRN: "b.example.org", Path: "/layers/1", Revision: 7},
		{FQRN: "a.example.org", Path: "/layers/2", Revision: 9},
		{FQRN: "b.example.org", Path: "/layers/3", Revision: 7},
	}
	must(t, r.Create(graphdriver.CreateArgs{ID: "c1", Parent: "above", Writable: true}))
	image := map[string]string{
		"erofs": "images/key2", "erofs by two overlays": "shared/key2.erofs",
		"fuse": "shared/key2.fuse",
	}[testutil.KnownView()]
	want := map[string]string{
		"UpperDir": r.diff("c1"), "WorkDir": filepath.Join(r.root, "layers/c1/work"),
		"MergedDir": filepath.Join(r.root, "mnt/c1"),
		"LowerDir":  r.diff("above") + ":" + filepath.Join(r.run, image), "Image": "key2",
		"Repositories": "a.example.org@9 b.example.org@7",
		"Folders":      "cvmfs://b.example.org/layers/1 cvmfs://a.example.org/layers/2 cvmfs://b.example.org/layers/3",
		"Local":        "12 of 340 objects, 3.1 of 820.5 MB",
	}
	got, err := r.Metadata("c1")
	must(t, err)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	r.objects = &files{share: objects.Share{
		Objects: 4_000, Of: 250_000, Bytes: 1 << 20, OfBytes: 1 << 30,
		Estimated: true,
	}}
	r.reopen()
	if got, err = r.Metadata("c1"); err != nil ||
		got["Local"] != "about 4000 of 250000 objects, about 1.0 of 1073.7 MB" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestQuestionsHaveNoEffects(t *testing.T) {
	r := newRig(t)
	r.apply("base", "", tarOf(t, file{Name: "a", Body: "a"}))
	r.apply("thin", "", tarOf(t, file{Name: "thin.json", Body: descriptor}))
	var log []string
	r.cfg.NewComposer = func(node.Settings) (node.Composer, error) {
		return &successor{log: &log, name: "composer"}, nil
	}
	r.reopen()
	must(t, r.Create(graphdriver.CreateArgs{ID: "step", Parent: "base", Writable: true}))
	must(t, r.Create(graphdriver.CreateArgs{ID: "c1", Parent: "step", Writable: true}))
	r.get("step")
	must(t, r.Put("step")) // idle
	log = nil
	for _, id := range []string{"c1", "thin", "base", "step"} {
		_, err := r.Metadata(id)
		must(t, err)
		r.Exists(id)
	}
	if st := r.report(); st.Err != "" || st.Store.Thin != 1 {
		t.Errorf("%+v", st)
	}
	r.Status()
	if len(log) > 0 {
		t.Errorf("the composer was asked for more than a description: %v", log)
	}
	if mounted, err := r.cfg.Kernel.Mounted(filepath.Join(r.root, "mnt/step")); err != nil || !mounted {
		t.Errorf("a layer was unmounted by a question: %v", err)
	}
}

func TestStatusNamesWhatRemappingTakes(t *testing.T) {
	r := newRig(t)
	ids := []user.IDMap{{ID: 0, ParentID: 100000, Count: 65536}}
	must(t, r.Init(graphdriver.InitArgs{UIDMaps: ids, GIDMaps: ids}))
	if text := fmt.Sprint(r.Status()); !strings.Contains(text, "chmod 0711 <data-root>/100000.100000/plugins") {
		t.Error(text)
	}
}

func TestInitWithAThousandLayersIsQuick(t *testing.T) {
	r := newRig(t)
	folder := filepath.Join(r.root, "layers")
	for n := range 1000 {
		id := fmt.Sprintf("%064d", n)
		must(t, os.MkdirAll(filepath.Join(folder, id, "graph", id, "diff"), 0o755))
		must(t, unix.Lsetxattr(filepath.Join(folder, id), "trusted.cvmfs-graphdriver.layer",
			[]byte(`{"thin":true,"committed":true}`), 0))
	}
	began := time.Now()
	r.reopen()
	must(t, r.Init(graphdriver.InitArgs{Home: "/mnt/x"}))
	took := time.Since(began)
	t.Logf("1000 layers: Open and Init took %v", took)
	if took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestTwentyLayersComeAtOnce(t *testing.T) {
	r := newRig(t)
	var archives [20][]byte
	for n := range archives {
		archives[n] = tarOf(t, file{Name: fmt.Sprint("f", n), Body: strings.Repeat(fmt.Sprint(n%10), 100_000)},
			file{Name: "same", Body: fmt.Sprint(n)})
	}
	var wg sync.WaitGroup
	for n, a := range archives {
		wg.Go(func() {
			id := fmt.Sprint("l", n)
			err := r.Create(graphdriver.CreateArgs{ID: id})
			if err == nil {
				_, err = r.ApplyDiff(t.Context(), id, "", bytes.NewReader(a))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for n := range archives {
		if b, err := os.ReadFile(filepath.Join(r.diff(fmt.Sprint("l", n)), "same")); err != nil ||
			string(b) != fmt.Sprint(n) {
			t.Errorf("layer %d: %q, %v", n, b, err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(r.root, "layers"))
	if err != nil || len(entries) != len(archives) {
		t.Errorf("%d names, %v", len(entries), err)
	}
}
