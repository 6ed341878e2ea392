package e2e

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// onSnapshotter returns a stand of the test's own whose engine has the snapshotter, with both images loaded.
func onSnapshotter(t *testing.T, stack engine.Stack, o stand.Options) user {
	t.Helper()
	o.Tools = stackTools(t, stack)
	o.Snapshotter, o.Testdata = shared.snapshotter(), testutil.Data(t)
	t.Parallel()
	u := own(t, func() (*stand.Stand, error) { return stand.NewSnapshotter(t.Context(), o) })
	u.same("the storage driver", u.docker("info", "--format", "{{.Driver}}"), stand.Snapshotter)
	u.load("tiny.tar")
	u.load("thin_tiny.tar")
	return u
}

// stackTools returns a stack's programs, or skips the test.
func stackTools(t *testing.T, stack engine.Stack) *engine.Tools {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skipf("needs an amd64 machine: the reference images' program is for it, this is %s", runtime.GOARCH)
	}
	if err := engine.Supported(); err != nil {
		t.Skip(err)
	}
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	found, err := stack.Find(t.Context(), cache)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skipf("needs %v: %v", stack, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.make(); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestEveryOperationWorksWithTheSnapshotter(t *testing.T) {
	for _, view := range []string{"erofs", "fuse"} {
		t.Run(view, func(t *testing.T) { onSnapshotter(t, engine.Stack29on21, inView(view)).every(operations) })
	}
}

func TestTheSnapshotterWorksOnOtherEnginesAndContainerds(t *testing.T) {
	for _, stack := range []engine.Stack{engine.Stack28on21, engine.Stack29on17, engine.Stack29on24} {
		t.Run(stack.String(), func(t *testing.T) {
			u := onSnapshotter(t, stack, stand.Options{})
			if version := u.docker("version", "--format", "{{.Server.Version}}"); !strings.HasPrefix(version,
				stack.Docker+".") {
				t.Errorf("the engine is %s", version)
			}
			u.same("a thin container", u.run(stand.Thin), u.run(stand.Ordinary))
			for _, image := range u.mixtures()[:2] {
				u.each(image, short())
			}
		})
	}
}
