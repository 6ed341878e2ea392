package snapshotter_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/node/nodetest"
	"cvmfs-graphdriver/driver/snapshotter"
	"cvmfs-graphdriver/test/contentstore"
	"cvmfs-graphdriver/thin"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rig is a snapshotter on folders of its own, and containerd's side of a socket to it.
type rig struct {
	snapshots.Snapshotter
	t        testing.TB
	dir      string
	cfg      node.Config
	settings node.Settings
	composer *nodetest.Composer
	node     *node.Node
	store    *grpc.ClientConn // to containerd, as far as it is a content store that gives leases
	leases   *leaseServer
	blobs    content.Store            // what is behind store
	labels   contentstore.Labels      // of that
	images   *imageServer             // likewise
	conn     *grpc.ClientConn         // to the snapshotter
	own      *snapshotter.Snapshotter // what answers
	stop     func()

	// repositories that are asked for layers; nil: those of the node, which has none
	find      func(ctx context.Context, fqrn, digest string) (thin.Layer, error)
	published published // that find answers by, where a test changes it
}

func newRig(t testing.TB, settings node.Settings) *rig { return newRigFinding(t, settings, nil) }

func newRigFinding(t testing.TB, settings node.Settings,
	find func(ctx context.Context, fqrn, digest string) (thin.Layer, error),
) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), settings: settings, composer: &nodetest.Composer{}, find: find}
	r.cfg = nodetest.Config(t, r.dir, r.composer)
	r.cfg.Nested = true
	r.open()
	t.Cleanup(func() {
		r.stop()
		must(t, r.node.UnmountImages())
		must(t, r.node.Close())
	})
	return r
}

// open is the start of a server.
func (r *rig) open() {
	r.t.Helper()
	var err error
	r.node, err = node.Open(r.cfg)
	must(r.t, err)
	r.contentServer()
	s, err := snapshotter.Open(snapshotter.Config{
		Node: r.node, Settings: r.settings, Containerd: r.store, Log: r.cfg.Log, Watch: r.cfg.Watch,
		Find: r.find, Settle: time.Millisecond,
	})
	must(r.t, err)
	r.own = s
	socket := filepath.Join(r.dir, "s")
	l, err := net.Listen("unix", socket)
	must(r.t, err)
	ctx, cancel := context.WithCancel(r.t.Context())
	server := snapshotter.NewServer(r.cfg.Log)
	ended := make(chan error)
	go func() { ended <- server.Serve(ctx, l) }()
	server.Ready(s, snapshotter.NewDiffer(s, r.store))
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(r.t, err)
	r.conn = conn
	r.Snapshotter = proxy.NewSnapshotter(api.NewSnapshotsClient(conn), "cvmfs")
	r.stop = func() {
		must(r.t, conn.Close())
		r.store.Close() // a test may have done so
		cancel()
		must(r.t, <-ended)
	}
}

// reopen is what a restart of the server does.
func (r *rig) reopen() {
	r.t.Helper()
	r.stop()
	must(r.t, r.node.Close())
	r.open()
}

// mount mounts on a folder of its own, as containerd does, until the test ends.
func (r *rig) mount(mounts []mount.Mount) string {
	r.t.Helper()
	dir, err := os.MkdirTemp(r.dir, "mounted-")
	must(r.t, err)
	must(r.t, mount.All(mounts, dir))
	r.t.Cleanup(func() { must(r.t, mount.UnmountAll(dir, 0)) })
	return dir
}
