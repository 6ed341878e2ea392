package graphdriver_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/layers/layerstest"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/node/nodetest"
	"cvmfs-graphdriver/driver/status"
)

type file = layerstest.File

var (
	tarOf = layerstest.Tar
	list  = layerstest.List
)

// rig is a driver on folders of its own, with real mounts.
type rig struct {
	*graphdriver.Driver
	t         testing.TB
	root, run string
	cfg       node.Config
	objects   graphdriver.Objects // nil: the node's
	node      *node.Node
	composer  *nodetest.Composer
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigIn(t, t.TempDir())
}

func newRigIn(t testing.TB, dir string) *rig {
	t.Helper()
	r := &rig{t: t, root: filepath.Join(dir, "m"), run: filepath.Join(dir, "r"), composer: &nodetest.Composer{}}
	r.cfg = nodetest.Config(t, dir, r.composer)
	r.reopen()
	t.Cleanup(func() {
		if err := r.Cleanup(); err != nil {
			t.Error(err)
		}
		must(t, r.node.Close())
	})
	must(t, r.Init(graphdriver.InitArgs{Home: "/mnt/x"}))
	return r
}

// reopen is what a restart of the server does.
func (r *rig) reopen() {
	r.t.Helper()
	if r.node != nil {
		must(r.t, r.node.Close())
	}
	n, err := node.Open(r.cfg)
	must(r.t, err)
	d, err := graphdriver.Open(graphdriver.Config{Node: n, Objects: r.objects, Log: r.cfg.Log, Watch: r.cfg.Watch})
	must(r.t, err)
	r.node, r.Driver = n, d
}

// apply makes a read-only layer of an archive.
func (r *rig) apply(id, parent string, archive []byte) int64 {
	r.t.Helper()
	must(r.t, r.Create(graphdriver.CreateArgs{ID: id, Parent: parent}))
	size, err := r.ApplyDiff(r.t.Context(), id, parent, bytes.NewReader(archive))
	must(r.t, err)
	return size
}

// container makes a read-write layer and mounts it.
func (r *rig) container(id, parent string) string {
	r.t.Helper()
	must(r.t, r.Create(graphdriver.CreateArgs{ID: id, Parent: parent, Writable: true}))
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
	m, err := r.cfg.Kernel.Mounted(filepath.Join(r.root, "mnt", id))
	must(r.t, err)
	return m
}

// report returns what the node tells of layers and images.
func (r *rig) report() status.Node { return r.node.Status() }
