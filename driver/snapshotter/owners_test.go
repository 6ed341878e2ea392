package snapshotter_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/test/fusetest"
)

func mapped(uids, gids string) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: uids, snapshots.LabelSnapshotGIDMapping: gids,
	})
}

func TestMappingsAreReadStrictly(t *testing.T) {
	r := newRig(t, node.Settings{})
	const good = "0:200000:65536"
	var many []string
	for n := range 341 {
		many = append(many, fmt.Sprintf("%d:%d:1", n, 200000+2*n))
	}
	for n, ranges := range []string{
		"", "0", "0:1", "0:200000:65536:1", "a:b:c", "0:200000:65536,", " 0:200000:65536", "+0:200000:65536", "0:-1:5",
		"0:200000:0", "0x0:200000:1", "1:200001:65535", "0:4294967290:6", "0:200000:4294967296", "0:1:4294967295",
		"0:200000:10,5:300000:10", "0:200000:10,10:200005:10", strings.Join(many, ","),
	} {
		for _, opt := range []snapshots.Opt{mapped(ranges, good), mapped(good, ranges)} {
			if _, err := r.Prepare(t.Context(), fmt.Sprint("key", n), "", opt); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%.40q: %v", ranges, err)
			}
		}
	}
	half := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: good})
	if _, err := r.Prepare(t.Context(), "half", "", half); !errdefs.IsInvalidArgument(err) {
		t.Errorf("without groups: %v", err)
	}
	for n, ranges := range []string{good, "1:200001:9,0:300000:1", "0:0:4294967295", strings.Join(many[:340], ",")} {
		if _, err := r.Prepare(t.Context(), fmt.Sprint("good", n), "", mapped(ranges, ranges)); err != nil {
			t.Errorf("%.40q: %v", ranges, err)
		}
	}
	if got := r.walk(); got != "good0 good1 good2 good3" {
		t.Errorf("there are %s", got)
	}
}

// owner returns to whom a file belongs.
func owner(t *testing.T, elem ...string) string {
	t.Helper()
	info, err := os.Lstat(filepath.Join(elem...))
	must(t, err)
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// owned makes a committed snapshot of a file that belongs to somebody.
func (r *rig) owned(name, parent string, uid int) {
	r.t.Helper()
	mounts, err := r.Prepare(r.t.Context(), "key "+name, parent)
	must(r.t, err)
	must(r.t, mount.WithTempMount(r.t.Context(), mounts, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			return err
		}
		return os.Chown(filepath.Join(dir, name), uid, uid)
	}))
	must(r.t, r.Commit(r.t.Context(), name, "key "+name))
}

func TestOwnersAreMappedBySeveralRanges(t *testing.T) {
	fusetest.NeedMappedOwners(t)
	r := newRig(t, node.Settings{})
	r.owned("a", "", 0)
	r.owned("b", "a", 1000)
	r.owned("c", "b", 5000)
	ranges := mapped("0:300000:1,1:200001:1999", "0:400000:2000")
	mounts, err := r.Prepare(t.Context(), "active", "c", ranges)
	must(t, err)
	look := func(mounts []mount.Mount) map[string]string {
		dir, got := r.mount(mounts), map[string]string{}
		for _, name := range []string{".", "a", "b", "c"} {
			got[name] = owner(t, dir, name)
		}
		return got
	}
	const root, user, nobody = "300000:400000", "201000:401000", "65534:65534"
	want := map[string]string{".": root, "a": root, "b": user, "c": nobody}
	if diff := cmp.Diff(want, look(mounts)); diff != "" {
		t.Error(diff)
	}
	r.reopen()
	mounts, err = r.Mounts(t.Context(), "active")
	must(t, err)
	if diff := cmp.Diff(want, look(mounts)); diff != "" {
		t.Errorf("after a restart:\n%s", diff)
	}
	view, err := r.View(t.Context(), "view", "a", ranges)
	must(t, err)
	if got := owner(t, r.mount(view), "a"); got != root {
		t.Errorf("of a single layer: %s", got)
	}
	empty, err := r.Prepare(t.Context(), "empty", "", ranges)
	must(t, err)
	if got := owner(t, r.mount(empty)); got != root {
		t.Errorf("of no layer: %s", got)
	}
}

// What containers have written belongs on disk to those whom their users are mapped to, and is committed so, as
// containerd's overlay snapshotter has it. In an archive it belongs to those whom containers see.
func TestWhatIsWrittenWithMappedOwners(t *testing.T) {
	fusetest.NeedMappedOwners(t)
	r := newRig(t, node.Settings{})
	r.owned("a", "", 1000)
	mounts, err := r.Prepare(t.Context(), "active", "a", mapped("0:200000:65536", "0:200000:65536"))
	must(t, err)
	dir := r.mount(mounts)
	must(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644))
	must(t, os.Chown(filepath.Join(dir, "new"), 200007, 200008))
	must(t, os.Chmod(filepath.Join(dir, "a"), 0o600))
	view, err := r.View(t.Context(), "below", "a")
	must(t, err)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	made, err := compare(ctx, r, view, mounts)
	must(t, err)
	got := map[string]string{}
	for _, h := range headers(t, ctx, r, made) {
		got[h.Name] = fmt.Sprintf("%d:%d", h.Uid, h.Gid)
	}
	if diff := cmp.Diff(map[string]string{"a": "1000:1000", "new": "7:8"}, got); diff != "" {
		t.Errorf("archive:\n%s", diff)
	}
	must(t, r.Commit(t.Context(), "committed", "active"))
	next, err := r.Prepare(t.Context(), "next", "committed")
	must(t, err)
	dir = r.mount(next)
	if a, b := owner(t, dir, "a"), owner(t, dir, "new"); a != "201000:201000" || b != "200007:200008" {
		t.Errorf("committed: a file of the image is %s's, one of the container %s's", a, b)
	}
}
