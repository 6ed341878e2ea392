package scale

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"time"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	"cvmfs-graphdriver/thin"
)

// repository is where images are published.
const repository = "scale.example.org"

// folderSize is how many files a folder has.
const folderSize = 100

// content is an image that is made here: so many files in so many layers. Every other file of a layer is in a folder
// that all layers have.
type content struct {
	files, layers int
	size          func(*rand.Rand) int // of a file, in bytes
	seed          int                  // images of different ones share no content
}

// small are files as most of a system's are.
func small(random *rand.Rand) int { return 1024 + random.IntN(7*1024) }

// tiny are files whose content is of no interest.
func tiny(*rand.Rand) int { return 16 }

// file is the name of a file of a layer.
func (c content) file(layer, n int) string {
	if n%2 == 0 {
		return fmt.Sprintf("shared/%d/%d-%d", n/folderSize, layer, n)
	}
	return fmt.Sprintf("own-%d/%d/%d", layer, n/folderSize, n)
}

// perLayer is how many files a layer has.
func (c content) perLayer() int { return c.files / c.layers }

// write writes a layer's archive.
func (c content) write(w io.Writer, layer int) error {
	t := tar.NewWriter(w)
	random := rand.New(rand.NewPCG(uint64(layer), 2+uint64(c.seed)))
	b := make([]byte, 8<<10)
	for n := range c.perLayer() {
		size := c.size(random)
		for i := range b[:size] {
			b[i] = byte(random.Uint32())
		}
		err := t.WriteHeader(&tar.Header{
			Name: c.file(layer, n), Mode: 0o644, Size: int64(size), ModTime: time.Unix(1_600_000_000, 0),
		})
		if err == nil {
			_, err = t.Write(b[:size])
		}
		if err != nil {
			return fmt.Errorf("layer %d: file %d: %w", layer, n, err)
		}
	}
	return t.Close()
}

// catalogsOnly keeps no files' content: what composing is measured with is never read.
type catalogsOnly struct{ storage.Storage }

// isContent are the names of objects that are files' content, or chunks of it.
var isContent = regexp.MustCompile(`^data/[0-9a-f]{2}/[0-9a-f]+P?$`)

func (c catalogsOnly) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if isContent.MatchString(name) {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	return c.Storage.Put(ctx, name, r, size)
}

// publisher is the folder of a repository's publisher.
type publisher struct {
	dir  string
	repo *publish.Repository
}

// newPublisher makes a repository below a folder; hollow, files' content isn't kept.
func newPublisher(ctx context.Context, dir string, hollow bool) (*publisher, error) {
	p := &publisher{dir: filepath.Join(dir, "publisher")}
	if err := publish.Create(ctx, p.dir, publish.Settings{FQRN: repository}, publish.Options{}); err != nil {
		return nil, err
	}
	var o publish.Options
	if hollow {
		local, err := storage.OpenLocal(filepath.Join(p.dir, "www/cvmfs", repository))
		if err != nil {
			return nil, err
		}
		o.Storage = catalogsOnly{local}
	}
	var err error
	p.repo, err = publish.Open(p.dir, o)
	return p, err
}

// key is the file with the repository's public key.
func (p *publisher) key() string { return filepath.Join(p.dir, "keys", repository+".pub") }

// publish publishes an image's layers, and returns its descriptor.
func (p *publisher) publish(ctx context.Context, c content) (_ *thin.Descriptor, err error) {
	tx, err := p.repo.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tx.Abort()) }()
	d := &thin.Descriptor{Origin: "scale"}
	for n := range c.layers {
		path := fmt.Sprintf("/layers/%d-%d-%d/%d", c.files, c.layers, c.seed, n)
		r, w := io.Pipe()
		go func() { w.CloseWithError(c.write(w, n)) }()
		if _, err := tx.Ingest(ctx, path, r, publish.LayerOptions{}); err != nil {
			r.CloseWithError(err)
			return nil, err
		}
		d.Layers = append(d.Layers, thin.Layer{
			Digest: fmt.Sprintf("%x", sha256.Sum256([]byte(path))), FQRN: repository, Path: path,
		})
	}
	_, err = tx.Commit(ctx, publish.CommitOptions{})
	return d, err
}

// attach publishes a start profile and returns a descriptor that names it.
func (p *publisher) attach(ctx context.Context, d *thin.Descriptor, profile []byte) (_ *thin.Descriptor, err error) {
	tx, err := p.repo.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tx.Abort()) }()
	const path = "/profiles/start"
	if err := tx.WriteFile(ctx, path, profile, 0o644); err != nil {
		return nil, err
	}
	if _, err := tx.Commit(ctx, publish.CommitOptions{}); err != nil {
		return nil, err
	}
	with := *d
	with.Profile = &thin.Profile{FQRN: repository, Path: path, Digest: fmt.Sprintf("%x", sha256.Sum256(profile))}
	return &with, nil
}
