package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// findings returns what doctor finds of the snapshotter, by id.
func (u user) findings() (ids []string) {
	u.Helper()
	plan := preflight.Plan{
		Host: "unix://" + u.Engine.Socket(), Name: stand.Snapshotter, Snapshots: true, DataRoot: u.Snapshots(),
		CVMFSConfig: u.Config, Snapshotter: u.ControlSocket(), Containerd: u.Engine.Containerd.Socket(),
	}
	for _, f := range preflight.Judge(preflight.Gather(u.Context(), plan), plan) {
		if strings.HasPrefix(f.ID, "snapshotter.") {
			ids = append(ids, f.ID)
		}
	}
	return ids
}

// finds fails a test where doctor finds something else.
func (u user) finds(when string, want ...string) {
	u.Helper()
	if got := u.findings(); !slices.Equal(got, want) {
		u.Errorf("%s: doctor finds %q, want %q", when, got, want)
	}
}

// removeData has what is in a folder go, and what is mounted there, as somebody does who wants its space.
func (u user) removeData(dir string) {
	u.Helper()
	const script = `awk -v d="$PWD/" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo | tac | xargs -r umount --lazy
find . -mindepth 1 -delete`
	if out, err := u.Engine.Inside(u.Context(), dir, script).CombinedOutput(); err != nil {
		u.Fatalf("remove %s: %v: %s", dir, err, out)
	}
}

// Each side's data may go without the other's. doctor says so, and its remedy is one: images run again.
func TestLostDataIsRecognised(t *testing.T) {
	for _, stack := range []engine.Stack{
		engine.Stack29on21, engine.Stack28on21, engine.Stack29on17, engine.Stack29on24,
	} {
		t.Run("the snapshotter's, "+stack.String(), func(t *testing.T) { snapshotsAreLost(t, stack) })
	}
	t.Run("containerd's", func(t *testing.T) { containerdsAreLost(t, engine.Stack29on21) })
}

// published returns names of both images in a registry.
func (u user) published() []string {
	u.Helper()
	registry := testutil.NewRegistry(u, "", "")
	var names []string
	for _, image := range []string{stand.Ordinary, stand.Thin} {
		name := registry.Host + "/" + image
		u.docker("tag", image, name)
		u.docker("push", name)
		u.docker("rmi", image, name)
		u.docker("pull", name)
		names = append(names, name)
	}
	return names
}

func snapshotsAreLost(t *testing.T, stack engine.Stack) {
	u := onSnapshotter(t, stack, stand.Options{})
	want := u.run(stand.Ordinary)
	images := u.published()
	id := u.docker("create", images[1], "/bin/hello")
	u.finds("at first")
	u.must(u.Snapshotter.Stop(t.Context()))
	u.removeData(u.Snapshots())
	u.must(u.StartSnapshotter(t.Context()))
	u.finds("without the snapshotter's folder", "snapshotter.lost")
	u.refuses("", "run", "--rm", images[0])
	u.docker("rm", id)
	for _, image := range images {
		u.docker("rmi", image)
	}
	u.eventually("nothing is lost any more", func() error {
		if found := u.findings(); len(found) > 0 {
			return fmt.Errorf("doctor finds %q", found)
		}
		return nil
	})
	for _, image := range images {
		u.docker("pull", image)
		u.same(image+" pulled again", u.run(image), want)
	}
	u.finds("at last")
}

func containerdsAreLost(t *testing.T, stack engine.Stack) {
	u := onSnapshotter(t, stack, stand.Options{})
	want := u.run(stand.Ordinary)
	images := u.published()
	u.must(u.Engine.Stop(t.Context()))
	u.must(u.Engine.Containerd.Stop(t.Context()))
	u.removeData(u.Engine.Containerd.Root())
	u.must(u.Engine.Containerd.Start(t.Context()))
	u.finds("without containerd's folder", "snapshotter.unknown")
	u.must(u.Start(t.Context()))
	for _, image := range images {
		u.docker("pull", image)
		u.same(image+" pulled again", u.run(image), want)
	}
	u.docker("image", "prune", "--all", "--force")
	u.eventually("the snapshotter keeps nothing", func() error {
		node := preflight.Gather(t.Context(), preflight.Plan{Snapshotter: u.ControlSocket()}).Snapshotter
		if node == nil || node.State.Layers > 0 {
			return fmt.Errorf("it is %+v", node)
		}
		return nil
	})
}
