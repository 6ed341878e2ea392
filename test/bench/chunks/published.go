package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/images"
)

const repository = "bench.example.org"

// published is an image in a repository.
type published struct {
	files    map[string]*catalog.Entry // by path in the image
	sizes    map[string]int64          // of stored objects, by their paths
	catalogs int64                     // stored bytes of all
	stored   int64                     // bytes of everything
	took     time.Duration             // of processors, to publish
}

// publishImage publishes the layers with chunks of an average size, of files larger than whole, and removes the
// repository when it has read it.
func publishImage(ctx context.Context, dir string, image *images.Image, average, whole int) (p *published, err error) {
	settings := publish.Settings{
		FQRN: repository, MinChunk: average / 2, AvgChunk: average, MaxChunk: 2 * average, WholeFile: whole,
	}
	if err := publish.Create(ctx, dir, settings, publish.Options{}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r, err := publish.Open(dir, publish.Options{})
	if err != nil {
		return nil, err
	}
	p = &published{files: map[string]*catalog.Entry{}, sizes: map[string]int64{}}
	begin := processorTime()
	if err := ingest(ctx, r, image); err != nil {
		return nil, err
	}
	p.took = processorTime() - begin
	if err := p.measure(filepath.Join(dir, "www", "cvmfs", repository)); err != nil {
		return nil, err
	}
	return p, p.read(ctx, r, len(image.Layers))
}

// processorTime is what this process has used of processors.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // there is no process without
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func layerPath(n int) string { return fmt.Sprintf("/layers/%d", n) }

func ingest(ctx context.Context, r *publish.Repository, image *images.Image) error {
	tx, err := r.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Abort() // after a commit it does nothing
	for n, blob := range image.Layers {
		if err := ingestLayer(ctx, tx, layerPath(n), blob.Path); err != nil {
			return err
		}
	}
	_, err = tx.Commit(ctx, publish.CommitOptions{})
	return err
}

func ingestLayer(ctx context.Context, tx *publish.Transaction, path, blob string) error {
	f, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	_, err = tx.Ingest(ctx, path, z, publish.LayerOptions{})
	return err
}

// measure notes the sizes of all objects.
func (p *published) measure(dir string) error {
	return filepath.WalkDir(filepath.Join(dir, "data"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		p.sizes[name] = info.Size()
		p.stored += info.Size()
		if strings.HasSuffix(name, string(hash.Catalog)) {
			p.catalogs += info.Size()
		}
		return err
	})
}

// read reads the catalogs as a node does. Of a path in several layers the topmost counts.
func (p *published) read(ctx context.Context, r *publish.Repository, layers int) error {
	server, err := publish.NewServer(r)
	if err != nil {
		return err
	}
	defer server.Close()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- server.Serve(serving, listener) }()
	defer func() { stop(); <-served }()
	c, err := client.Open(&config.Config{
		FQRN: repository, Servers: []string{"http://" + listener.Addr().String() + "/cvmfs/" + repository},
		ProxyGroups: [][]string{{config.Direct}}, PublicKeys: []string{r.MasterKeyFile()},
	}, client.Options{Dir: filepath.Join(r.Dir(), "client")})
	if err != nil {
		return err
	}
	revision, err := c.Newest(ctx)
	if err != nil {
		return err
	}
	for n := range layers {
		if err := revision.Walk(ctx, layerPath(n), func(node *client.Node) error {
			if node.IsRegular() {
				p.files[strings.TrimPrefix(node.Path, layerPath(n))] = node.Entry
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// cost counts what a start fetches of content, at least: small files whole, of others the chunks that are touched. What
// several files have in common is fetched once.
func (p *published) cost(touched []touchedFile) (bytes int64, requests int) {
	have := map[string]bool{}
	get := func(path string) {
		if !have[path] {
			have[path] = true
			bytes += p.sizes[path]
			requests++
		}
	}
	for _, t := range touched {
		e := p.files[t.path]
		if e == nil { // made by the run
			continue
		}
		if len(e.Chunks) == 0 {
			get(e.Digest.Path(hash.File))
		}
		for _, chunk := range e.Chunks {
			if t.touches(chunk.Offset, chunk.Size) {
				get(chunk.Digest.Path(hash.Chunk))
			}
		}
	}
	return bytes, requests
}
