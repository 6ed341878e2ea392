package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"cvmfs-graphdriver/cvmfs/publish"
)

// The images: the same layers, the thin one's in a repository.
const (
	repository = "bench.example.org"

	ordinaryImage = "bench/ordinary:1"
	thinImage     = "bench/thin:1"
	// keptImage has a file below the thin layer, so it is another composed image with the same objects. It stays, and
	// with it the objects, when the thin image is removed to be loaded again.
	keptImage = "bench/kept:1"

	layers    = 20
	largeSize = 256 << 20
)

// makeLayers makes the archives of the layers: one with this program and a large file, the others with small files, so
// many in all.
func makeLayers(files int) ([][]byte, error) {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(1, 2))
	big := make([]byte, largeSize)
	for i := range big {
		big[i] = byte(random.Uint32())
	}
	content := [][]byte{archive(entry{"bench", 0o755, program}, entry{large[1:], 0o644, big})}
	for n := range layers {
		content = append(content, smallFiles(random, n, files))
	}
	return content, nil
}

// publishLayers makes a publisher's folder of a repository with the layers.
func publishLayers(ctx context.Context, dir string, content [][]byte) (err error) {
	if err := publish.Create(ctx, dir, publish.Settings{FQRN: repository}, publish.Options{}); err != nil {
		return err
	}
	r, err := publish.Open(dir, publish.Options{})
	if err != nil {
		return err
	}
	t, err := r.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Abort()) }()
	for _, layer := range content {
		if _, err := t.Ingest(ctx, layerPath(layer), bytes.NewReader(layer), publish.LayerOptions{}); err != nil {
			return err
		}
	}
	_, err = t.Commit(ctx, publish.CommitOptions{})
	return err
}

func digest(layer []byte) string {
	sum := sha256.Sum256(layer)
	return hex.EncodeToString(sum[:])
}

func layerPath(layer []byte) string { return "/layers/" + digest(layer) }

// writeImages makes both images as archives that `docker load` takes.
func writeImages(dir string, content [][]byte) (map[string]string, error) {
	type layer struct {
		Digest string `json:"digest"`
		URL    string `json:"url"`
	}
	var list []layer
	for _, l := range content {
		list = append(list, layer{digest(l), "cvmfs://" + repository + layerPath(l)})
	}
	descriptor, err := json.Marshal(map[string]any{"version": "1.0", "layers": list})
	if err != nil {
		return nil, err
	}
	images := map[string]string{}
	for image, stack := range map[string][][]byte{
		ordinaryImage: content,
		thinImage:     {archive(entry{"thin.json", 0o644, descriptor})},
		keptImage:     {archive(entry{"kept", 0o644, nil}), archive(entry{"thin.json", 0o644, descriptor})},
	} {
		images[image] = filepath.Join(dir, fmt.Sprint(len(stack), ".tar"))
		if err := writeImage(images[image], image, stack); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// The trees of small files. Real images have something of both: folders like /usr/lib, to which every layer adds, and
// folders that come with one layer.
const (
	sharedTree = "shared" // ten files a folder, of ten random layers
	ownTree    = "own"    // ten files a folder, of one layer
	perFolder  = 10
)

// smallFiles is a layer of files of 1 to 8 KiB, half of them in each tree. All layers together have so many files.
func smallFiles(random *rand.Rand, layer, files int) []byte {
	each := files / layers / 2
	folders := max(files/2/perFolder, 1)
	var entries []entry
	add := func(tree string, folder int, name string) {
		b := make([]byte, 1024+random.IntN(7*1024))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		entries = append(entries, entry{
			fmt.Sprintf("%s/%d/%d/%d/%s", tree, folder/100, folder/10%10, folder%10, name),
			0o644, b,
		})
	}
	for n := range each {
		add(sharedTree, random.IntN(folders), fmt.Sprintf("f%d-%d", layer, n))
		add(ownTree, (layer*each+n)/perFolder, fmt.Sprintf("f%d", n))
	}
	return archive(entries...)
}

type entry struct {
	name string
	mode int64
	data []byte
}

// archive makes an uncompressed layer. The writer is a buffer and fails on nothing but what would be a fault of this
// program.
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
	}{
		Architecture: runtime.GOARCH, OS: "linux", Config: map[string]any{"Entrypoint": []string{"/bench"}},
		RootFS: rootFS{Type: "layers"},
	}
	var entries []entry
	var names []string
	for n, layer := range stack {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, "sha256:"+digest(layer))
		config.History = append(config.History, map[string]bool{})
		names = append(names, fmt.Sprint(n, "/layer.tar"))
		entries = append(entries, entry{names[n], 0o644, layer})
	}
	c, err := json.Marshal(config)
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config": "config.json", "RepoTags": []string{name},
		"Layers": names,
	}})
	if err != nil {
		return err
	}
	entries = append(entries, entry{"config.json", 0o644, c}, entry{"manifest.json", 0o644, manifest})
	return os.WriteFile(path, archive(entries...), 0o644)
}
