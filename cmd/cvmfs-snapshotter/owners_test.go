package main

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/fusetest"
)

// shifted returns the labels that have owners shifted.
func shifted(by int) snapshots.Opt {
	ranges := fmt.Sprintf("0:%d:65536", by)
	return snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: ranges, snapshots.LabelSnapshotGIDMapping: ranges,
	})
}

var ownersOf = regexp.MustCompile(`(?m)^(\S* \S+ )(\d+):(\d+)`)

// shift returns the lines of tree with other owners.
func shift(lines []string, by int) []string {
	plus := func(s string) string { n, _ := strconv.Atoi(s); return strconv.Itoa(n + by) }
	text := ownersOf.ReplaceAllStringFunc(strings.Join(lines, "\n"), func(s string) string {
		m := ownersOf.FindStringSubmatch(s)
		return m[1] + plus(m[2]) + ":" + plus(m[3])
	})
	return strings.Split(text, "\n")
}

// The owners of an image are mapped in containers that ask for it, whatever shows the image, and others see them as
// they are.
func TestOwnersAreMapped(t *testing.T) {
	fusetest.NeedMappedOwners(t)
	forRungs(t, testMapped)
}

func testMapped(t *testing.T, r rung) {
	const by = 200000
	d := start(t, r)
	d.unpack("below", "", layer(t, file{Name: "below", Body: "below", UID: 7, GID: 8}))
	d.unpackThin("thin", "below")
	d.unpack("above", "thin", layer(t, file{Name: "above", Body: "above", UID: 1000, GID: 2000}))
	d.unpack("ordinary", "below", layer(t, file{Name: "d", Kind: tar.TypeDir, UID: 5, GID: 6}))
	for _, image := range []string{"thin", "above", "below", "ordinary"} {
		want := shift(tree(t, d.mount(d.View(t.Context(), "plain "+image, image))), by)
		// A client of Docker's, whose containers have the files of a thin image by data-only layers where the kernel
		// takes that, and one of Kubernetes'.
		for _, key := range []string{"moby/1/" + image, "k8s.io/2/" + image} {
			dir := d.mount(d.Prepare(t.Context(), key, image, shifted(by)))
			if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
				t.Errorf("%s:\n%s", key, diff)
			}
			must(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o600))
			view := d.mount(d.View(t.Context(), "view of "+key, image, shifted(by)))
			if diff := cmp.Diff(want, tree(t, view)); diff != "" {
				t.Errorf("view of %s:\n%s", key, diff)
			}
		}
	}
}

// What owners are mapped by is there again after a restart and after a reboot, and goes with the snapshots.
func TestMappedOwnersOutliveServersAndReboots(t *testing.T) {
	fusetest.NeedMappedOwners(t)
	forRungs(t, testMappedLives)
}

func testMappedLives(t *testing.T, r rung) {
	d := start(t, r)
	d.unpackThin("thin", "")
	d.unpack("above", "thin", layer(t, file{Name: "above", Body: "above", UID: 1000, GID: 2000}))
	for n, by := range []int{200000, 300000} {
		_, err := d.Prepare(t.Context(), fmt.Sprint("moby/1/c", n), "above", shifted(by))
		must(t, err)
	}
	mounts, err := d.Prepare(t.Context(), "k8s.io/2/c2", "above", shifted(200000))
	running := d.mount(mounts, err)
	want := tree(t, running)
	must(t, unix.Kill(d.server(), unix.SIGKILL))
	if diff := cmp.Diff(want, tree(t, running)); diff != "" {
		t.Errorf("after the server was killed:\n%s", diff)
	}
	d.stop()
	for _, dir := range d.mapped() { // as a reboot does
		must(t, unix.Unmount(dir, unix.MNT_DETACH))
	}
	d.launch()
	for key, by := range map[string]int{"moby/1/c0": 0, "moby/1/c1": 100000, "k8s.io/2/c2": 0} {
		if diff := cmp.Diff(shift(want, by), tree(t, d.mount(d.Mounts(t.Context(), key)))); diff != "" {
			t.Errorf("%s after a reboot:\n%s", key, diff)
		}
	}
	if n := len(d.mapped()); n == 0 {
		t.Error("nothing is mounted with mapped owners")
	}
	must(t, d.Remove(t.Context(), "moby/1/c1"))
	must(t, d.Snapshotter.(snapshots.Cleaner).Cleanup(t.Context()))
	if n := len(d.mapped()); n == 0 {
		t.Error("nothing is mounted with the owners of what stays")
	}
	must(t, d.Remove(t.Context(), "moby/1/c0"))
	must(t, d.Remove(t.Context(), "k8s.io/2/c2"))
	must(t, unix.Kill(d.server(), unix.SIGKILL)) // before anybody says Cleanup
	eventually(t, "the next server takes off what nobody needs", func() bool { return len(d.mapped()) == 0 })
}

// mapped lists what is mounted with mapped owners.
func (d *daemon) mapped() (dirs []string) {
	d.t.Helper()
	for _, pattern := range []string{"mapped/*", "images/*.*", "shared/*.*.*"} {
		found, err := filepath.Glob(filepath.Join(d.dir, "r", "run", pattern))
		must(d.t, err)
		dirs = append(dirs, found...)
	}
	return dirs
}

func TestMappedOwnersAreRefusedWhereTheKernelCant(t *testing.T) {
	d := start(t, rung{"auto", "mapped"})
	d.unpack("below", "", layer(t, file{Name: "below", Body: "below"}))
	_, err := d.Prepare(t.Context(), "c", "below", shifted(200000))
	if err == nil || !strings.Contains(err.Error(), "take remap-ids out of the snapshotter's capabilities") {
		t.Error(err)
	}
	if _, err := d.Stat(t.Context(), "c"); err == nil {
		t.Error("there is a snapshot all the same")
	}
}
