package supervise

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/test/fusetest"
	"cvmfs-graphdriver/test/testutil"
)

// The test program is also the supervisor and the server.
// A server's first goroutine keeps the process's first thread, on which it may wait.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "server" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 2 && os.Args[1] == "supervisor":
		os.Exit(runSupervisor(os.Args[2]))
	case len(os.Args) > 1 && os.Args[1] == "server":
		os.Exit(runServer(strings.Join(os.Args[2:], "")))
	}
	os.Exit(m.Run())
}

func runSupervisor(text string) int {
	var cfg Config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	// Orphans come to this process, as to process 1 of a container.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if err := Run(context.Background(), cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// runServer answers each line on the socket: "who" with its pid, its generation and whether it has a journal, "orphan"
// with the pid of a process that has lost its parent and ends soon.
//
// A stubborn server does not end on SIGTERM. A wedged one, which is what becomes of the first started with that word,
// waits for a FUSE request of its own that it doesn't answer; the word is the name of a file to note that in, behind
// "first:" if it is to be the process's first thread that waits.
func runServer(manner string) int {
	if manner == "stubborn" {
		signal.Ignore(syscall.SIGTERM)
	}
	in, err := Inherited()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var tree fusewire.Handler = files{}
	note, first := strings.CutPrefix(manner, "first:")
	wait := func() {}
	if strings.HasPrefix(note, "/") {
		if f, err := os.OpenFile(note, os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			f.Close()
			tree = wedged{note: note}
			// A thread of this process waits for a reply of this process. Not even SIGKILL ends that.
			wait = func() { os.Stat(filepath.Join(filepath.Dir(note), "fuse")) } // is not to return
		}
	}
	go fusewire.Serve(in.Fuse, tree, fusewire.Config{
		Init: in.Init, Journal: in.Journal,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}) // ends with the process
	if !first {
		go wait()
		return answer(in)
	}
	go answer(in)
	wait()
	select {}
}

// answer answers what comes in on the socket.
func answer(in *Inheritance) int {
	for {
		c, err := in.Listener.Accept()
		if err != nil {
			return 1
		}
		go func() {
			defer c.Close()
			line, _ := bufio.NewReader(c).ReadString('\n')
			switch line {
			case "who\n":
				fmt.Fprintln(c, os.Getpid(), in.Generation, in.Journal != nil)
			case "orphan\n":
				out, _ := exec.Command("sh", "-c", "sleep 0.2 >/dev/null & echo $!").Output()
				c.Write(out) // the test sees nothing then
			}
		}()
	}
}

// wedged never answers for a file's attributes, and notes with a file that it was asked.
type wedged struct {
	files
	note string
}

// waits is the file that a wedged server makes when it is asked.
func waits(note string) string { return note + ".waits" }

func (w wedged) Blocks(fusewire.Op, uint64) bool { return true }

func (w wedged) Getattr(context.Context, uint64) (fusewire.Attr, syscall.Errno) {
	if err := os.WriteFile(waits(w.note), nil, 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	select {}
}

// files is a folder of files named by their number, whose content follows from it. Reading takes a while, so that a
// server always has requests under way when it is killed.
type files struct{}

const fileSize = 3*4096 + 5

func fileContent(n uint64) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%08d\n", n)), fileSize/9+1)[:fileSize]
}

func (files) Blocks(op fusewire.Op, _ uint64) bool {
	return op == fusewire.OpRead || op == fusewire.OpLookup
}

func (files) Lookup(_ context.Context, _ uint64, name []byte) (fusewire.Entry, syscall.Errno) {
	var n uint64
	if _, err := fmt.Sscanf(string(name), "%d", &n); err != nil {
		return fusewire.Entry{}, syscall.ENOENT
	}
	attr, errno := files{}.Getattr(context.Background(), n+2)
	return fusewire.Entry{Node: n + 2, Attr: attr, Valid: fusewire.Forever}, errno
}

func (files) Getattr(_ context.Context, node uint64) (fusewire.Attr, syscall.Errno) {
	if node == fusewire.RootNode {
		return fusewire.Attr{Mode: syscall.S_IFDIR | 0o555}, 0
	}
	return fusewire.Attr{Mode: syscall.S_IFREG | 0o444, Size: fileSize}, 0
}

func (files) Read(_ context.Context, node uint64, p []byte, off int64) (int, syscall.Errno) {
	time.Sleep(time.Duration(rand.IntN(4)) * time.Millisecond)
	return copy(p, fileContent(node - 2)[off:]), 0
}

func (files) Readdir(context.Context, uint64, uint64, func(string, fusewire.Entry) bool) syscall.Errno {
	return 0
}

// plugin is a supervisor in a process of its own.
type plugin struct {
	t   *testing.T
	cfg Config
	cmd *exec.Cmd
	out bytes.Buffer // what it and its servers wrote; to be read when it has ended
}

// launch starts a supervisor; cfg lacks only paths, which lie in dir.
func launch(t *testing.T, dir string, cfg Config) *plugin {
	t.Helper()
	fusetest.Require(t)
	cfg.Socket, cfg.FuseDir = filepath.Join(dir, "run", "plugin.sock"), filepath.Join(dir, "fuse")
	if cfg.Args == nil {
		cfg.Args = []string{"server"}
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	program := cfg.Program
	if program == "" {
		if program, err = os.Executable(); err != nil {
			t.Fatal(err)
		}
	}
	p := &plugin{t: t, cfg: cfg, cmd: exec.Command(program, "supervisor", string(text))}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.WaitDelay = 10 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Kill() // over already
			p.cmd.Wait()         // killed
		}
		if err := fusewire.Unmount(cfg.FuseDir); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("supervisor and servers wrote:\n%s", p.out.String())
		}
	})
	return p
}

