package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	containerdarchive "github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/moby/locker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"cvmfs-graphdriver/driver/conformance"
	"cvmfs-graphdriver/driver/conformance/reference"
	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/test/contentstore"
	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

// What engines rely on holds with the snapshotter, too, used as containerd uses it.
func TestConformance(t *testing.T) {
	forRungs(t, func(t *testing.T, r rung) {
		t.Parallel()
		target := conformanceTarget(t, r)
		target.Skip = map[string]string{
			"ThinLayerKeepsItsBytes":                      "containerd has the archives of images, and asks for none",
			"DiffIsDeterministic/of the layer made of it": "of committed snapshots containerd's own differ makes archives",
			"HalfMadeLayersGoAtInit":                      "containerd removes what nothing names whenever it likes",
			"GetAndPutBalance":                            "engines count a mount's users, and fill an -init layer but once",
			"DescriptorAmongOtherFilesIsAFile/a whiteout": "a whiteout in a lowest layer says nothing, and is not kept",
		}
		conformance.Run(t, target)
	})
}

// Random work on the snapshotter gives what it gives on overlays mounted by hand.
func TestRandomSequencesOfSnapshots(t *testing.T) {
	for _, r := range rungs {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			conformance.Sequences(t, conformanceTarget(t, r), reference.Target(t), 20)
		})
	}
}

func conformanceTarget(t *testing.T, r rung) conformance.Target {
	t.Helper()
	d := start(t, r)
	e := &engine{d: d, layers: map[string]*engineLayer{}, locks: locker.New(), content: d.contentStore()}
	t.Cleanup(func() { must(t, e.unmount()) })
	server := httptest.NewServer(e)
	t.Cleanup(server.Close)
	return conformance.Target{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
		},
		// As with the plugin.
		InodesChange: testutil.ViewWords(d.view()) != "erofs",
		Thin:         referenceimage.Layers(t),
		Restart: func(t testing.TB) {
			must(t, e.unmount())
			d.restart()
		},
		Kill: func(t testing.TB) {
			must(t, syscall.Kill(d.server(), syscall.SIGKILL))
			eventually(t, "the connection is a new one", func() bool {
				return d.Walk(context.Background(), func(context.Context, snapshots.Info) error { return nil }) == nil
			})
		},
	}
}

// contentStore starts what there is of containerd: its content store, and what gives leases.
func (d *daemon) contentStore() content.Store {
	d.t.Helper()
	store := contentstore.New(d.t, filepath.Join(d.dir, "content"), &contentstore.Labels{})
	l, err := net.Listen("unix", filepath.Join(d.dir, "c"))
	must(d.t, err)
	server := grpc.NewServer()
	contentapi.RegisterContentServer(server, contentserver.New(store))
	leasesapi.RegisterLeasesServer(server, leaseServer{})
	go server.Serve(l) // ends with the test
	d.t.Cleanup(server.Stop)
	return store
}

type leaseServer struct {
	leasesapi.UnimplementedLeasesServer
}

func (leaseServer) Create(_ context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: r.ID, Labels: r.Labels}}, nil
}

// view returns the words for the view that thin images are shown by.
func (d *daemon) view() string {
	d.t.Helper()
	st, err := control.Status.Ask(d.t.Context(), d.control(), control.None{})
	must(d.t, err)
	return st.View
}

// engine answers the calls of Docker's storage-driver protocol by those of containerd: a layer is an active snapshot
// until it has its content or a child, then a committed one; Get mounts. The archives go through a content store, and
// only whole ones, as containerd's do.
type engine struct {
	d       *daemon
	content content.Store
	locks   *locker.Locker // by layer

	mu     sync.Mutex // guards layers
	layers map[string]*engineLayer
}

// engineLayer is guarded by the lock of its id.
type engineLayer struct {
	id, parent string
	committed  bool
	broken     bool   // its archive has ended before its end
	dir        string // where it is mounted; "" if it isn't
	users      int
}

type engineRequest struct{ ID, Parent string }

type engineAnswer struct {
	Err     string           `json:",omitempty"`
	Dir     string           `json:",omitempty"`
	Exists  bool             `json:",omitempty"`
	Changes []archive.Change `json:",omitempty"`
	Size    int64            `json:",omitempty"`
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := namespaces.WithNamespace(r.Context(), "default")
	method := strings.TrimPrefix(r.URL.Path, "/GraphDriver.")
	req := engineRequest{ID: r.URL.Query().Get("id"), Parent: r.URL.Query().Get("parent")}
	var a engineAnswer
	var err error
	if method != "ApplyDiff" {
		err = json.NewDecoder(r.Body).Decode(&req)
	}
	switch {
	case err != nil:
	case method == "Diff":
		var b []byte
		if b, err = e.diff(ctx, req.ID); err == nil {
			_, _ = w.Write(b) // the caller has gone if it fails
			return
		}
		w.WriteHeader(http.StatusInternalServerError)
	default:
		a, err = e.call(ctx, method, req, r.Body)
	}
	if err != nil {
		a = engineAnswer{Err: err.Error()}
	}
	_ = json.NewEncoder(w).Encode(a) // likewise
}

