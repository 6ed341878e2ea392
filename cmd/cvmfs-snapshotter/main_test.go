package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/test/referenceimage"
	"cvmfs-graphdriver/test/testutil"
)

const underTest = "SNAPSHOTTER_UNDER_TEST" // in the environment: be the program

func TestMain(m *testing.M) {
	if os.Getenv(underTest) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

const fqrn = "images.example.org"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rung is a way the snapshotter works on some kernel, forced on this one.
type rung struct{ view, without string }

// rungs are all rows of the table of mounts.
var rungs = []rung{
	{"erofs", ""},
	{"erofs", "metacopy=off"},
	{"fuse", ""},
	{"auto", "parameters,data,filebacked,resend"}, // Linux 5.2 to 6.4
}

// String names the rung.
func (r rung) String() string { return strings.TrimSuffix(r.view+" without "+r.without, " without ") }

func forRungs(t *testing.T, f func(t *testing.T, r rung)) {
	for _, r := range rungs {
		t.Run(r.String(), func(t *testing.T) { f(t, r) })
	}
}

// daemon is the whole program, supervisor and server, and containerd's side of its socket.
type daemon struct {
	snapshots.Snapshotter
	t          testing.TB
	dir        string            // root and socket, on a shared mount
	urls       map[string]string // of repositories
	rung       rung
	supervisor *exec.Cmd
	manager    *manager // nil: the program runs without one
	log        testutil.Buffer
	conn       *grpc.ClientConn
}

// start starts a daemon on folders of its own.
func start(t testing.TB, r rung) *daemon {
	t.Helper()
	urls := map[string]string{}
	for _, name := range []string{fqrn, referenceimage.Second} {
		urls[name] = testutil.ServeReference(t, name)
	}
	return startAt(t, r, urls)
}

func startAt(t testing.TB, r rung, urls map[string]string) *daemon {
	t.Helper()
	testutil.NeedRoot(t)
	dir, err := os.MkdirTemp("", "snap-") // named without what the test is called, which has commas
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	d := &daemon{t: t, dir: dir, rung: r, urls: urls}
	must(t, unix.Mount(d.dir, d.dir, "", unix.MS_BIND, ""))
	must(t, unix.Mount("", d.dir, "", unix.MS_SHARED, ""))
	t.Cleanup(func() { must(t, unix.Unmount(d.dir, unix.MNT_DETACH)) })
	d.launch()
	t.Cleanup(d.stop)
	return d
}

// launch starts the program on the daemon's folders.
func (d *daemon) launch() {
	d.t.Helper()
	d.supervisor = exec.Command(os.Args[0], "--config", d.config(), "--debug")
	d.supervisor.Env = append(os.Environ(), underTest+"=1", "CVMFS_WITHOUT="+d.rung.without)
	d.manager.prepare(d.supervisor)
	out := io.MultiWriter(d.t.Output(), &d.log)
	d.supervisor.Stdout, d.supervisor.Stderr = out, out
	must(d.t, child.Start(d.supervisor))
	conn, err := grpc.NewClient("unix://"+d.dir+"/s", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	must(d.t, err)
	d.conn = conn
	d.Snapshotter = proxy.NewSnapshotter(api.NewSnapshotsClient(conn), "cvmfs")
	eventually(d.t, "it answers", func() bool {
		if d.rung.view == "erofs" && strings.Contains(d.log.String(), "storage option cvmfs.view=erofs:") {
			must(d.t, d.supervisor.Process.Kill())
			_ = d.supervisor.Wait() // killed, so that its error says nothing
			testutil.KernelLacks(d.t, "the erofs view")
		}
		ctx, cancel := context.WithTimeout(d.t.Context(), time.Second)
		defer cancel()
		return d.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }) == nil
	})
}

// config writes the file of settings.
func (d *daemon) config() string {
	b, err := json.Marshal(map[string]any{
		"root": d.dir + "/r", "address": d.dir + "/s", "containerd": d.dir + "/c",
		"storage-opts": []string{"cvmfs.view=" + d.rung.view, "cvmfs.metrics=unix:" + d.dir + "/metrics.sock"},
		"cvmfs-config": testutil.Configure(d.t, d.urls),
	})
	must(d.t, err)
	name := filepath.Join(d.dir, "config.json")
	must(d.t, os.WriteFile(name, b, 0o600))
	return name
}

// stop ends the program as systemd does.
func (d *daemon) stop() {
	d.t.Helper()
	must(d.t, d.conn.Close())
	must(d.t, d.supervisor.Process.Signal(syscall.SIGTERM))
	if err := d.supervisor.Wait(); err != nil {
		d.t.Error("the supervisor ends: ", err)
	}
}

// restart stops the program and starts it again.
func (d *daemon) restart() {
	d.t.Helper()
	d.stop()
	d.launch()
}

// server returns the process of the server, waiting until there is one.
func (d *daemon) server() (pid int) {
	d.t.Helper()
	eventually(d.t, "a server", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.supervisor.Process.Pid))
		must(d.t, err)
		for _, thread := range threads {
			if b, err := os.ReadFile(thread); err == nil && pid == 0 {
				fmt.Sscan(string(b), &pid)
			}
		}
		return pid > 0
	})
	return pid
}

// unpack makes a committed snapshot of an archive, as containerd does, into the upper folder of the mounts.
func (d *daemon) unpack(name, parent string, layer io.Reader) {
	d.t.Helper()
	must(d.t, d.tryUnpack(name, parent, layer))
}

func (d *daemon) tryUnpack(name, parent string, layer io.Reader) error {
	key, ctx := "extract-1-x "+name, d.t.Context()
	mounts, err := d.Prepare(ctx, key, parent)
	if err != nil {
		return err
	}
	whiteouts := archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)
	if _, err := archive.Apply(ctx, target(mounts), layer, whiteouts); err != nil {
		return err
	}
	return d.Commit(ctx, name, key)
}

// target is the folder that containerd unpacks to.
func target(mounts []mount.Mount) string {
	for _, o := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			return dir
		}
	}
	return mounts[0].Source
}

// mount mounts on a folder of its own, as containerd and its shim do, until the test ends.
func (d *daemon) mount(mounts []mount.Mount, err error) string {
	d.t.Helper()
	must(d.t, err)
	dir := d.t.TempDir()
	must(d.t, mount.All(mounts, dir))
	d.t.Cleanup(func() { must(d.t, mount.UnmountAll(dir, 0)) })
	return dir
}

// tree lists what is below a folder, contents included.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	must(t, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %s %d:%d", strings.TrimPrefix(name, dir), info.Mode(), st.Uid, st.Gid)
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %q", info.ModTime().Unix(), b)
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(name)
			if err != nil {
				return err
			}
			line = strings.TrimPrefix(name, dir) + " -> " + to // a link's permissions mean nothing
		}
		lines = append(lines, line)
		return nil
	}))
	return lines
}

// eventually waits for something that the program does by itself.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in vain: ", what)
		}
	}
}
