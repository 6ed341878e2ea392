package scale

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/thin"
)

// cacheLimit is how much of an image a node may keep, in bytes.
const cacheLimit = 1 << 30

// node is the client of one.
type node struct {
	dir          string
	repositories *client.Repositories
	index        *objects.Index
	store        *objects.Store
	composer     *images.Composer
}

// newNode makes a node below a folder, with the configuration in another one.
func newNode(in, configuration string) (_ *node, err error) {
	n := &node{index: objects.NewIndex([16]byte{1})}
	if n.dir, err = os.MkdirTemp(in, "node-"); err != nil {
		return nil, err
	}
	n.repositories = client.NewRepositories(config.Folder{Dir: configuration}, nil,
		client.Options{Dir: filepath.Join(n.dir, "repositories")})
	n.composer, err = images.New(images.Config{
		Dir: filepath.Join(n.dir, "images"), Repositories: n.repositories, Index: n.index,
	})
	if err == nil {
		n.store, err = objects.Open(objects.Config{
			Dir: filepath.Join(n.dir, "objects"), Fresh: filepath.Join(n.dir, "fresh"),
			State: filepath.Join(n.dir, "state"), Sources: n.repositories, Limits: objects.Limits{Limit: cacheLimit},
		})
	}
	if err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *node) close() (err error) {
	if n.store != nil {
		err = n.store.Close()
	}
	n.repositories.Close()
	if n.composer != nil {
		n.composer.Close()
	}
	return errors.Join(err, os.RemoveAll(n.dir))
}

// compose makes the composed image of a descriptor, and takes it into use.
func (n *node) compose(ctx context.Context, d *thin.Descriptor) (*images.Image, error) {
	image, err := n.composer.Compose(ctx, []images.Layer{{Thin: d}})
	if err != nil {
		return nil, err
	}
	return n.composer.Image(image.Key)
}

// start starts an image: files are read in order, by the names of their objects, while what the start profile names is
// fetched.
func (n *node) start(ctx context.Context, d *thin.Descriptor, reads []string) error {
	image, err := n.compose(ctx, d)
	if err != nil {
		return err
	}
	ahead := make(chan error, 1)
	if d.Profile == nil {
		ahead <- nil
	} else {
		go func() {
			p, err := n.composer.Profile(ctx, image.Key, d.Profile)
			if err == nil {
				_, err = n.store.Start(ctx, n.index, image.Table, p, objects.StartOptions{Packs: image.Packs})
			}
			ahead <- err
		}()
	}
	for _, name := range reads {
		if err := n.read(ctx, name); err != nil {
			return errors.Join(err, <-ahead)
		}
	}
	return <-ahead
}

// read has an object arrive as the FUSE tree does when a program opens a file that isn't there (package objectfs).
func (n *node) read(ctx context.Context, name string) error {
	r, ok := n.index.Lookup(name)
	if !ok {
		return fmt.Errorf("the image has no object %s", name)
	}
	if n.store.Has(r) {
		return nil
	}
	return n.store.FetchNear(ctx, r)
}

// fetched is what the node has fetched up to now.
func (n *node) fetched() (Traffic, error) {
	f, err := n.repositories.Fetcher(repository)
	if err != nil {
		return Traffic{}, err
	}
	s := f.Stats()
	return Traffic{Requests: s.Requests, Bytes: s.Bytes}, nil
}
