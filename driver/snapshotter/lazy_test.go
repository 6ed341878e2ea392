package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/thin"
)

const lazyFQRN = "unpacked.example.org"

// published is layers in a repository, by blob, with their diffIDs.
type published map[digest.Digest]digest.Digest

func (p published) find(_ context.Context, fqrn, hex string) (thin.Layer, error) {
	id, ok := p[digest.NewDigestFromEncoded(digest.SHA256, hex)]
	if !ok {
		return thin.Layer{}, fs.ErrNotExist
	}
	return thin.Layer{Digest: hex, FQRN: fqrn, Path: "/layers/" + hex, DiffID: id.Encoded()}, nil
}

func blobOf(name string) digest.Digest   { return digest.FromString("blob of " + name) }
func diffIDOf(name string) digest.Digest { return digest.FromString("archive of " + name) }

func publish(names ...string) published {
	p := published{}
	for _, n := range names {
		p[blobOf(n)] = diffIDOf(n)
	}
	return p
}

func chainOf(names ...string) string {
	var ids []digest.Digest
	for _, n := range names {
		ids = append(ids, diffIDOf(n))
	}
	return identity.ChainID(ids).String()
}

// pull is what containerd does first for a layer: it returns the name of the snapshot that it is to take as it is, ""
// for one that is to be downloaded and unpacked.
func (r *rig) pull(prefix, parent, chain string, blob digest.Digest) string {
	r.t.Helper()
	labels := map[string]string{
		snapshots.LabelSnapshotRef: chain, snapshotters.TargetLayerDigestLabel: blob.String(),
		snapshotters.TargetRefLabel: "example.org/image:1",
	}
	key := prefix + "extract-1 " + chain
	_, err := r.Prepare(r.t.Context(), key, parent, snapshots.WithLabels(labels))
	if err == nil {
		must(r.t, r.Remove(r.t.Context(), key))
		return ""
	}
	if !errdefs.IsAlreadyExists(err) {
		r.t.Fatal(err)
	}
	var found []string
	filter := fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, chain, parent)
	must(r.t, r.Walk(r.t.Context(), func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			found = append(found, info.Name)
		}
		return nil
	}, filter))
	if len(found) != 1 {
		r.t.Fatalf("%q exist", found)
	}
	return found[0]
}

// Layers that a repository has aren't downloaded, and what stands on them is composed of them. They last.
func TestLayersInARepositoryAreTaken(t *testing.T) {
	r := newRigFinding(t, node.Settings{Lazy: []string{lazyFQRN}}, publish("a", "b").find)
	a := r.pull("moby/1/", "", chainOf("a"), blobOf("a"))
	b := r.pull("moby/2/", a, chainOf("a", "b"), blobOf("b"))
	if a != "moby/1/"+chainOf("a") || b != "moby/2/"+chainOf("a", "b") {
		t.Fatalf("%q, %q", a, b)
	}
	if again := r.pull("k8s.io/1/", "", chainOf("a"), blobOf("a")); again != a {
		t.Errorf("another namespace has %q", again)
	}
	if n := len(r.composer.Chains); n != 0 {
		t.Errorf("%d images were composed to pull", n)
	}
	r.reopen()
	if _, err := r.Prepare(t.Context(), "moby/4/container", b); err == nil {
		t.Error("an image of the test's composer was mounted")
	}
	chains := r.composer.Chains
	var paths []string
	for _, l := range chains[len(chains)-1] {
		paths = append(paths, l.Thin.Layers[0].URL())
	}
	want := []string{
		"cvmfs://" + lazyFQRN + "/layers/" + blobOf("a").Encoded(),
		"cvmfs://" + lazyFQRN + "/layers/" + blobOf("b").Encoded(),
	}
	if diff := cmp.Diff(want, paths); diff != "" {
		t.Errorf("the container is composed of\n%s", diff)
	}
	must(t, r.Remove(t.Context(), b))
	must(t, r.Remove(t.Context(), a))
}

// Nobody else compares the layer with the chain ID: an image that claims other diffIDs than its blobs have must not
// plant a layer under the chain ID of another image.
func TestForeignChainIDsAreNotPlanted(t *testing.T) {
	r := newRigFinding(t, node.Settings{Lazy: []string{lazyFQRN}}, publish("a", "b").find)
	a := r.pull("moby/1/", "", chainOf("a"), blobOf("a"))
	for name, c := range map[string]struct {
		parent, chain string
		blob          digest.Digest
	}{
		"another layer's":             {"", chainOf("a"), blobOf("b")},
		"another parent's":            {"", chainOf("a", "b"), blobOf("b")},
		"without the parent":          {a, chainOf("b"), blobOf("b")},
		"one that leads upwards":      {"", chainOf("a"), "sha256:../../../../etc"},
		"of no algorithm":             {"", chainOf("a"), digest.Digest(blobOf("a").Encoded())},
		"of another algorithm":        {"", chainOf("a"), digest.SHA512.FromString("x")},
		"no digest":                   {"", "chain", blobOf("a")},
		"one that a repository lacks": {"", chainOf("c"), blobOf("c")},
		"nothing":                     {"", "", ""},
	} {
		labels := map[string]string{
			snapshots.LabelSnapshotRef: c.chain, snapshotters.TargetLayerDigestLabel: c.blob.String(),
		}
		key := "moby/9/extract-1 x"
		if _, err := r.Prepare(t.Context(), key, c.parent, snapshots.WithLabels(labels)); err != nil && c.parent == "" {
			t.Errorf("%s: %v", name, err)
		} else if errdefs.IsAlreadyExists(err) {
			t.Errorf("%s was taken", name)
		} else if err == nil {
			must(t, r.Remove(t.Context(), key))
		}
	}
}