// ask sends a line to whichever server is or comes up, and gives the words of the answer. An answer is tried for again:
// the server may be killed while it has the question.
func (p *plugin) ask(line string) []string {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", p.cfg.Socket)
		if err != nil {
			continue // not listening yet
		}
		fmt.Fprintln(c, line)
		// A server that was killed while it waits for itself keeps what it has accepted.
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			p.t.Fatal(err)
		}
		answer, _ := io.ReadAll(c)
		c.Close()
		if len(answer) > 0 {
			return strings.Fields(string(answer))
		}
	}
	p.t.Fatalf("nobody answers %q", line)
	return nil
}

// server is the process id of the server.
func (p *plugin) server() int {
	p.t.Helper()
	return number(p.t, p.ask("who")[0])
}

func number(t *testing.T, s string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// killServer kills the server with -9 and gives the next one's process id.
func (p *plugin) killServer() int {
	p.t.Helper()
	old := p.server()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		p.t.Fatal(err)
	}
	for {
		if pid := p.server(); pid != old {
			return pid
		}
	}
}

// stop ends the supervisor by SIGTERM.
func (p *plugin) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("supervisor: %v", err)
	}
}

// gone fails the test unless the process ends soon.
func gone(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			t.Fatalf("process %d is still there:\n%.200s", pid, status)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func mounted(t *testing.T, dir string) bool {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(mounts), " "+dir+" ")
}

// client reads files until it is stopped: some through an overlay on the FUSE mount again and again, whose content is
// dropped from the page cache after each reading, and others on the FUSE mount itself once each.
type client struct {
	stop   context.CancelFunc
	wg     sync.WaitGroup
	files  atomic.Int64
	failed chan error
}

const overlayFiles = 200

func startClient(t *testing.T, p *plugin) *client {
	t.Helper()
	p.server() // mounting an overlay needs one
	lower := t.TempDir()
	for i := range overlayFiles {
		fusetest.Hole(t, filepath.Join(lower, fmt.Sprint(i)), fileSize, fmt.Sprintf("/%d", i))
	}
	root, ok := fusetest.TryOverlay(t, lower, p.cfg.FuseDir)
	if !ok {
		root = p.cfg.FuseDir
	}
	ctx, stop := context.WithCancel(t.Context())
	c := &client{stop: stop, failed: make(chan error, 16)}
	for range 8 {
		c.wg.Go(func() {
			for ctx.Err() == nil {
				i := c.files.Add(1)
				c.read(root, i%overlayFiles)
				c.read(p.cfg.FuseDir, i+overlayFiles)
			}
		})
	}
	return c
}

