package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/layers/layerstest"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/node/nodetest"
	"cvmfs-graphdriver/internal/erofs"
	"cvmfs-graphdriver/test/testutil"
	"cvmfs-graphdriver/thin"
)

// lose has the repository be without blobs' layers from now on.
func (r *rig) lose(blobs ...ocispec.Descriptor) {
	for _, b := range blobs {
		delete(r.published, b.Digest)
		r.composer.Lose(b.Digest.Encoded())
	}
}

// chains returns the names of the snapshots that lazyImage has made, bottom to top.
func (r *rig) chains(blobs []ocispec.Descriptor) (names []string) {
	parent := ""
	for range blobs {
		must(r.t, r.Walk(r.t.Context(), func(_ context.Context, info snapshots.Info) error {
			if info.Parent == parent && info.Kind == snapshots.KindCommitted {
				names = append(names, info.Name)
			}
			return nil
		}))
		parent = names[len(names)-1]
	}
	return names
}

// composed spells the last chain that was to be composed, bottom to top.
func (r *rig) composed() string {
	var kinds []string
	for _, l := range r.composer.Chains[len(r.composer.Chains)-1] {
		if l.Thin == nil {
			kinds = append(kinds, "ordinary")
		} else {
			kinds = append(kinds, "thin")
		}
	}
	return strings.Join(kinds, " ")
}

// An image all of whose layers have left the repository before it was started runs all the same: of the blobs that
// containerd has by then, or of those that the registry gives. What was unpacked lasts, and other namespaces have it.
func TestLayersThatLeaveTheRepositoryAreUnpacked(t *testing.T) {
	for name, stored := range map[string]bool{"stored": true, "in the registry": false} {
		t.Run(name, func(t *testing.T) {
			registry := testutil.NewRegistry(t, "", "")
			r, _, blobs := lazyImage(t, registry)
			r.manifest(blobs)
			names := r.chains(blobs)
			if stored {
				r.own.CompleteBlobs(t.Context())
				registry.Set(testutil.Fault{Path: "/", Status: http.StatusForbidden})
			}
			r.lose(blobs...)
			mounts, err := r.Prepare(t.Context(), "moby/8/container", names[1])
			must(t, err)
			shows := func(dir string) {
				t.Helper()
				entries, err := os.ReadDir(dir)
				if err != nil || len(entries) != 2 { // a file of each layer
					t.Errorf("there is %v, %v", entries, err)
				}
			}
			shows(r.mount(mounts))
			for _, b := range blobs {
				if _, err := r.blobs.Info(t.Context(), b.Digest); err != nil {
					t.Errorf("containerd hasn't got the blob: %v", err)
				}
			}
			asked := len(registry.Log())
			r.reopen()
			for _, name := range names {
				info, err := r.Stat(t.Context(), name)
				must(t, err)
				u, err := r.Usage(t.Context(), name)
				must(t, err)
				if u.Size < 1000 {
					t.Errorf("%s takes %d bytes", name, u.Size)
				}
				blob := digest.Digest(info.Labels[snapshotters.TargetLayerDigestLabel])
				if again := r.pull("k8s.io/1/", info.Parent, info.Labels[snapshots.LabelSnapshotRef], blob); again != name {
					t.Errorf("another namespace has %q", again)
				}
			}
			mounts, err = r.View(t.Context(), "moby/9/view", names[1])
			must(t, err)
			shows(r.mount(mounts))
			if n := len(registry.Log()); n != asked {
				t.Errorf("the registry was asked %d times more", n-asked)
			}
			for _, key := range []string{"moby/8/container", "moby/9/view"} {
				mounts, err := r.Mounts(t.Context(), key)
				if err != nil || len(mounts) != 1 {
					t.Errorf("%v, %v", mounts, err)
				}
			}
		})
	}
}

