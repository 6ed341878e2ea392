package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

// A server that is killed at any moment leaves every snapshot as it was answered for, and none that is half there.
func TestServersKilledDuringCallsLoseNothing(t *testing.T) {
	d := start(t, rung{view: "erofs"})
	d.unpack("base", "", layer(t, file{Name: "f", Body: "base"}))
	stop := make(chan struct{})
	var clients sync.WaitGroup
	answered := make([]map[string]snapshots.Kind, 2)
	for i := range answered {
		answered[i] = map[string]snapshots.Kind{}
		clients.Go(func() { d.churn(fmt.Sprint(i), answered[i], stop) })
	}
	for range 6 {
		time.Sleep(300 * time.Millisecond)
		must(t, syscall.Kill(d.server(), syscall.SIGKILL))
	}
	close(stop)
	clients.Wait()
	there := map[string]snapshots.Info{}
	must(t, d.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		there[info.Name] = info
		return nil
	}))
	for _, names := range answered {
		for name, kind := range names {
			if got, ok := there[name]; !ok || got.Kind != kind {
				t.Errorf("%s was answered to be %v, and is %v (%t)", name, kind, got.Kind, ok)
			}
		}
	}
	for name, info := range there {
		if info.Kind == snapshots.KindActive {
			mounts, err := d.Mounts(t.Context(), name)
			must(t, err)
			must(t, mount.WithTempMount(t.Context(), mounts, func(string) error { return nil }))
		}
	}
	folders, err := os.ReadDir(filepath.Join(d.dir, "r", "layers"))
	must(t, err)
	for _, f := range folders {
		if strings.HasPrefix(f.Name(), ".") {
			t.Errorf("%s is left", f.Name())
		}
	}
	if len(folders) != len(there) {
		t.Errorf("%d layers on disk, %d snapshots", len(folders), len(there))
	}
}

// churn makes, commits and removes snapshots, and notes what it was answered. A call whose connection broke is asked
// about again, as nobody knows whether it was done.
func (d *daemon) churn(who string, answered map[string]snapshots.Kind, stop chan struct{}) {
	ctx := context.Background()
	for n := 0; ; n++ {
		select {
		case <-stop:
			if len(answered) >= 5 { // a machine may be slow
				return
			}
		default:
		}
		key, name := fmt.Sprintf("key-%s-%d", who, n), fmt.Sprintf("name-%s-%d", who, n)
		if _, err := d.Prepare(ctx, key, "base"); err != nil && !errdefs.IsUnavailable(err) {
			d.t.Error(err)
			return
		} else if err != nil {
			continue
		}
		answered[key] = snapshots.KindActive
		if n%3 == 0 {
			continue
		}
		if err := d.Commit(ctx, name, key); err != nil {
			if !errdefs.IsUnavailable(err) {
				d.t.Error(err)
			}
			delete(answered, key)
			continue
		}
		delete(answered, key)
		answered[name] = snapshots.KindCommitted
		if n%3 == 1 {
			delete(answered, name)
			if err := d.Remove(ctx, name); err != nil && !errdefs.IsUnavailable(err) {
				d.t.Error(err)
			}
		}
	}
}

// A successor answers within a second, so that containerd gives up on no connection: on a machine that takes long for
// everything, as soon as the first server did.
func TestSuccessorsAnswerSoon(t *testing.T) {
	began := time.Now()
	d := start(t, rung{view: "erofs"})
	limit := max(time.Second, time.Since(began))
	for range 3 {
		time.Sleep(100 * time.Millisecond)
		pid := d.server()
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		began = time.Now()
		eventually(t, "an answer of the successor", func() bool {
			_, err := d.Stat(t.Context(), "none")
			return errdefs.IsNotFound(err) && d.server() != pid
		})
		if took := time.Since(began); took > limit {
			t.Errorf("a successor answers after %v, want %v", took, limit)
		}
	}
}

// A container reads on while its server is killed, what it hasn't read before included.
func TestContainersOutliveTheServer(t *testing.T) {
	forRungs(t, func(t *testing.T, r rung) {
		d := start(t, r)
		d.unpackThin("thin", "")
		dir := d.mount(d.Prepare(t.Context(), "c", "thin"))
		must(t, syscall.Kill(d.server(), syscall.SIGKILL))
		if lines := tree(t, dir); len(lines) < 20 {
			t.Errorf("%d files", len(lines))
		}
	})
}

