package snapshotter_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"cvmfs-graphdriver/driver/layers/layerstest"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/internal/layertar/layertartest"
)

// blob puts a blob into containerd's content store.
func (r *rig) blob(ctx context.Context, mediaType string, b []byte) ocispec.Descriptor {
	r.t.Helper()
	store := contentproxy.NewContentStore(contentapi.NewContentClient(r.store))
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	err := content.WriteBlob(ctx, store, "blob-"+d.Digest.String(), bytes.NewReader(b), d)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		r.t.Fatal(err)
	}
	return d
}

func (r *rig) apply(
	ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt,
) (ocispec.Descriptor, error) {
	return diffproxy.NewDiffApplier(diffapi.NewDiffClient(r.conn)).(diff.Applier).Apply(ctx, d, mounts, opts...)
}

func zipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(b)
	must(t, err)
	must(t, z.Close())
	return out.Bytes()
}

func zstandard(t testing.TB, b []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	must(t, err)
	return z.EncodeAll(b, nil)
}

// content is the folder that mounts are written to.
func contentOf(mounts []mount.Mount) string {
	for _, o := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			return dir
		}
	}
	return mounts[0].Source
}

// All archives are taken, or refused, as the plugin has it: on top of something whiteouts become overlayfs' own.
func TestArchivesAreUnpackedAsEnginesDo(t *testing.T) {
	r := newRig(t, node.Settings{})
	ctx := namespaces.WithNamespace(t.Context(), "test")
	r.commit("below", "", "below")
	n := 0
	layertartest.Run(t, false, func(t *testing.T, archive []byte) ([]string, error) {
		n++
		key := fmt.Sprint("extract-", n)
		mounts, err := r.Prepare(ctx, key, "below")
		must(t, err)
		defer func() { must(t, r.Remove(ctx, key)) }()
		applied, err := r.apply(ctx, r.blob(ctx, ocispec.MediaTypeImageLayerGzip, zipped(t, archive)), mounts)
		if err != nil {
			return nil, err
		}
		want := ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(archive), Size: int64(len(archive)),
		}
		if diff := cmp.Diff(want, applied); diff != "" {
			t.Errorf("the uncompressed archive\n%s", diff)
		}
		return layertartest.List(t, contentOf(mounts), true), nil
	})
}

// Every form of an archive that containerd takes is taken; what isn't ours is left to containerd.
func TestWhichArchivesAreUnpacked(t *testing.T) {
	r := newRig(t, node.Settings{})
	ctx := namespaces.WithNamespace(t.Context(), "moby")
	archive := layerstest.Tar(t, layerstest.File{Name: "f", Body: "content"})
	const foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	for n, c := range []struct {
		mediaType string
		blob      []byte
		not       bool
	}{
		{ocispec.MediaTypeImageLayer, archive, false},
		{ocispec.MediaTypeImageLayerGzip, zipped(t, archive), false},
		{ocispec.MediaTypeImageLayerGzip, zstandard(t, archive), false}, // as containerd: it is what it is
		{ocispec.MediaTypeImageLayerZstd, zstandard(t, archive), false},
		{images.MediaTypeDockerSchema2Layer, archive, false},
		{images.MediaTypeDockerSchema2Layer, zipped(t, archive), false},
		{images.MediaTypeDockerSchema2LayerGzip, zipped(t, archive), false},
		{images.MediaTypeDockerSchema2LayerZstd, zstandard(t, archive), false},
		{foreign + "+gzip", zipped(t, archive), false},
		{ocispec.MediaTypeImageLayerGzip + "+encrypted", zipped(t, archive), true},
		{"application/x-else", archive, true},
	} {
		key := fmt.Sprintf("moby/%d/extract-x", n)
		mounts, err := r.Prepare(ctx, key, "")
		must(t, err)
		d := r.blob(ctx, c.mediaType, c.blob)
		applied, err := r.apply(t.Context(), d, mounts, diff.WithSyncFs(true)) // up to 1.7 there is no namespace
		if c.not {
			if !errdefs.IsNotImplemented(err) {
				t.Errorf("%s: %v", c.mediaType, err)
			}
			continue
		}
		must(t, err)
		got, err := os.ReadFile(filepath.Join(contentOf(mounts), "f"))
		if err != nil || string(got) != "content" || applied.Digest != digest.FromBytes(archive) {
			t.Errorf("%s: %q, %v, %v", c.mediaType, got, err, applied)
		}
		if _, err := r.apply(ctx, d, mounts); !errdefs.IsNotImplemented(err) {
			t.Errorf("on top of another archive: %v", err)
		}
	}
	d := r.blob(ctx, ocispec.MediaTypeImageLayer, archive)
	foreignMounts := []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rw"}}}
	if _, err := r.apply(ctx, d, foreignMounts); !errdefs.IsNotImplemented(err) {
		t.Errorf("into a folder of somebody else's: %v", err)
	}
	r.commit("below", "", "below")
	view, err := r.View(ctx, "view", "below")
	must(t, err)
	if _, err := r.apply(ctx, d, view); !errdefs.IsNotImplemented(err) {
		t.Errorf("into a view: %v", err)
	}
}

