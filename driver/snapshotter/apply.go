package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/internal/durable"
)

const (
	// readSize is how many bytes are asked of the content store at once: it sends 1 MiB a message.
	readSize = 1 << 20
	// plainSize is how many bytes are decompressed while as many are unpacked.
	plainSize = 256 << 10
	// window is the most memory of a decompressor, in bytes: what the reference implementation of zstd takes.
	window = 128 << 20
)

// archives are the media types of the archives that are taken, and whether one may be compressed. That of Docker's
// plain archives has been used for compressed ones, too.
var archives = map[string]bool{
	images.MediaTypeDockerSchema2Layer:            true,
	images.MediaTypeDockerSchema2LayerGzip:        true,
	images.MediaTypeDockerSchema2LayerZstd:        true,
	images.MediaTypeDockerSchema2LayerForeign:     true,
	images.MediaTypeDockerSchema2LayerForeignGzip: true,
	ocispec.MediaTypeImageLayer:                   false,
	ocispec.MediaTypeImageLayerGzip:               true,
	ocispec.MediaTypeImageLayerZstd:               true,
	nonDistributable:                              false,
	nonDistributable + "+gzip":                    true,
	nonDistributable + "+zstd":                    true,
}

// nonDistributable is a media type that isn't to be used for new images (image-spec 1.1).
const nonDistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar"

// Apply unpacks an archive of containerd's content store into an active snapshot that holds nothing yet, and describes
// the uncompressed archive: its digest is the layer's diffID, which containerd compares with the image's, so that a
// blob that was damaged in the store is found, too. It is ErrNotImplemented for what isn't ours: other mounts, other
// media types, and archives on top of others.
//
// What an archive means is package layertar's to say. containerd's own applier differs where that follows all engines:
// it skips AUFS' names (".wh..wh.…"), leaves out every trusted.* attribute where we leave out overlayfs' own, and has
// programs of the host decompress, if there are any.
//
// A snapshot whose archive could not be unpacked to its end keeps what came before it: containerd removes it.
func (d *Differ) Apply(
	ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt,
) (ocispec.Descriptor, error) {
	var cfg diff.ApplyConfig
	for _, opt := range opts {
		if err := opt(ctx, desc, &cfg); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	sn := d.active(mounts)
	compressed, known := archives[desc.MediaType]
	if sn == nil || !known || len(cfg.ProcessorPayloads) > 0 {
		return ocispec.Descriptor{}, errdefs.ErrNotImplemented
	}
	applied, err := d.apply(ctx, sn, desc, compressed)
	if err == nil && cfg.SyncFs {
		err = durable.SyncFS(d.s.layers.Content(sn.id))
	}
	if errors.Is(err, layers.ErrNotEmpty) {
		return ocispec.Descriptor{}, errdefs.ErrNotImplemented
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("unpack %s into snapshot %q: %w", desc.Digest, sn.Name, err)
	}
	return applied, nil
}

// apply unpacks an archive into a snapshot, which is neither committed nor removed meanwhile.
func (d *Differ) apply(
	ctx context.Context, sn *snapshot, desc ocispec.Descriptor, compressed bool,
) (ocispec.Descriptor, error) {
	_, now, unlock, err := d.s.lock(sn.Name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer unlock()
	if now.id != sn.id || now.kind() != snapshots.KindActive {
		return ocispec.Descriptor{}, errdefs.ErrNotImplemented
	}
	blob, err := d.store.ReaderAt(inNamespace(ctx, sn.Name), desc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer blob.Close()
	if blob.Size() != desc.Size {
		return ocispec.Descriptor{}, fmt.Errorf("it has %d bytes in the content store, and should have %d", blob.Size(),
			desc.Size)
	}
	plain := readPlain(bufio.NewReaderSize(content.NewReader(blob), readSize), compressed)
	err = d.s.layers.Fill(ctx, now.id, plain)
	return plain.close(err)
}

// plainReader decompresses an archive while what has been decompressed is unpacked.
type plainReader struct {
	*io.PipeReader
	digest digest.Digester
	size   int64
	done   chan struct{} // closed when nothing is read any more
}

// readPlain begins to read an archive that may be compressed. The reader must be closed.
func readPlain(blob *bufio.Reader, compressed bool) *plainReader {
	out, in := io.Pipe()
	r := &plainReader{PipeReader: out, digest: digest.Canonical.Digester(), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		in.CloseWithError(r.run(in, blob, compressed))
	}()
	return r
}

func (r *plainReader) run(in io.Writer, blob *bufio.Reader, compressed bool) error {
	plain, end, err := io.Reader(blob), func() {}, error(nil)
	if compressed {
		plain, end, err = decompress(blob)
	}
	if err != nil {
		return err
	}
	defer end()
	to := io.MultiWriter(r.digest.Hash(), in)
	r.size, err = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{plain}, make([]byte, plainSize))
	return err
}

// close ends reading, for an error if there was one, and describes the archive.
func (r *plainReader) close(failed error) (ocispec.Descriptor, error) {
	r.CloseWithError(failed)
	<-r.done
	if failed != nil {
		return ocispec.Descriptor{}, failed
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: r.size, Digest: r.digest.Digest()}, nil
}

// decompress reads a blob as what it begins with. The function it returns must be called after use.
func decompress(blob *bufio.Reader) (io.Reader, func(), error) {
	const magic = 10
	head, err := blob.Peek(magic)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch compression.DetectCompression(head) {
	case compression.Gzip:
		z, err := gzip.NewReader(blob)
		return z, func() {}, err
	case compression.Zstd:
		z, err := zstd.NewReader(blob, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	default:
		return blob, func() {}, nil
	}
}
