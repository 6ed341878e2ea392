package publish_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/check"
)

// A repository is made once, with keys of its own; each transaction publishes a revision. Killed anywhere, the
// repository is at its last revision.
func Example() {
	ctx := context.Background()
	parent, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(parent)
	dir := filepath.Join(parent, "layers")

	if err := publish.Create(ctx, dir, publish.Settings{FQRN: "layers.example.org"}, publish.Options{}); err != nil {
		log.Fatal(err)
	}
	repository, err := publish.Open(dir, publish.Options{})
	if err != nil {
		log.Fatal(err)
	}
	tx, err := repository.Begin(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Abort() // does nothing after Commit
	layer, err := tx.Ingest(ctx, "/layers/one", exampleArchive(), publish.LayerOptions{})
	if err != nil {
		log.Fatal(err)
	}
	summary, err := tx.Commit(ctx, publish.CommitOptions{Tag: "first"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("revision %d: %d files, %d bytes\n", summary.Revision, layer.Stats.Files, layer.Stats.Bytes)

	keys, err := repository.MasterKeys()
	if err != nil {
		log.Fatal(err)
	}
	problems := func(p check.Problem) { fmt.Println(p) }
	found, err := check.Run(ctx, repository.Storage(), check.Options{FQRN: repository.FQRN(), Keys: keys}, problems)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d problems in %d catalogs\n", found.Problems, found.Catalogs)
	// Output:
	// revision 1: 1 files, 8 bytes
	// 0 problems in 3 catalogs
}

// exampleArchive is an uncompressed layer.
func exampleArchive() *bytes.Buffer {
	const motd = "Welcome\n"
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, err := range []error{
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/motd", Mode: 0o644, Size: int64(len(motd))}),
		func() error { _, err := w.Write([]byte(motd)); return err }(),
		w.Close(),
	} {
		if err != nil {
			log.Fatal(err)
		}
	}
	return &b
}