// An overlay whose image isn't mounted where it is made is an error, and what Mounts returns is mounted again.
func TestLostMountsAreErrorsUntilMountsIsCalled(t *testing.T) {
	forRungs(t, func(t *testing.T, r rung) {
		d := start(t, r)
		d.unpackThin("thin", "")
		want := tree(t, d.mount(d.Prepare(t.Context(), "c", "thin")))
		mounts, err := d.Prepare(t.Context(), "lost", "thin")
		must(t, err)
		for _, dir := range []string{"shared", "images"} {
			entries, err := os.ReadDir(filepath.Join(d.dir, "r", "run", dir))
			must(t, err)
			for _, e := range entries {
				must(t, unix.Unmount(filepath.Join(d.dir, "r", "run", dir, e.Name()), unix.MNT_DETACH))
			}
		}
		if err := mount.All(mounts, t.TempDir()); !errors.Is(err, unix.ENOENT) {
			t.Fatalf("mounted without the image: %v", err)
		}
		again := d.mount(d.Mounts(t.Context(), "lost"))
		if got := tree(t, again); len(got) != len(want) {
			t.Errorf("%d files, want %d", len(got), len(want))
		}
	})
}

// A daemon that is started anew has another FUSE mount, and what stood on the former one is mounted again.
func TestRestartsMountAgain(t *testing.T) {
	forRungs(t, func(t *testing.T, r rung) {
		d := start(t, r)
		d.unpackThin("thin", "")
		_, err := d.Prepare(t.Context(), "c", "thin", snapshots.WithLabels(map[string]string{"a": "b"}))
		must(t, err)
		d.restart()
		info, err := d.Stat(t.Context(), "c")
		must(t, err)
		if info.Kind != snapshots.KindActive || info.Parent != "thin" || info.Labels["a"] != "b" {
			t.Errorf("%+v", info)
		}
		if lines := tree(t, d.mount(d.Mounts(t.Context(), "c"))); len(lines) < 20 {
			t.Errorf("%d files", len(lines))
		}
	})
}

// Where the repository can't be reached a thin layer is accepted, and composed when it is needed first.
func TestThinLayersAreAcceptedOffline(t *testing.T) {
	dir := testutil.Repository(t, fqrn)
	d := startAt(t, rung{view: "erofs"},
		map[string]string{fqrn: "http://" + testutil.ClosedAddress(t, "127.0.0.1") + "/cvmfs/" + fqrn})
	d.unpackThin("thin", "")
	if _, err := d.Prepare(t.Context(), "c", "thin"); err == nil || !strings.Contains(err.Error(), fqrn) {
		t.Fatalf("a container without its image: %v", err)
	}
	if _, err := d.Stat(t.Context(), "c"); !errdefs.IsNotFound(err) {
		t.Errorf("what failed is there: %v", err)
	}
	d.urls[fqrn] = testutil.Serve(t, dir)
	d.restart()
	if lines := tree(t, d.mount(d.Prepare(t.Context(), "c", "thin"))); len(lines) < 20 {
		t.Errorf("%d files", len(lines))
	}
}

// What is wrong with a thin image is told to who pulls it.
func TestWrongThinLayersAreRefused(t *testing.T) {
	d := start(t, rung{view: "erofs"})
	wrong := strings.ReplaceAll(referenceimage.Descriptor(t), fqrn, "unknown.example.org")
	err := d.tryUnpack("thin", "", layer(t, file{Name: "thin.json", Body: wrong}))
	if err == nil || !strings.Contains(err.Error(), "unknown.example.org") {
		t.Fatalf("%v", err)
	}
	if _, err := d.Stat(t.Context(), "thin"); !errdefs.IsNotFound(err) {
		t.Errorf("it is committed: %v", err)
	}
	must(t, d.Remove(t.Context(), "extract-1-x thin"))
}

// Images that no snapshot needs any more leave nothing behind.
func TestRemovedImagesLeaveNothing(t *testing.T) {
	forRungs(t, func(t *testing.T, r rung) {
		d := start(t, r)
		d.unpackThin("thin", "")
		_, err := d.View(t.Context(), "v", "thin")
		must(t, err)
		if err := d.Remove(t.Context(), "thin"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("removed from below a view: %v", err)
		}
		must(t, d.Snapshotter.(snapshots.Cleaner).Cleanup(t.Context()))
		if n := d.count("run/images") + d.count("run/shared"); n == 0 {
			t.Error("the view's image isn't mounted any more")
		}
		must(t, d.Remove(t.Context(), "v"))
		must(t, d.Snapshotter.(snapshots.Cleaner).Cleanup(t.Context()))
		if n := d.count("run/images") + d.count("run/shared"); n != 0 {
			t.Errorf("%d mounts stay that nobody needs", n)
		}
		must(t, d.Remove(t.Context(), "thin"))
		if n := d.count("images") + d.count("layers"); n != 0 {
			t.Errorf("%d images and layers stay", n)
		}
	})
}

// count returns how many entries a folder below the root has.
func (d *daemon) count(dir string) int {
	d.t.Helper()
	entries, err := os.ReadDir(filepath.Join(d.dir, "r", dir))
	must(d.t, err)
	return len(entries)
}