// read reads one file and compares it. It does without os.Open, which polls the file: the kernel then waits for the
// server while Go's scheduler waits for the kernel.
func (c *client) read(dir string, i int64) {
	fd, err := unix.Open(filepath.Join(dir, fmt.Sprint(i)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		c.fail(i, err)
		return
	}
	defer unix.Close(fd)
	buf := make([]byte, fileSize+1)
	n, err := unix.Read(fd, buf)
	if err != nil || !bytes.Equal(buf[:max(n, 0)], fileContent(uint64(i))) {
		c.fail(i, fmt.Errorf("%d bytes read, %w", n, err))
	}
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		c.fail(i, err)
	}
}

func (c *client) fail(i int64, err error) {
	c.stop()
	select {
	case c.failed <- fmt.Errorf("file %d: %w", i, err):
	default: // enough is said
	}
}

func (c *client) end(t *testing.T) {
	t.Helper()
	c.stop()
	done := make(chan struct{})
	go func() { c.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("a read never ends")
	}
	close(c.failed)
	for err := range c.failed {
		t.Error(err)
	}
	t.Logf("%d files read", c.files.Load())
}

func TestReadersDoNotNoticeThatServersAreKilled(t *testing.T) {
	for _, noResend := range []bool{false, true} {
		t.Run(fmt.Sprintf("NoResend=%v", noResend), func(t *testing.T) {
			t.Parallel()
			p := launch(t, t.TempDir(), Config{NoResend: noResend})
			who := p.ask("who")
			generation := who[1]
			if !noResend && who[2] == "true" {
				testutil.KernelLacks(t, "resending of FUSE requests") // Linux 6.9
			}
			c := startClient(t, p)
			for range 6 {
				time.Sleep(150 * time.Millisecond)
				p.killServer()
			}
			before := c.files.Load()
			deadline := time.Now().Add(20 * time.Second)
			for ; c.files.Load() == before; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("readers stand still")
				}
			}
			c.end(t)
			if got := p.ask("who")[1]; got != generation {
				t.Errorf("generation %s, then %s", generation, got)
			}
			p.stop()
			if text := p.out.String(); noResend != strings.Contains(text, "requests left by the former server") {
				t.Errorf("NoResend=%v, but:\n%s", noResend, text)
			}
		})
	}
}

func TestTerminationLeavesNothing(t *testing.T) {
	for name, cfg := range map[string]Config{
		"server ends":         {},
		"server won't":        {Args: []string{"server", "stubborn"}, Grace: 200 * time.Millisecond},
		"server doesn't live": {Args: []string{"-test.run=^$"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := launch(t, t.TempDir(), cfg)
			pid := 0
			if len(cfg.Args) == 1 {
				time.Sleep(300 * time.Millisecond)
			} else {
				pid = p.server()
			}
			if !mounted(t, p.cfg.FuseDir) {
				t.Fatal("no FUSE mount")
			}
			p.stop()
			if mounted(t, p.cfg.FuseDir) {
				t.Error("the FUSE mount is left")
			}
			if _, err := os.Lstat(p.cfg.Socket); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("socket: %v", err)
			}
			if pid != 0 {
				gone(t, pid)
			}
		})
	}
}

func TestKilledSupervisorTakesItsServerAlongAndCanBeStartedAgain(t *testing.T) {
	dir := t.TempDir()
	first := launch(t, dir, Config{})
	pid, generation := first.server(), first.ask("who")[1]
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.cmd.Wait() // killed
	gone(t, pid)
	second := launch(t, dir, Config{})
	if got := second.ask("who")[1]; got == generation {
		t.Error("two mounts of one generation")
	}
	startClient(t, second).end(t)
	second.stop()
	if mounted(t, second.cfg.FuseDir) {
		t.Error("a FUSE mount is left")
	}
}

// A server that mounts an overlay waits for a request to itself. Its process does not end when it is killed at that
// moment, before the request is answered.
func TestServerThatWaitsForItselfIsReplaced(t *testing.T) {
	for _, noResend := range []bool{false, true} {
		for _, thread := range []string{"", "first:"} {
			t.Run(fmt.Sprintf("%sNoResend=%v", thread, noResend), func(t *testing.T) {
				replaceWedged(t, launchWedged(t, t.TempDir(), thread, Config{NoResend: noResend}))
			})
		}
	}
}

