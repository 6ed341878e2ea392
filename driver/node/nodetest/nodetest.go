// Package nodetest opens nodes for tests, whose images are composed of nothing.
package nodetest

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"

	"cvmfs-graphdriver/cvmfs/objectfs"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/lockorder/lockordertest"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/view"
	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/thin"
)

// Config returns the configuration of a node below a folder, with real mounts, a [Composer] and watched locks. The test
// needs root.
func Config(t testing.TB, dir string, composer node.Composer) node.Config {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers are mounted")
	}
	root := filepath.Join(dir, "m")
	return node.Config{
		Root: root, Run: filepath.Join(dir, "r"), Generation: "first", Kernel: &overlayfs.Kernel{},
		Log:         slog.New(slog.NewTextHandler(t.Output(), nil)),
		NewComposer: func(node.Settings) (node.Composer, error) { return composer, nil },
		Watch: lockordertest.Watch(filepath.Join(root, "layers"), func(text string) {
			t.Errorf("%s\n%s", text, debug.Stack())
		}),
	}
}

// Content makes the folders that a mount of content would show, and a folder of an image's view. Kernels before Linux
// 6.18 mount these where others leave it to whoever starts the container.
func Content(t testing.TB, cfg node.Config, shown string) {
	t.Helper()
	for _, dir := range []string{objectfs.Gate, objectfs.Data, filepath.Join(view.Folder, shown)} {
		if err := os.MkdirAll(filepath.Join(cfg.Run, "fuse", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// Composer stands in for the composition of thin chains. Its images are a key, and nothing can be mounted of them
// unless Meta is a file.
type Composer struct {
	Images map[string]*images.Image
	Meta   string           // the metadata of every image
	Chains [][]images.Layer // that were composed
	Made   func()           // called when an image has been made and nobody has been told

	mu   sync.Mutex
	err  error
	gone map[string]bool // digests of layers
}

// Fail has every Compose fail, or with nil succeed.
func (c *Composer) Fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// Lose has a repository be without the layers of some digests (SHA-256, hex).
func (c *Composer) Lose(digests ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone == nil {
		c.gone = map[string]bool{}
	}
	for _, d := range digests {
		c.gone[d] = true
	}
}

// Pause has every image that is made wait for proceed before anybody is told of it.
func (c *Composer) Pause() (made chan struct{}, proceed func()) {
	made, gate := make(chan struct{}, 100), make(chan struct{})
	c.Made = func() {
		made <- struct{}{}
		<-gate
	}
	return made, sync.OnceFunc(func() { close(gate) })
}

// Compose makes an image whose key is the length of its chain.
func (c *Composer) Compose(_ context.Context, chain []images.Layer) (*images.Image, error) {
	image, err := c.compose(chain)
	if c.Made != nil {
		c.Made()
	}
	return image, err
}

func (c *Composer) compose(chain []images.Layer) (*images.Image, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Chains = append(c.Chains, chain)
	if c.err != nil {
		return nil, c.err
	}
	for _, l := range chain {
		if l.Thin != nil && len(l.Thin.Layers) > 0 && c.gone[l.Thin.Layers[0].Digest] {
			return nil, fmt.Errorf("compose: %w", &images.GoneError{Layer: l.Thin.Layers[0], Err: fs.ErrNotExist})
		}
	}
	image := &images.Image{Key: fmt.Sprintf("key%d", len(chain)), Meta: c.Meta, Table: new(objects.Table)} // of no objects
	if c.Images == nil {
		c.Images = map[string]*images.Image{}
	}
	c.Images[image.Key] = image
	return image, nil
}

// Keys lists the images there are.
func (c *Composer) Keys() string {
	keys, _ := c.Sweep()
	slices.Sort(keys)
	return strings.Join(keys, " ")
}

// Image returns an image that was made.
func (c *Composer) Image(key string) (*images.Image, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := c.Images[key]; i != nil {
		return i, nil
	}
	return nil, images.ErrNoImage
}

// Describe is Image.
func (c *Composer) Describe(key string) (*images.Image, error) { return c.Image(key) }

// Peek knows no objects.
func (c *Composer) Peek(string) (*objects.Table, error) { return nil, images.ErrNoImage }

// Find finds nothing.
func (c *Composer) Find(context.Context, string, objects.Ref) (string, error) { return "", nil }

// Profile knows no start profile.
func (c *Composer) Profile(context.Context, string, *thin.Profile) (objects.Profile, error) {
	return nil, fs.ErrNotExist
}

// RecordedProfile knows none.
func (c *Composer) RecordedProfile(string) (objects.Profile, error) { return nil, fs.ErrNotExist }

// KeepProfile does nothing.
func (c *Composer) KeepProfile(string, objects.Profile) error { return nil }

// Remove removes an image.
func (c *Composer) Remove(key string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.Images, key)
	return nil
}

// Sweep returns the keys of the images there are.
func (c *Composer) Sweep() (keys []string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.Images)), nil
}

// Close does nothing.
func (c *Composer) Close() {}