// A layer that leaves the repository after the pull was told that it is there: the next one, which is downloaded, is
// unpacked on top of it.
func TestALayerLeavesBetweenTheLookUpAndTheCompose(t *testing.T) {
	r, _, blobs := lazyImage(t, testutil.NewRegistry(t, "", ""))
	r.manifest(blobs)
	names := r.chains(blobs)
	r.composer.Lose(blobs[0].Digest.Encoded())
	_, err := r.Prepare(t.Context(), "moby/8/extract-1 x", names[0], snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef: chainOf("x"), snapshotters.TargetLayerDigestLabel: blobOf("x").String(),
	}))
	must(t, err)
}

// Only what has gone is unpacked: the others are composed with it.
func TestLayersThatTheRepositoryHasStayThin(t *testing.T) {
	for name, c := range map[string]struct {
		lost   int
		before string // what was composed at the pull; "" for nothing
		want   string
	}{
		"the lower one":                       {0, "", "ordinary thin"},
		"the upper one":                       {1, "", "thin"},
		"the lower one, which was composed":   {0, "lower", "thin thin"},
		"the upper one, the other's composed": {1, "lower", "thin thin"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _, blobs := lazyImage(t, testutil.NewRegistry(t, "", ""))
			r.manifest(blobs)
			names := r.chains(blobs)
			if c.before != "" { // the test's composer makes nothing that can be mounted
				_, err := r.Prepare(t.Context(), "moby/7/container", names[0])
				if err == nil || r.composed() != "thin" {
					t.Fatal(r.composed(), err)
				}
			}
			r.lose(blobs[c.lost])
			_, err := r.Prepare(t.Context(), "moby/8/container", names[1])
			if _, gone := node.Gone(err); err == nil || gone || r.composed() != c.want {
				t.Errorf("%s was composed: %v", r.composed(), err)
			}
			if c.before != "" && r.composer.Keys() != "key1" {
				t.Errorf("the images are %s", r.composer.Keys())
			}
		})
	}
}

// Where the blob can't be had either, or isn't what the repository had, nothing changes, and the error says what to do.
func TestLayersWithoutABlobStayAsTheyAre(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	r, _, blobs := lazyImage(t, registry)
	names := r.chains(blobs)
	fails := func(want string) {
		t.Helper()
		_, err := r.Prepare(t.Context(), "moby/8/container", names[1])
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "pull it again") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	r.lose(blobs...)
	r.content("a manifest", nil)
	fails("no image of containerd's names the blob")
	r.manifest(blobs)
	registry.Set(testutil.Fault{Path: "/blobs/", Status: http.StatusForbidden})
	fails("403")
	registry.Set()
	must(t, r.store.Close()) // containerd has gone
	fails("closing")
	r.reopen()
	_, err := r.Prepare(t.Context(), "moby/8/container", names[1])
	must(t, err)
}

func TestBlobsOfOtherLayersAreNotUnpacked(t *testing.T) {
	r := newRigFinding(t, node.Settings{Lazy: []string{lazyFQRN}},
		func(_ context.Context, fqrn, hex string) (thin.Layer, error) {
			return thin.Layer{Digest: hex, FQRN: fqrn, Path: "/layers/" + hex, DiffID: diffIDOf("a").Encoded()}, nil
		})
	archive := layerstest.Tar(t, layerstest.File{Name: "f", Body: "another"})
	blob := digest.Digest(r.content(string(archive), nil))
	a := r.pull("moby/1/", "", chainOf("a"), blob)
	r.composer.Lose(blob.Encoded())
	for range 2 {
		_, err := r.Prepare(t.Context(), "moby/8/container", a)
		if err == nil || !strings.Contains(err.Error(), "has the diffID "+digest.FromBytes(archive).Encoded()) {
			t.Error(err)
		}
	}
}