// What is cut off, damaged, not there or no archive is an error that names it.
func TestWrongArchivesAreRefused(t *testing.T) {
	r := newRig(t, node.Settings{})
	ctx := namespaces.WithNamespace(t.Context(), "test")
	archive := layerstest.Tar(t, layerstest.File{Name: "f", Body: strings.Repeat("content", 1000)})
	whole := zipped(t, archive)
	damaged := bytes.Clone(whole)
	damaged[len(damaged)-6] ^= 1 // of the checksum
	for name, b := range map[string][]byte{
		"cut off": whole[:len(whole)-20], "damaged at its end": damaged, "no archive": []byte("no archive, just text"),
		"archive cut off": zipped(t, archive[:2000]), "with something behind": append(bytes.Clone(whole), "more"...),
	} {
		mounts, err := r.Prepare(ctx, "extract-"+name, "")
		must(t, err)
		d := r.blob(ctx, ocispec.MediaTypeImageLayerGzip, b)
		if _, err := r.apply(ctx, d, mounts); err == nil || errdefs.IsNotImplemented(err) ||
			!strings.Contains(err.Error(), d.Digest.String()) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, r.Remove(ctx, "extract-"+name))
	}
	mounts, err := r.Prepare(ctx, "extract-missing", "")
	must(t, err)
	missing := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("missing"), Size: 7,
	}
	if _, err := r.apply(ctx, missing, mounts); !errdefs.IsNotFound(err) {
		t.Errorf("missing: %v", err)
	}
}

// In the lowest layer whiteouts hide nothing, and a bind mount would show them.
func TestTheLowestLayerHasNoWhiteouts(t *testing.T) {
	r := newRig(t, node.Settings{})
	ctx := namespaces.WithNamespace(t.Context(), "test")
	mounts, err := r.Prepare(ctx, "extract-1", "")
	must(t, err)
	archive := layertartest.Tar(
		layertartest.Item{Name: ".", Type: '5', Mode: 0o1777}, layertartest.Item{Name: ".wh..wh..opq"},
		layertartest.Item{Name: ".wh.gone"}, layertartest.Item{Name: "dir/.wh.gone"}, layertartest.Item{Name: "kept"},
		layertartest.Item{Name: ".wh.kept"},
	)
	_, err = r.apply(ctx, r.blob(ctx, ocispec.MediaTypeImageLayer, archive), mounts)
	must(t, err)
	var got []string
	for _, line := range layertartest.List(t, contentOf(mounts), true) {
		got = append(got, strings.Join(strings.Fields(line)[:2], " "))
	}
	if diff := cmp.Diff([]string{"dir d", "kept -"}, got); diff != "" {
		t.Error(diff)
	}
	info, err := os.Stat(contentOf(mounts))
	if err != nil || info.Mode() != os.ModeDir|os.ModeSticky|0o777 || info.ModTime().Unix() != layertartest.Time {
		t.Errorf("the root is %v of %v, %v", info.Mode(), info.ModTime().Unix(), err)
	}
}

// A descriptor that was unpacked by us is a thin layer.
func TestUnpackedDescriptorsAreThin(t *testing.T) {
	r := newRig(t, node.Settings{})
	ctx := namespaces.WithNamespace(t.Context(), "test")
	mounts, err := r.Prepare(ctx, "extract-1", "")
	must(t, err)
	archive := layerstest.Tar(t, layerstest.File{Name: "thin.json", Body: `{"version":"1.0","layers":[]}`})
	_, err = r.apply(ctx, r.blob(ctx, ocispec.MediaTypeImageLayerGzip, zipped(t, archive)), mounts)
	must(t, err)
	must(t, r.Commit(ctx, "thin", "extract-1"))
	if len(r.composer.Chains) != 1 {
		t.Errorf("%d images were composed", len(r.composer.Chains))
	}
}

// Who gives up gets an answer while the archive is unpacked, and the snapshot can be removed at once.
func TestUnpackingEndsWithTheCall(t *testing.T) {
	r := newRig(t, node.Settings{})
	ctx := namespaces.WithNamespace(t.Context(), "test")
	mounts, err := r.Prepare(ctx, "extract-1", "")
	must(t, err)
	var big bytes.Buffer
	z := gzip.NewWriter(&big)
	head := layerstest.Tar(t, layerstest.File{Name: "first", Body: "x"})
	_, err = z.Write(head[:len(head)-1024])
	must(t, err)
	for n := range 20000 {
		one := layerstest.Tar(t, layerstest.File{Name: fmt.Sprint("dir", n, "/f"), Body: "x"})
		_, err = z.Write(one[:len(one)-1024])
		must(t, err)
	}
	must(t, z.Close())
	d := r.blob(ctx, ocispec.MediaTypeImageLayerGzip, big.Bytes())
	call, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := r.apply(call, d, mounts)
		ended <- err
	}()
	for {
		if _, err := os.Lstat(filepath.Join(contentOf(mounts), "first")); err == nil {
			break
		}
	}
	cancel()
	if err := <-ended; !errdefs.IsCanceled(err) {
		t.Error(err)
	}
	must(t, r.Remove(ctx, "extract-1"))
}