// Without the option nothing is looked for, and nor is it for what isn't a layer being unpacked.
func TestLayersAreLookedForOnRequestAlone(t *testing.T) {
	var asked atomic.Int32
	find := func(ctx context.Context, fqrn, hex string) (thin.Layer, error) {
		asked.Add(1)
		return publish("a").find(ctx, fqrn, hex)
	}
	off := newRigFinding(t, node.Settings{}, find)
	if name := off.pull("moby/1/", "", chainOf("a"), blobOf("a")); name != "" || asked.Load() != 0 {
		t.Errorf("%q is there, %d look-ups", name, asked.Load())
	}
	on := newRigFinding(t, node.Settings{Lazy: []string{lazyFQRN}}, find)
	_, err := on.Prepare(t.Context(), "container", "")
	must(t, err)
	if asked.Load() != 0 {
		t.Error("a layer was looked for to make a container")
	}
}

// A repository that fails or hangs costs a pull little, once, and the layer is downloaded. Others are still asked.
func TestRepositoriesThatDoNotAnswerAreLeftAlone(t *testing.T) {
	var asked atomic.Int32
	for name, fail := range map[string]func(ctx context.Context) error{
		"failing": func(context.Context) error { return errors.New("no server can be reached") },
		"hanging": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			asked.Store(0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r := newRigFinding(t, node.Settings{Lazy: []string{"broken.example.org", lazyFQRN}},
				func(c context.Context, fqrn, hex string) (thin.Layer, error) {
					if fqrn != lazyFQRN {
						asked.Add(1)
						return thin.Layer{}, fail(ctx)
					}
					return publish("a", "b").find(c, fqrn, hex)
				})
			began := time.Now()
			a := r.pull("moby/1/", "", chainOf("a"), blobOf("a"))
			if !strings.HasPrefix(a, "moby/1/") {
				t.Errorf("the other repository's layer isn't taken: %q", a)
			}
			if took := time.Since(began); took > 20*time.Second { // 2 s, on a busy machine
				t.Errorf("it took %v", took)
			}
			r.pull("moby/2/", a, chainOf("a", "b"), blobOf("b"))
			if n := asked.Load(); n != 1 {
				t.Errorf("the repository was asked %d times", n)
			}
		})
	}
}

// What can't be made leaves nothing behind, and the layer is downloaded.
func TestWrongAnswersOfARepositoryAreNotTaken(t *testing.T) {
	r := newRigFinding(t, node.Settings{Lazy: []string{lazyFQRN}},
		func(_ context.Context, fqrn, hex string) (thin.Layer, error) {
			return thin.Layer{Digest: hex, FQRN: fqrn, Path: "/../outside", DiffID: diffIDOf("a").Encoded()}, nil
		})
	if name := r.pull("moby/1/", "", chainOf("a"), blobOf("a")); name != "" {
		t.Errorf("%s is there", name)
	}
	must(t, r.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		t.Errorf("%s is left", info.Name)
		return nil
	}))
}

// What can't even be removed of a layer that couldn't be taken keeps what it stands on, and is containerd's to remove
// after a restart.
func TestWhatIsLeftOfALayerKeepsItsParent(t *testing.T) {
	r := newRigFinding(t, node.Settings{Lazy: []string{lazyFQRN}},
		func(ctx context.Context, fqrn, hex string) (thin.Layer, error) {
			l, err := publish("a", "b").find(ctx, fqrn, hex)
			if hex == blobOf("b").Encoded() {
				l.Path = "/../outside"
			}
			return l, err
		})
	ctx := t.Context()
	a := r.pull("moby/1/", "", chainOf("a"), blobOf("a"))
	r.reopen()
	next, err := os.ReadFile(r.node.Path("state", "next-layer"))
	must(t, err)
	stuck := filepath.Join(r.node.Path("layers"), ".dead-"+strings.TrimSpace(string(next)), "mounted")
	must(t, os.MkdirAll(stuck, 0o700))
	must(t, unix.Mount("tmpfs", stuck, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { unix.Unmount(stuck, unix.MNT_DETACH) }) // it isn't mounted where all went well
	// It can't be unpacked either, as the test's composer makes nothing that can be mounted.
	_, err = r.Prepare(ctx, "moby/2/extract-1 x", a, snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef: chainOf("a", "b"), snapshotters.TargetLayerDigestLabel: blobOf("b").String(),
	}))
	if err == nil || errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	if err := r.Remove(ctx, a); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove of what it stands on: %v", err)
	}
	must(t, unix.Unmount(stuck, 0))
	r.reopen()
	left := "moby/2/" + chainOf("a", "b")
	if got := r.walk(); got != a+" "+left {
		t.Errorf("there are %s", got)
	}
	must(t, r.Remove(ctx, left))
	must(t, r.Remove(ctx, a))
}
