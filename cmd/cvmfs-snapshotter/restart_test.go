package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// manager keeps descriptors for the program, as systemd does.
type manager struct {
	socket *net.UnixConn
	path   string

	mu    sync.Mutex
	names []string
	files []*os.File
	ready int
}

// newManager makes a manager that listens on a path.
func newManager(t testing.TB, path string) *manager {
	t.Helper()
	m := &manager{path: path}
	var err error
	m.socket, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	go m.listen()
	t.Cleanup(func() {
		must(t, m.socket.Close())
		for _, f := range m.files {
			must(t, f.Close())
		}
	})
	return m
}

func (m *manager) listen() {
	text, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		n, oobn, _, _, err := m.socket.ReadMsgUnix(text, rights)
		if err != nil {
			return
		}
		m.mu.Lock()
		if string(text[:n]) == "READY=1" {
			m.ready++
		}
		messages, _ := unix.ParseSocketControlMessage(rights[:oobn])
		for _, message := range messages {
			fds, _ := unix.ParseUnixRights(&message)
			_, name, _ := strings.Cut(string(text[:n]), "FDNAME=")
			m.keep(name, os.NewFile(uintptr(fds[0]), name))
		}
		m.mu.Unlock()
	}
}

// keep keeps a descriptor, unless it is one of a file that it has already.
func (m *manager) keep(name string, f *os.File) {
	for _, other := range m.files {
		a, err := f.Stat()
		b, berr := other.Stat()
		if errors.Join(err, berr) == nil && os.SameFile(a, b) {
			f.Close()
			return
		}
	}
	m.names, m.files = append(m.names, name), append(m.files, f)
}

// prepare has a program start with what was kept.
func (m *manager) prepare(cmd *exec.Cmd) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path, cmd.ExtraFiles = "/bin/sh", m.files
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.path, "LISTEN_FDS="+strconv.Itoa(len(m.files)),
		"LISTEN_FDNAMES="+strings.Join(m.names, ":"))
}

// kill ends the supervisor, and with it the server, as a fault does.
func (d *daemon) kill() {
	d.t.Helper()
	server := d.server()
	must(d.t, d.conn.Close())
	must(d.t, d.supervisor.Process.Kill())
	if err := d.supervisor.Wait(); err == nil {
		d.t.Error("it wasn't killed")
	}
	eventually(d.t, "the end of the server", func() bool { return errors.Is(unix.Kill(server, 0), unix.ESRCH) })
}

// A restart, as of an upgrade, is no more to a container than a pause.
func TestContainersOutliveARestart(t *testing.T) { forRungs(t, testRestart) }

func testRestart(t *testing.T, r rung) {
	d := start(t, r)
	d.unpackThin("thin", "")
	want := tree(t, d.mount(d.View(t.Context(), "v", "thin")))
	d.stop()
	d.manager = newManager(t, d.dir+"/notify")
	d.launch() // the first with a manager: mounts anew
	dir := d.mount(d.Prepare(t.Context(), "c", "thin"))
	for _, end := range []func(){d.stop, d.kill} {
		end()
		read := make(chan []string)
		go func() { read <- tree(t, dir) }()
		select {
		case lines := <-read: // all that was needed is on disk
			go func() { read <- lines }()
		case <-time.After(200 * time.Millisecond):
		}
		d.launch()
		if diff := cmp.Diff(want, <-read); diff != "" {
			t.Error(diff)
		}
	}
	if m := d.manager; m.ready != 3 {
		t.Errorf("said to be ready %d times, descriptors %v", m.ready, m.names)
	}
	if _, err := d.Stat(t.Context(), "none"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}
