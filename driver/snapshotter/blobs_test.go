package snapshotter_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/snapshotter"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/test/testutil"
)

// lazyImage pulls an image, all of whose layers a repository has, and returns its blobs. Of these the
// manifest in containerd names none yet.
func lazyImage(t *testing.T, registry *testutil.Registry) (r *rig, image string, blobs []ocispec.Descriptor) {
	t.Helper()
	made, err := random.Image(1000, 2)
	must(t, err)
	image = registry.Push(t, "an/image:1", made, nil)
	layers, err := made.Layers()
	must(t, err)
	p := publish()
	of := func(h v1.Hash, err error) digest.Digest {
		must(t, err)
		return digest.Digest(h.String())
	}
	r = newRigFinding(t, node.Settings{Lazy: []string{lazyFQRN}}, p.find)
	r.published = p
	parent, chain := "", digest.Digest("")
	for _, l := range layers {
		blob, id := of(l.Digest()), of(l.DiffID())
		size, err := l.Size()
		must(t, err)
		p[blob] = id
		blobs = append(blobs, ocispec.Descriptor{Digest: blob, Size: size})
		if chain == "" {
			chain = id
		} else {
			chain = digest.FromString(chain.String() + " " + id.String())
		}
		_, err = r.Prepare(t.Context(), "moby/1/extract-1 x", parent, snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef: chain.String(), snapshotters.TargetLayerDigestLabel: blob.String(),
			snapshotters.TargetRefLabel: image,
		}))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		parent = "moby/1/" + chain.String()
	}
	return r, image, blobs
}

// The blobs of layers that were taken from a repository are downloaded afterwards, and kept. Until then it is told
// whose are missing.
func TestBlobsAreDownloadedAfterwards(t *testing.T) {
	registry := testutil.NewRegistry(t, "", "")
	r, image, blobs := lazyImage(t, registry)
	r.manifest(blobs)
	names, err := r.node.Names(t.Context())
	must(t, err)
	want := []status.Lacking{{Namespace: "moby", Name: image, Blobs: 2}}
	if diff := cmp.Diff(want, names.Lacking); diff != "" {
		t.Errorf("what is missing\n%s", diff)
	}
	registry.Set(testutil.Fault{Path: "/blobs/" + blobs[0].Digest.String(), Status: http.StatusForbidden})
	run(t, r.own)
	ctx := namespaces.WithNamespace(t.Context(), "moby")
	has := func(blob ocispec.Descriptor) bool {
		_, err := r.blobs.Info(ctx, blob.Digest)
		return err == nil
	}
	eventually(t, func() bool { return has(blobs[1]) })
	if has(blobs[0]) {
		t.Error("a blob is there that the registry doesn't give")
	}
	if got := r.leases.last(); got != "moby ours" {
		t.Errorf("the blob is kept by %q", got)
	}
	registry.Set()
	r.reopen() // or ten minutes later
	run(t, r.own)
	eventually(t, func() bool { return has(blobs[0]) })
	names, err = r.node.Names(t.Context())
	if err != nil || len(names.Lacking) != 0 {
		t.Errorf("%v is missing, %v", names.Lacking, err)
	}
}

// manifest enters a manifest that names blobs.
func (r *rig) manifest(blobs []ocispec.Descriptor) {
	r.t.Helper()
	labels := map[string]string{}
	for i, blob := range blobs {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = blob.Digest.String()
	}
	b, err := json.Marshal(ocispec.Manifest{Layers: blobs})
	must(r.t, err)
	r.content(string(b), labels)
}

// A registry that gives more or fewer bytes than the manifest says fills nothing and gives no blob.
func TestBlobsOfAnotherSizeAreRefused(t *testing.T) {
	r, image, blobs := lazyImage(t, testutil.NewRegistry(t, "", ""))
	wrong := slices.Clone(blobs)
	wrong[0].Size--
	wrong[1].Size++
	r.manifest(wrong)
	r.own.CompleteBlobs(t.Context())
	for i, blob := range blobs {
		if _, err := r.blobs.Info(t.Context(), blob.Digest); err == nil {
			t.Errorf("blob %d was taken", i)
		}
	}
	names, err := r.node.Names(t.Context())
	must(t, err)
	if diff := cmp.Diff([]status.Lacking{{Namespace: "moby", Name: image, Blobs: 2}}, names.Lacking); diff != "" {
		t.Errorf("what is missing\n%s", diff)
	}
}

// What nothing in containerd names would be collected and downloaded again for ever: where images' blobs are discarded
// when they are unpacked, and of an image that has gone. It is neither downloaded nor told to be missing.
func TestBlobsThatNothingNamesAreNotDownloaded(t *testing.T) {
	r, image, blobs := lazyImage(t, testutil.NewRegistry(t, "", ""))
	r.manifest(blobs[1:])
	names, err := r.node.Names(t.Context())
	must(t, err)
	if diff := cmp.Diff([]status.Lacking{{Namespace: "moby", Name: image, Blobs: 1}}, names.Lacking); diff != "" {
		t.Errorf("what is missing\n%s", diff)
	}
	r.own.CompleteBlobs(t.Context())
	for i, blob := range blobs {
		if _, err := r.blobs.Info(t.Context(), blob.Digest); (err == nil) != (i == 1) {
			t.Errorf("blob %d: %v", i, err)
		}
	}
}

// Namespaces share a snapshot and not their content: a blob is downloaded for each that names it.
func TestBlobsAreDownloadedForEveryNamespace(t *testing.T) {
	r, _, blobs := lazyImage(t, testutil.NewRegistry(t, "", ""))
	r.manifest(blobs) // that all namespaces of the test's store have
	_, err := r.Prepare(t.Context(), "k8s.io/9/container", "")
	must(t, err)
	names, err := r.node.Names(t.Context())
	must(t, err)
	if len(names.Lacking) != 2 || names.Lacking[0].Namespace != "k8s.io" || names.Lacking[1].Namespace != "moby" {
		t.Errorf("what is missing: %+v", names.Lacking)
	}
}

// run has a snapshotter do its work in the background until the test ends.
func run(t *testing.T, s *snapshotter.Snapshotter) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never")
		}
	}
}