// What isn't composed and has left the repository isn't there for another namespace: it downloads the layer. Whether it
// has left only the repository can say.
func TestLayersThatHaveLeftAreNotThereForOthers(t *testing.T) {
	for name, c := range map[string]struct {
		says  func(p published, hex string) (thin.Layer, error)
		there bool
	}{
		"has it":  {func(p published, hex string) (thin.Layer, error) { return p.find(t.Context(), lazyFQRN, hex) }, true},
		"fails":   {func(published, string) (thin.Layer, error) { return thin.Layer{}, errors.New("down") }, true},
		"lost it": {func(published, string) (thin.Layer, error) { return thin.Layer{}, os.ErrNotExist }, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := publish("a")
			says := func(p published, hex string) (thin.Layer, error) { return p.find(t.Context(), lazyFQRN, hex) }
			r := newRigFinding(t, node.Settings{Lazy: []string{lazyFQRN}},
				func(_ context.Context, _, hex string) (thin.Layer, error) { return says(p, hex) })
			a := r.pull("moby/1/", "", chainOf("a"), blobOf("a"))
			says = c.says
			want := a
			if !c.there {
				want = ""
			}
			got := r.pull("k8s.io/1/", "", chainOf("a"), blobOf("a"))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Of two snapshots of one layer containerd takes the one of the lesser name: there is no second one, of where else the
// layer is.
func TestALayerThatHasLeftIsNotTakenTwice(t *testing.T) {
	has := map[string]published{lazyFQRN: publish("a"), "other.example.org": publish()}
	r := newRigFinding(t, node.Settings{Lazy: []string{lazyFQRN, "other.example.org"}},
		func(ctx context.Context, fqrn, hex string) (thin.Layer, error) { return has[fqrn].find(ctx, fqrn, hex) })
	r.pull("k8s.io/1/", "", chainOf("a"), blobOf("a"))
	has[lazyFQRN], has["other.example.org"] = publish(), publish("a")
	if got := r.pull("moby/1/", "", chainOf("a"), blobOf("a")); got != "" {
		t.Errorf("containerd has %s", got)
	}
}

// A thin image on top of layers of which one has left the repository since they were composed is composed with what the
// blob holds.
func TestAThinLayerIsCommittedOnALayerThatHasLeft(t *testing.T) {
	r, _, blobs := lazyImage(t, testutil.NewRegistry(t, "", ""))
	r.manifest(blobs)
	names := r.chains(blobs)
	var meta bytes.Buffer
	folder := func(children ...erofs.Child) *erofs.Node {
		return &erofs.Node{Mode: unix.S_IFDIR | 0o755, Children: children}
	}
	_, err := erofs.Write(&meta, folder(erofs.Child{Name: "diff", Node: folder()}), erofs.Options{})
	must(t, err)
	r.composer.Meta = filepath.Join(t.TempDir(), "meta")
	must(t, os.WriteFile(r.composer.Meta, meta.Bytes(), 0o600))
	nodetest.Content(t, r.cfg, "key2/diff")
	const key = "moby/7/extract-1 x"
	mounts, err := r.Prepare(t.Context(), key, names[1])
	must(t, err)
	upper := ""
	for _, option := range mounts[0].Options {
		if dir, is := strings.CutPrefix(option, "upperdir="); is {
			upper = dir
		}
	}
	must(t, os.WriteFile(filepath.Join(upper, thin.FileName), fmt.Appendf(nil,
		`{"version":"1.0","layers":[{"digest":"%064x","url":"cvmfs://a.example.org/l"}]}`, 1), 0o600))
	r.lose(blobs[0])
	must(t, r.Commit(t.Context(), "moby/9/"+chainOf("x"), key))
	if got := r.composed(); got != "ordinary thin thin" {
		t.Errorf("%s was composed", got)
	}
}

// Of two containers that are started at once, one finds that the other one has had the blob downloaded: nothing is
// missing any more when it asks what is.
func TestABlobThatComesMeanwhileIsUnpacked(t *testing.T) {
	r, _, blobs := lazyImage(t, testutil.NewRegistry(t, "", ""))
	r.manifest(blobs)
	names := r.chains(blobs)
	r.lose(blobs...)
	r.leases.mu.Lock()
	r.leases.list = func() { r.own.CompleteBlobs(t.Context()) }
	r.leases.mu.Unlock()
	_, err := r.Prepare(t.Context(), "moby/8/container", names[1])
	must(t, err)
}
