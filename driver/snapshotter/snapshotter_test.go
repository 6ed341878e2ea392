package snapshotter_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/driver/node"
)

// commit makes a committed snapshot of one file.
func (r *rig) commit(name, parent, file string) {
	r.t.Helper()
	mounts, err := r.Prepare(r.t.Context(), "key "+name, parent)
	must(r.t, err)
	must(r.t, mount.WithTempMount(r.t.Context(), mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, file), []byte(name), 0o644)
	}))
	must(r.t, r.Commit(r.t.Context(), name, "key "+name))
}

// walk returns the names of the snapshots that pass filters.
func (r *rig) walk(filters ...string) string {
	r.t.Helper()
	var names []string
	must(r.t, r.Walk(r.t.Context(), func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}, filters...))
	return strings.Join(names, " ")
}

func TestSnapshotsAreTheSameAfterARestart(t *testing.T) {
	r := newRig(t, node.Settings{})
	ctx := t.Context()
	r.commit("a", "", "a")
	r.commit("b", "a", "b")
	_, err := r.Prepare(ctx, "active", "b", snapshots.WithLabels(map[string]string{"l": "1"}))
	must(t, err)
	_, err = r.View(ctx, "view", "b")
	must(t, err)
	labels := map[string]string{"x": "y", "gone": ""}
	_, err = r.Update(ctx, snapshots.Info{Name: "b", Labels: labels}, "labels.x", "labels.gone")
	must(t, err)
	before := map[string]snapshots.Info{}
	must(t, r.Walk(ctx, func(_ context.Context, i snapshots.Info) error { before[i.Name] = i; return nil }))
	usage, err := r.Usage(ctx, "a")
	must(t, err)
	r.reopen()
	after := map[string]snapshots.Info{}
	must(t, r.Walk(ctx, func(_ context.Context, i snapshots.Info) error { after[i.Name] = i; return nil }))
	if diff := cmp.Diff(before, after); diff != "" || len(after) != 4 {
		t.Errorf("%d snapshots:\n%s", len(after), diff)
	}
	if again, err := r.Usage(ctx, "a"); err != nil || again != usage || usage.Size == 0 {
		t.Errorf("usage %+v, before %+v (%v)", again, usage, err)
	}
	mounts, err := r.Mounts(ctx, "active")
	must(t, err)
	if b, err := os.ReadFile(filepath.Join(r.mount(mounts), "a")); string(b) != "a" {
		t.Errorf("%q %v", b, err)
	}
}

func TestFiltersSeeWhatContainerdAsksFor(t *testing.T) {
	r := newRig(t, node.Settings{})
	r.commit("sha256:1", "", "a")
	mounts, err := r.Prepare(t.Context(), "k", "sha256:1")
	must(t, err)
	must(t, mount.WithTempMount(t.Context(), mounts, func(string) error { return nil }))
	must(t, r.Commit(t.Context(), "sha256:2", "k",
		snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": "sha256:2"})))
	_, err = r.View(t.Context(), "v", "sha256:2")
	must(t, err)
	for filter, want := range map[string]string{
		"": "sha256:1 sha256:2 v", "kind==committed": "sha256:1 sha256:2", "kind==view": "v", "name==v": "v",
		`parent=="sha256:1"`: "sha256:2",
		`labels."containerd.io/snapshot.ref"==sha256:2,parent=="sha256:1"`: "sha256:2",
		`labels."containerd.io/snapshot.ref"==sha256:1`:                    "",
	} {
		if got := r.walk(filter); got != want {
			t.Errorf("%s: %q, want %q", filter, got, want)
		}
	}
	if err := r.Walk(t.Context(), nil, "kind=="); err == nil {
		t.Error("a filter that is none is taken")
	}
}

func TestWhatCantBeIsRefusedByItsKind(t *testing.T) {
	r := newRig(t, node.Settings{})
	ctx := t.Context()
	r.commit("a", "", "a")
	_, err := r.Prepare(ctx, "active", "a")
	must(t, err)
	_, err = r.View(ctx, "view", "a")
	must(t, err)
	prepare := func(key, parent string, opts ...snapshots.Opt) error {
		_, err := r.Prepare(ctx, key, parent, opts...)
		return err
	}
	update := func(name string, fields ...string) error {
		_, err := r.Update(ctx, snapshots.Info{Name: name}, fields...)
		return err
	}
	mounts := func(key string) error {
		_, err := r.Mounts(ctx, key)
		return err
	}
	for name, c := range map[string]struct {
		err error
		is  func(error) bool
	}{
		"a key that is taken":              {prepare("active", "a"), errdefs.IsAlreadyExists},
		"a name as key":                    {prepare("a", ""), errdefs.IsAlreadyExists},
		"no key":                           {prepare("", "a"), errdefs.IsInvalidArgument},
		"a parent that isn't there":        {prepare("x", "none"), errdefs.IsNotFound},
		"a parent that isn't committed":    {prepare("x", "active"), errdefs.IsInvalidArgument},
		"owners mapped without root":       {prepare("x", "a", mapped("1:1:1", "1:1:1")), errdefs.IsInvalidArgument},
		"a commit of what isn't there":     {r.Commit(ctx, "x", "none"), errdefs.IsNotFound},
		"a commit of a view":               {r.Commit(ctx, "x", "view"), errdefs.IsFailedPrecondition},
		"a commit under a name that is":    {r.Commit(ctx, "a", "active"), errdefs.IsAlreadyExists},
		"a commit under the key":           {r.Commit(ctx, "active", "active"), errdefs.IsAlreadyExists},
		"removing what others stand on":    {r.Remove(ctx, "a"), errdefs.IsFailedPrecondition},
		"removing what isn't there":        {r.Remove(ctx, "none"), errdefs.IsNotFound},
		"mounts of a committed one":        {mounts("a"), errdefs.IsFailedPrecondition},
		"mounts of what isn't there":       {mounts("none"), errdefs.IsNotFound},
		"changing a parent":                {update("a", "parent"), errdefs.IsInvalidArgument},
		"changing what isn't there":        {update("none", "labels"), errdefs.IsNotFound},
		"a commit under no name":           {r.Commit(ctx, "", "active"), errdefs.IsInvalidArgument},
		"a commit of what is committed":    {r.Commit(ctx, "x", "a"), errdefs.IsFailedPrecondition},
		"asking for what failed to appear": {mounts("x"), errdefs.IsNotFound},
	} {
		if !c.is(c.err) {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	if got := r.walk(); got != "a active view" {
		t.Errorf("there are %s", got)
	}
}

// A composed image is known by the numbers of ordinary layers in it.
func TestNumbersAreNeverUsedTwice(t *testing.T) {
	r := newRig(t, node.Settings{})
	seen := map[string]bool{}
	for n := range 130 {
		mounts, err := r.Prepare(t.Context(), "k", "")
		must(t, err)
		if seen[mounts[0].Source] {
			t.Fatalf("%s again", mounts[0].Source)
		}
		seen[mounts[0].Source] = true
		must(t, r.Remove(t.Context(), "k"))
		if n%50 == 0 {
			r.reopen()
		}
	}
}
