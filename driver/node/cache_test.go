package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
)

// mountedImages is a face whose mounts read from these images.
type mountedImages map[string]bool

func (mountedImages) Mounts() []status.Mount                      { return nil }
func (mountedImages) Kubernetes() bool                            { return false }
func (mountedImages) Names(context.Context) (status.Names, error) { return status.Names{}, nil }
func (m mountedImages) Images() (map[string]bool, error)          { return m, nil }
func (m mountedImages) Mapped() ([]Mapped, error)                 { return nil, nil }

func TestObjectStoreIsToldWhichImagesAreMounted(t *testing.T) {
	dir := t.TempDir() + "/[data]" // any name: it is the engine's
	n, err := Open(Config{Root: dir + "/m", Run: dir + "/r", Kernel: fakeKernel{}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, d := range []string{
		n.Path("images", "idle"), n.Path("images", "mounted"), n.Path("images", "shown"),
		n.Path("images", ".new-half"),
		n.run("shared", "shown.erofs"), n.run("shared", "idle.fuse"), // nothing of the store is held by the latter
	} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	want := func(mounted ...bool) (list []objects.Image) {
		for i, key := range []string{"idle", "mounted", "shown"} {
			table := n.Path("images", key, "objects")
			if err := os.WriteFile(table, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			list = append(list, objects.Image{Key: key, Table: table, Mounted: mounted[i]})
		}
		return list
	}
	check := func(when string, want []objects.Image) {
		t.Helper()
		got, err := cachedImages{n}.Images()
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", when, err, diff)
		}
	}
	half := n.Path("images", ".new-half", "objects")
	if err := os.WriteFile(half, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("before the engine has said anything", want(true, true, true))
	n.current = &configuration{face: mountedImages{"mounted": true}}
	check("then", want(false, true, true))
}

// configuredBy opens a node below a folder, with a folder of CernVM-FS configuration.
func configuredBy(t *testing.T, dir, configuration string) *Node {
	t.Helper()
	n, err := Open(Config{
		Root: dir + "/m", Run: dir + "/r", Kernel: fakeKernel{}, Configuration: configuration,
		Defaults: func() ([]byte, error) { return nil, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestTheCacheIsLimitedByTheOptionOrElseTheSitesConfiguration(t *testing.T) {
	dir := t.TempDir()
	etc := dir + "/etc"
	if err := os.Mkdir(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	n := configuredBy(t, dir, etc)
	limits := func(text string, s Settings) (limit, floor, size int64, by string) {
		t.Helper()
		if err := os.WriteFile(etc+"/default.local", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := n.limitCache(&configuration{settings: s, face: mountedImages{}}); err != nil {
			t.Fatal(err)
		}
		st, err := n.CacheStatus()
		if err != nil {
			t.Fatal(err)
		}
		return st.Limit, st.Floor, st.Size, st.LimitBy
	}
	limit, floor, size, by := limits("", Settings{})
	if limit != size/2 || floor != min(size/20, 50<<30) || by != "half of the file system" {
		t.Errorf("by default: %d, %d of %d, %s", limit, floor, size, by)
	}
	limit, floor, _, by = limits("CVMFS_QUOTA_LIMIT=300\n", Settings{CacheFloor: 70 << 20})
	if limit != 300<<20 || floor != 70<<20 || by != "CVMFS_QUOTA_LIMIT (/etc/cvmfs/default.local:1)" {
		t.Errorf("by the site: %d, %d, %s", limit, floor, by)
	}
	if limit, _, _, by = limits("CVMFS_QUOTA_LIMIT=300\n", Settings{CacheLimit: 100 << 20}); limit != 100<<20 || by != "storage option cvmfs.cache-limit" {
		t.Errorf("by the option: %d, %s", limit, by)
	}
	if limit, _, size, by = limits("CVMFS_QUOTA_LIMIT=0\n", Settings{}); limit != size {
		t.Errorf("without a limit: %d of %d, %s", limit, size, by)
	}
	if limit, _, size, by = limits("if\n", Settings{}); limit != size/2 { // the rest is read on
		t.Errorf("of files that can't be read: %d of %d, %s", limit, size, by)
	}
}

// withKubelet is a face that tells of kubelet's snapshots once there are some.
type withKubelet struct {
	mountedImages
	some bool
}

func (w *withKubelet) Kubernetes() bool { return w.some }

// Kubelet's first snapshot has the cache give way, also where no file of the configuration has changed.
func TestTheCacheGivesWayFromKubeletsFirstSnapshotOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := configuredBy(t, dir, dir+"/etc")
	kubelet := &withKubelet{}
	yield := func() int64 {
		t.Helper()
		if err := n.limitCache(&configuration{face: kubelet}); err != nil {
			t.Fatal(err)
		}
		st, err := n.CacheStatus()
		if err != nil {
			t.Fatal(err)
		}
		return st.Yield
	}
	for end := time.Now().Add(30 * time.Second); !n.quotaSeen.Same(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the configuration is read again each time")
		}
		if got := yield(); got != 0 {
			t.Fatalf("without kubelet: %d", got)
		}
	}
	for _, is := range []bool{true, false, true} {
		if kubelet.some = is; (yield() > 0) != is {
			t.Errorf("kubelet %t: %d", is, yield())
		}
	}
}

func TestReloadLimitsTheCacheAsTheFilesSayThen(t *testing.T) {
	dir := t.TempDir()
	etc := dir + "/etc"
	if err := os.Mkdir(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	n := configuredBy(t, dir, etc)
	c := &configuration{face: mountedImages{}}
	if err := n.newComposer(c); err != nil {
		t.Fatal(err)
	}
	n.current = c
	if err := os.WriteFile(etc+"/default.local", []byte("CVMFS_QUOTA_LIMIT=300\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err := n.CacheStatus()
	if err != nil || st.Limit != 300<<20 || st.LimitBy != "CVMFS_QUOTA_LIMIT (/etc/cvmfs/default.local:1)" {
		t.Errorf("%d by %s, %v", st.Limit, st.LimitBy, err)
	}
	if list, err := n.CacheList(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := n.CachePrewarm(t.Context(), "none", func(objects.Completion) {}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an image that isn't there: %v", err)
	}
	if v, err := n.CacheVerify(t.Context(), "", func(objects.Verified) {}); err != nil || v.Objects != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	if removed, err := n.CacheClean(t.Context(), objects.CleanOptions{}); err != nil || removed.Objects != 0 {
		t.Errorf("%+v, %v", removed, err)
	}
	if err := n.CachePin("none", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an image that isn't there: %v", err)
	}
}

// While files are read again the engine may be started with other options: these count in the end.
func TestReloadLimitsTheCacheByTheSettingsThatHold(t *testing.T) {
	dir := t.TempDir()
	n := configuredBy(t, dir, dir)
	set := func(limit int64) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.current = &configuration{settings: Settings{CacheLimit: limit}, face: mountedImages{}}
	}
	set(100 << 20)
	n.limiting.Lock()
	done := make(chan error)
	go func() {
		_, err := n.Reload(t.Context())
		done <- err
	}()
	time.Sleep(100 * time.Millisecond) // so that it waits
	set(200 << 20)
	n.limiting.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if st, err := n.CacheStatus(); err != nil || st.Limit != 200<<20 {
		t.Errorf("%+v, %v", st, err)
	}
}

func (mountedImages) ThinImage(context.Context, control.ImageToThin, func([]string) (control.ThinLayer, error)) (
	control.ThinImage, error,
) {
	return control.ThinImage{}, nil
}
