package layers_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"

	"cvmfs-graphdriver/driver/layers"
	"cvmfs-graphdriver/driver/layers/layerstest"
	"cvmfs-graphdriver/driver/lockorder/lockordertest"
)

type file = layerstest.File

var (
	tarOf = layerstest.Tar
	list  = layerstest.List
)

// rig is layers in a folder of their own.
type rig struct {
	*layers.Store
	t   testing.TB
	dir string
	cfg layers.Config
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigIn(t, t.TempDir())
}

func newRigIn(t testing.TB, dir string) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have attributes and owners")
	}
	r := &rig{t: t, dir: filepath.Join(dir, "layers")}
	r.cfg = layers.Config{
		Dir: r.dir, Device: filepath.Join(dir, "device"),
		Watch: lockordertest.Watch(r.dir, func(text string) { t.Errorf("%s\n%s", text, debug.Stack()) }),
	}
	r.reopen()
	return r
}

// reopen is what a restart of the server does.
func (r *rig) reopen() {
	r.t.Helper()
	s, err := layers.Open(r.cfg)
	must(r.t, err)
	r.Store = s
}

// receive gives a layer its content.
func (r *rig) receive(id, parent string, archive io.Reader) (int64, error) {
	a, err := r.Receive(r.t.Context(), id, parent, archive)
	if err != nil {
		return 0, err
	}
	return a.Size, errors.Join(a.Commit(""), a.Close())
}

// apply makes a read-only layer of an archive.
func (r *rig) apply(id, parent string, archive []byte) int64 {
	r.t.Helper()
	must(r.t, r.Create(layers.CreateArgs{ID: id, Parent: parent}))
	size, err := r.receive(id, parent, bytes.NewReader(archive))
	must(r.t, err)
	return size
}

func (r *rig) remove(id string) error {
	_, err := r.Remove(id)
	return err
}

func (r *rig) diff(id string) string { return filepath.Join(r.dir, id, "graph", id, "diff") }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