func (e *engine) call(ctx context.Context, method string, r engineRequest, body io.Reader) (a engineAnswer, err error) {
	if method == "Init" {
		return a, nil
	}
	// A parent is committed by its child: from above to below.
	e.locks.Lock(r.ID)
	defer e.locks.Unlock(r.ID)
	l := e.layer(r.ID)
	switch method {
	case "Create", "CreateReadWrite":
		return a, e.create(ctx, l, r)
	case "Exists":
		return engineAnswer{Exists: l != nil}, nil
	case "Put":
		return a, e.put(ctx, l)
	case "Remove":
		return a, e.remove(ctx, l)
	}
	if l == nil {
		return a, fmt.Errorf("no layer %s", r.ID)
	}
	switch method {
	case "Get":
		a.Dir, err = e.get(ctx, l)
	case "ApplyDiff":
		a.Size, err = e.apply(ctx, l, body)
	case "Changes":
		a.Changes, err = e.changes(ctx, l)
	case "DiffSize":
		var b []byte
		if b, err = e.compare(ctx, l); err == nil {
			a.Size, err = contentSize(b)
		}
	default:
		err = fmt.Errorf("no method %s", method)
	}
	return a, err
}

func (e *engine) layer(id string) *engineLayer {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.layers[id]
}

// key is the name of a layer's active snapshot, as containerd's unpacker and the engine give it.
func (l *engineLayer) key() string {
	if strings.HasSuffix(l.id, "-init") || l.parent != "" && strings.HasSuffix(l.parent, "-init") {
		return l.id
	}
	return "extract-1-x " + l.name()
}

// name is the name of a layer's committed snapshot.
func (l *engineLayer) name() string { return "sha256:" + l.id }

func (e *engine) create(ctx context.Context, l *engineLayer, r engineRequest) error {
	if l != nil {
		if l.parent != r.Parent {
			return fmt.Errorf("layer %s exists with another parent", r.ID)
		}
		return nil
	}
	parent := ""
	if r.Parent != "" {
		if err := e.commitParent(ctx, r.Parent); err != nil {
			return err
		}
		parent = (&engineLayer{id: r.Parent}).name()
	}
	l = &engineLayer{id: r.ID, parent: r.Parent}
	if _, err := e.d.Prepare(ctx, l.key(), parent); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.layers[r.ID] = l
	return nil
}

func (e *engine) commitParent(ctx context.Context, id string) error {
	e.locks.Lock(id)
	defer e.locks.Unlock(id)
	l := e.layer(id)
	if l == nil {
		return fmt.Errorf("no layer %s", id)
	}
	return e.commit(ctx, l)
}

func (e *engine) commit(ctx context.Context, l *engineLayer) error {
	if l.committed {
		return nil
	}
	err := e.d.Commit(ctx, l.name(), l.key())
	l.committed = err == nil
	return err
}

// apply gives a layer its content, and takes it back if that fails, as containerd does before it tries again.
func (e *engine) apply(ctx context.Context, l *engineLayer, body io.Reader) (int64, error) {
	if l.committed || l.broken {
		return 0, fmt.Errorf("layer %s has its content, or was given half of it", l.id)
	}
	b, err := io.ReadAll(body)
	if err != nil {
		l.broken = true
		return 0, err
	}
	size, err := contentSize(b)
	if err == nil {
		err = e.unpack(ctx, l, b)
	}
	if err != nil {
		parent := ""
		if l.parent != "" {
			parent = (&engineLayer{id: l.parent}).name()
		}
		if again := e.d.Remove(ctx, l.key()); again != nil {
			return 0, errors.Join(err, again)
		}
		_, again := e.d.Prepare(ctx, l.key(), parent)
		return 0, errors.Join(err, again)
	}
	return size, nil
}

func (e *engine) unpack(ctx context.Context, l *engineLayer, b []byte) error {
	desc := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b)),
	}
	err := content.WriteBlob(ctx, e.content, l.id, bytes.NewReader(b), desc)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	mounts, err := e.d.Mounts(ctx, l.key())
	if err != nil {
		return err
	}
	differ := diffproxy.NewDiffApplier(diffapi.NewDiffClient(e.d.conn)).(diff.Applier)
	if _, err := differ.Apply(ctx, desc, mounts); err != nil {
		return err
	}
	return e.commit(ctx, l)
}

// get mounts a layer for one more user.
func (e *engine) get(ctx context.Context, l *engineLayer) (string, error) {
	if l.dir == "" {
		mounts, err := e.mounts(ctx, l, "user "+l.id)
		if err != nil {
			return "", err
		}
		dir, err := os.MkdirTemp("", "m-")
		if err != nil {
			return "", err
		}
		if err := mount.All(mounts, dir); err != nil {
			return "", errors.Join(err, os.Remove(dir))
		}
		l.dir = dir
	}
	l.users++
	return l.dir, nil
}

