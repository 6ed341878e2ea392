package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
)

// The images: the same layers, the thin one with a descriptor of no further layers on top, which makes the whole chain one that
// is composed.
const (
	ordinaryImage = "bench/ordinary:1"
	thinImage     = "bench/thin:1"

	layers    = 20
	largeSize = 256 << 20
)

// writeImages makes both images as archives that `docker load` takes.
func writeImages(dir string, files int) (map[string]string, error) {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(1, 2))
	large := make([]byte, largeSize)
	for i := range large {
		large[i] = byte(random.Uint32())
	}
	content := [][]byte{archive(entry{"bench", 0o755, program}, entry{"large", 0o644, large})}
	for n := range layers {
		content = append(content, smallFiles(random, n, files/layers))
	}
	images := map[string]string{}
	for image, top := range map[string][]byte{ordinaryImage: nil, thinImage: archive(entry{"thin.json", 0o644, []byte(`{"version":"1.0","layers":[]}`)})} {
		stack := content
		if top != nil {
			stack = append(stack[:len(stack):len(stack)], top)
		}
		images[image] = filepath.Join(dir, fmt.Sprint(len(stack), ".tar"))
		if err := writeImage(images[image], image, stack); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// smallFiles is a layer of files of 1 to 8 KiB, a hundred in a folder; layers share folders, as those of real images do.
func smallFiles(random *rand.Rand, layer, files int) []byte {
	var entries []entry
	for n := range files {
		b := make([]byte, 1024+random.IntN(7*1024))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		entries = append(entries, entry{fmt.Sprintf("tree/d%02d/s%d/f%d-%d", n/100, n%10, layer, n), 0o644, b})
	}
	return archive(entries...)
}

type entry struct {
	name string
	mode int64
	data []byte
}

// archive makes an uncompressed layer. The writer is a buffer and fails on nothing but what would be a fault of this program.
func archive(entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		must(w.WriteHeader(&tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data))}))
		_, err := w.Write(e.data)
		must(err)
	}
	must(w.Close())
	return b.Bytes()
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// writeImage writes an image in the format of `docker save`.
func writeImage(path, name string, stack [][]byte) error {
	type rootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	config := struct {
		Architecture string            `json:"architecture"`
		OS           string            `json:"os"`
		Config       map[string]any    `json:"config"`
		RootFS       rootFS            `json:"rootfs"`
		History      []map[string]bool `json:"history"`
	}{Architecture: runtime.GOARCH, OS: "linux", Config: map[string]any{"Entrypoint": []string{"/bench"}}, RootFS: rootFS{Type: "layers"}}
	var entries []entry
	var names []string
	for n, layer := range stack {
		sum := sha256.Sum256(layer)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, "sha256:"+hex.EncodeToString(sum[:]))
		config.History = append(config.History, map[string]bool{})
		names = append(names, fmt.Sprint(n, "/layer.tar"))
		entries = append(entries, entry{names[n], 0o644, layer})
	}
	c, err := json.Marshal(config)
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": names}})
	if err != nil {
		return err
	}
	entries = append(entries, entry{"config.json", 0o644, c}, entry{"manifest.json", 0o644, manifest})
	return os.WriteFile(path, archive(entries...), 0o644)
}
