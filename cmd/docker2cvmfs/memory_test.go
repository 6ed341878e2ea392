package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// maxMemory is the most main memory a conversion takes, in bytes, however large a layer is.
const maxMemory = 200 << 20

// layerSize is that of the synthetic layer's content.
const layerSize = 1 << 30

// uniqueContent returns bytes of which no two pages are alike, and which compress well.
type uniqueContent struct{ page uint64 }

func (u *uniqueContent) Read(p []byte) (int, error) {
	for i := 0; i+8 <= len(p); i += 4096 {
		u.page++
		binary.BigEndian.PutUint64(p[i:], u.page)
	}
	return len(p), nil
}

// writeLayer writes an archive: half of it is one file, the rest small ones.
func writeLayer(w io.Writer) error {
	archive := tar.NewWriter(w)
	content := &uniqueContent{}
	add := func(name string, size int64) error {
		if err := archive.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: name, Mode: 0o644,
			Size: size,
		}); err != nil {
			return err
		}
		_, err := io.CopyN(archive, content, size)
		return err
	}
	const small = 16 << 10
	if err := add("large", layerSize/2); err != nil {
		return err
	}
	for i := range layerSize / 2 / small {
		if err := add(fmt.Sprintf("small/%d/%d", i/500, i), small); err != nil {
			return err
		}
	}
	return archive.Close()
}

// blob puts bytes into a layout and describes them.
func blob(t testing.TB, layout, mediaType string, b []byte) map[string]any {
	t.Helper()
	hex := fmt.Sprintf("%x", sha256.Sum256(b))
	if err := os.WriteFile(filepath.Join(layout, "blobs", "sha256", hex), b, 0o644); err != nil {
		t.Fatal(err)
	}
	return map[string]any{"mediaType": mediaType, "digest": "sha256:" + hex, "size": len(b)}
}

// writeLargeLayout writes an OCI layout with an image of one large layer.
func writeLargeLayout(t testing.TB) string {
	t.Helper()
	layout := t.TempDir()
	if err := os.MkdirAll(filepath.Join(layout, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	plain := sha256.New()
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeLayer(io.MultiWriter(z, plain)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const media = "application/vnd.oci.image."
	layer := blob(t, layout, media+"layer.v1.tar+gzip", packed.Bytes())
	config := blob(t, layout, media+"config.v1+json", encode(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{},
		"history": []any{map[string]any{"created_by": "a test"}},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", plain.Sum(nil))}},
	}))
	manifest := blob(t, layout, media+"manifest.v1+json", encode(map[string]any{
		"schemaVersion": 2, "mediaType": media + "manifest.v1+json", "config": config, "layers": []any{layer},
	}))
	for name, b := range map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": encode(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}}),
	} {
		if err := os.WriteFile(filepath.Join(layout, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return layout
}

func TestLargeLayersTakeLittleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("converts a layer of 1 GiB")
	}
	alone(t)
	program := filepath.Join(t.TempDir(), "docker2cvmfs")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	c := exec.CommandContext(t.Context(), program, "make-thin", "-i", "oci:"+writeLargeLayout(t), "--target",
		"native:"+newPublisher(t))
	c.Env = append(os.Environ(), "GOMEMLIMIT=") // as set by the program itself
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	usage, ok := c.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		t.Fatal("the system doesn't tell how much memory a process took")
	}
	// Linux counts in what this process had when it started the program.
	peak := usage.Maxrss << 10
	t.Logf("%d MiB at most", peak>>20)
	if peak > maxMemory {
		t.Errorf("%d bytes at most, want no more than %d", peak, int64(maxMemory))
	}
}