// mounts returns a layer's mounts, of a view by that name if it is committed.
func (e *engine) mounts(ctx context.Context, l *engineLayer, view string) ([]mount.Mount, error) {
	if !l.committed {
		return e.d.Mounts(ctx, l.key())
	}
	mounts, err := e.d.View(ctx, view, l.name())
	if errdefs.IsAlreadyExists(err) {
		return e.d.Mounts(ctx, view)
	}
	return mounts, err
}

func (e *engine) put(ctx context.Context, l *engineLayer) error {
	if l == nil || l.users == 0 {
		return nil
	}
	if l.users--; l.users > 0 {
		return nil
	}
	return e.release(ctx, l)
}

// release unmounts a layer, whoever uses it.
func (e *engine) release(ctx context.Context, l *engineLayer) error {
	if l.dir == "" {
		return nil
	}
	err := errors.Join(mount.UnmountAll(l.dir, unix.MNT_DETACH), os.Remove(l.dir))
	l.dir, l.users = "", 0
	return errors.Join(err, ignoreMissing(e.d.Remove(ctx, "user "+l.id)))
}

func ignoreMissing(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (e *engine) remove(ctx context.Context, l *engineLayer) error {
	if l == nil {
		return nil
	}
	name := l.key()
	if l.committed {
		name = l.name()
	}
	if err := errors.Join(e.release(ctx, l), e.d.Remove(ctx, name)); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.layers, l.id)
	return nil
}

// unmount unmounts all, as when the engine's host ends.
func (e *engine) unmount() error {
	e.mu.Lock()
	all := slices.Collect(maps.Values(e.layers))
	e.mu.Unlock()
	var err error
	for _, l := range all {
		err = errors.Join(err, e.release(context.Background(), l))
	}
	return err
}

func (e *engine) diff(ctx context.Context, id string) ([]byte, error) {
	e.locks.Lock(id)
	defer e.locks.Unlock(id)
	l := e.layer(id)
	if l == nil {
		return nil, fmt.Errorf("no layer %s", id)
	}
	return e.compare(ctx, l)
}

// compare returns the archive of what a layer adds to its parent: by our differ, or where that has nothing to say by
// the way that containerd's own one goes.
func (e *engine) compare(ctx context.Context, l *engineLayer) (b []byte, err error) {
	lower, undo, err := e.parentMounts(ctx, l, "below "+l.id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, undo()) }()
	upper, err := e.mounts(ctx, l, "above "+l.id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ignoreMissing(e.d.Remove(ctx, "above "+l.id))) }()
	differ := diffproxy.NewDiffApplier(diffapi.NewDiffClient(e.d.conn)).(diff.Comparer)
	desc, err := differ.Compare(ctx, lower, upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
	if errdefs.IsNotImplemented(err) {
		return walk(ctx, lower, upper)
	}
	if err != nil {
		return nil, err
	}
	return content.ReadBlob(ctx, e.content, desc)
}

func walk(ctx context.Context, lower, upper []mount.Mount) ([]byte, error) {
	var b bytes.Buffer
	err := mount.WithTempMount(ctx, lower, func(below string) error {
		return mount.WithReadonlyTempMount(ctx, upper, func(above string) error {
			return containerdarchive.WriteDiff(ctx, &b, below, above)
		})
	})
	return b.Bytes(), err
}

// parentMounts returns the mounts of a view of a layer's parent, and what ends it.
func (e *engine) parentMounts(ctx context.Context, l *engineLayer, view string) ([]mount.Mount, func() error, error) {
	parent := ""
	if l.parent != "" {
		parent = (&engineLayer{id: l.parent}).name()
	}
	mounts, err := e.d.View(ctx, view, parent)
	return mounts, func() error { return e.d.Remove(ctx, view) }, err
}

// changes compares the two views name by name, as the engine does with containerd.
func (e *engine) changes(ctx context.Context, l *engineLayer) (changes []archive.Change, err error) {
	lower, undo, err := e.parentMounts(ctx, l, "changed "+l.id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, undo()) }()
	upper, err := e.mounts(ctx, l, "above "+l.id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ignoreMissing(e.d.Remove(ctx, "above "+l.id))) }()
	err = mount.WithTempMount(ctx, lower, func(below string) error {
		return mount.WithReadonlyTempMount(ctx, upper, func(above string) error {
			changes, err = archive.ChangesDirs(above, below)
			return err
		})
	})
	return changes, err
}

// contentSize adds up what an archive holds, in bytes, as the engine does.
func contentSize(b []byte) (n int64, err error) {
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return 0, err
		case h.Typeflag == tar.TypeReg && !strings.HasPrefix(filepath.Base(h.Name), ".wh."):
			n += h.Size
		case h.Typeflag == tar.TypeSymlink:
			n += int64(len(h.Linkname))
		}
	}
}