func replaceWedged(t *testing.T, p *plugin) {
	pids := children(t, p.cmd.Process.Pid)
	if len(pids) != 1 {
		t.Fatalf("servers: %d", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.server()
	gone(t, pids[0])
	p.stop()
}

func TestServerThatWaitsForItselfEndsWithTheSupervisor(t *testing.T) {
	dir := t.TempDir()
	p := launchWedged(t, dir, "", Config{Grace: 100 * time.Millisecond})
	pids := children(t, p.cmd.Process.Pid)
	p.stop()
	for _, pid := range pids {
		gone(t, pid)
	}
	if mounted(t, p.cfg.FuseDir) {
		t.Error("the FUSE mount is left")
	}
}

// launchWedged starts a supervisor whose first server waits for itself, by its first thread or another one, and waits
// until it does.
func launchWedged(t *testing.T, dir, thread string, cfg Config) *plugin {
	t.Helper()
	note := filepath.Join(dir, "wedged")
	cfg.Args = []string{"server", thread + note}
	p := launch(t, dir, cfg)
	for _, err := os.Stat(waits(note)); err != nil; _, err = os.Stat(waits(note)) {
		time.Sleep(10 * time.Millisecond)
	}
	return p
}

// children are the processes a process has started.
func children(t *testing.T, pid int) (pids []int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		for f := range strings.FieldsSeq(string(b)) {
			pids = append(pids, number(t, f))
		}
	}
	return pids
}

func TestCallsMadeWhileNoServerRunsAreAnswered(t *testing.T) {
	p := launch(t, t.TempDir(), Config{})
	for range 4 { // from the second on there is a pause before the next server
		pid := p.server()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		gone(t, pid)
		c, err := net.Dial("unix", p.cfg.Socket)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(c, "who")
		if answer, err := io.ReadAll(c); err != nil || len(answer) == 0 {
			t.Errorf("%q, %v", answer, err)
		}
		c.Close()
	}
	p.stop()
}

func TestOrphansAreReapedAndTheServersDeathIsStillSeen(t *testing.T) {
	p := launch(t, t.TempDir(), Config{})
	for range 3 {
		orphan := number(t, p.ask("orphan")[0])
		p.killServer()
		gone(t, orphan)
	}
	p.stop()
}

func TestReplacedProgramIsWhatStartsNext(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	install := func() string {
		name := filepath.Join(dir, "plugin.new")
		b, err := os.ReadFile(self)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o755); err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(dir, "plugin")
		if err := os.Rename(name, program); err != nil {
			t.Fatal(err)
		}
		return program
	}
	program := install()
	p := launch(t, dir, Config{Program: program})
	p.server()
	install()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.killServer()))
	if err != nil || exe != program {
		t.Errorf("the server runs %s, %v", exe, err)
	}
	p.stop()
}

func TestBeginRefuses(t *testing.T) {
	fusetest.Require(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg  Config
		want string
	}{
		"a file where the socket belongs": {Config{Socket: file, FuseDir: filepath.Join(dir, "fuse")}, "is no socket"},
		"a file where FUSE belongs":       {Config{Socket: filepath.Join(dir, "sock"), FuseDir: file}, "FUSE mount"},
		"a socket's path that is too long": {
			Config{Socket: filepath.Join(dir, strings.Repeat("x", 120)), FuseDir: filepath.Join(dir, "fuse")},
			"plugin's socket",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Run(t.Context(), c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			if mounted(t, c.cfg.FuseDir) {
				t.Error("a mount is left")
			}
		})
	}
}

func TestPausesGrowWhileServersDieYoung(t *testing.T) {
	s := &supervisor{}
	died := func(age time.Duration) time.Duration {
		s.started = time.Now().Add(-age)
		return s.nextPause()
	}
	var got []time.Duration
	for _, age := range []time.Duration{0, 0, 0, 0, 0, 0, 0, 0, time.Hour, 0} {
		got = append(got, died(age))
	}
	ms := time.Millisecond
	want := []time.Duration{0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3000 * ms, 3000 * ms, 0, 100 * ms}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestInheritedNeedsASupervisor(t *testing.T) {
	if _, err := Inherited(); !errors.Is(err, ErrNotSupervised) {
		t.Errorf("got %v", err)
	}
}
