package layers_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/images"
	"cvmfs-graphdriver/driver/layers"
)

// rig is a store on folders of its own, with real mounts.
type rig struct {
	*layers.Store
	t         testing.TB
	root, run string
	cfg       layers.Config
	composer  *composer
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigIn(t, t.TempDir())
}

func newRigIn(t testing.TB, dir string) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers are mounted")
	}
	r := &rig{t: t, root: filepath.Join(dir, "m"), run: filepath.Join(dir, "r"), composer: &composer{}}
	r.cfg = layers.Config{
		Root: r.root, Run: r.run, Generation: "first", Mounter: &graphdriver.Mounter{},
		Log:         slog.New(slog.NewTextHandler(t.Output(), nil)),
		NewComposer: func(layers.Settings) (layers.Composer, error) { return r.composer, nil },
	}
	layers.WatchLocks(&r.cfg, func(text string) { t.Errorf("%s\n%s", text, debug.Stack()) })
	r.reopen()
	t.Cleanup(func() {
		if err := r.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	must(t, r.Init(layers.InitArgs{Home: "/mnt/x"}))
	return r
}

// reopen is what a restart of the server does.
func (r *rig) reopen() {
	r.t.Helper()
	s, err := layers.Open(r.cfg)
	must(r.t, err)
	r.Store = s
}

// apply makes a read-only layer of an archive.
func (r *rig) apply(id, parent string, archive []byte) int64 {
	r.t.Helper()
	must(r.t, r.Create(layers.CreateArgs{ID: id, Parent: parent}))
	size, err := r.ApplyDiff(r.t.Context(), id, parent, bytes.NewReader(archive))
	must(r.t, err)
	return size
}

// container makes a read-write layer and mounts it.
func (r *rig) container(id, parent string) string {
	r.t.Helper()
	must(r.t, r.Create(layers.CreateArgs{ID: id, Parent: parent, Writable: true}))
	return r.get(id)
}

func (r *rig) get(id string) string {
	r.t.Helper()
	dir, err := r.Get(r.t.Context(), id, "")
	must(r.t, err)
	return dir
}

func (r *rig) diff(id string) string { return filepath.Join(r.root, "layers", id, "graph", id, "diff") }

// opened replaces the record of an open layer.
func (r *rig) opened(id, record string) {
	r.t.Helper()
	must(r.t, unix.Setxattr(filepath.Join(r.root, "layers", id), "trusted.cvmfs-graphdriver.open", []byte(record),
		unix.XATTR_REPLACE))
}

// mounted reports whether a layer is mounted and somebody uses it.
func (r *rig) mounted(id string) bool {
	r.t.Helper()
	r.CloseIdle()
	m, err := r.cfg.Mounter.Mounted(filepath.Join(r.root, "mnt", id))
	must(r.t, err)
	return m
}

// composer stands in for the composition of thin chains, which package graphdriver's tests do for real.
type composer struct {
	mu     sync.Mutex
	err    error
	images map[string]*images.Image
	chains [][]images.Layer
	made   func() // called when an image has been made and nobody has been told
}

func (c *composer) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *composer) Compose(_ context.Context, chain []images.Layer) (*images.Image, error) {
	image, err := c.compose(chain)
	if c.made != nil {
		c.made()
	}
	return image, err
}

func (c *composer) compose(chain []images.Layer) (*images.Image, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.chains = append(c.chains, chain)
	if c.err != nil {
		return nil, c.err
	}
	image := &images.Image{Key: fmt.Sprintf("key%d", len(chain))}
	if c.images == nil {
		c.images = map[string]*images.Image{}
	}
	c.images[image.Key] = image
	return image, nil
}

// keys lists the images there are.
func (c *composer) keys() string {
	keys, _ := c.Sweep()
	slices.Sort(keys)
	return strings.Join(keys, " ")
}

func (c *composer) Image(key string) (*images.Image, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := c.images[key]; i != nil {
		return i, nil
	}
	return nil, images.ErrNoImage
}

func (c *composer) Describe(key string) (*images.Image, error) { return c.Image(key) }

func (c *composer) Remove(key string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.images, key)
	return nil
}

func (c *composer) Sweep() (keys []string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.images)), nil
}

func (c *composer) Close() {}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// file is an entry of a test's archive.
type file struct {
	name, body, link string
	kind             byte // tar.TypeReg if 0
	mode             int64
	uid, gid         int
	xattrs           map[string]string
	dev              int64 // minor
}

// tarOf makes an archive.
func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{
			Name: f.name, Typeflag: f.kind, Linkname: f.link, Mode: f.mode, Uid: f.uid, Gid: f.gid,
			Size:     int64(len(f.body)),
			Devminor: f.dev, Format: tar.FormatPAX,
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		for k, v := range f.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		must(t, w.WriteHeader(h))
		_, err := w.Write([]byte(f.body))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// list describes a tree: one line a name, with type, mode, owner and content.
func list(t testing.TB, dir string) []string {
	t.Helper()
	lines := []string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		var body []byte
		if info.Mode().IsRegular() {
			body, err = os.ReadFile(path)
		} else if info.Mode()&fs.ModeSymlink != 0 {
			var link string
			link, err = os.Readlink(path)
			body = []byte(link)
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %d:%d %s", strings.TrimPrefix(path, dir+"/"),
			info.Mode(), st.Uid, st.Gid, body)))
		return err
	})
	must(t, err)
	sort.Strings(lines)
	return lines
}

// xattrs returns the extended attributes of everything below a folder.
func xattrs(t testing.TB, dir string) (all []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		b := make([]byte, 4096)
		n, err := unix.Llistxattr(path, b)
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		for name := range strings.SplitSeq(strings.TrimRight(string(b[:n]), "\x00"), "\x00") {
			if name != "" {
				all = append(all, strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")+" "+name)
			}
		}
		return err
	}))
	return all
}
