package supervise

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/fusewire"
)

// Config says what to supervise. Socket and FuseDir are needed.
type Config struct {
	Socket  string // path of the plugin's socket; its folder is made, a stale socket removed
	FuseDir string // folder for the FUSE mount; made, a stale mount detached
	// of the server; this program's file by default (whatever lies there by then: an upgrade in place counts)
	Program  string
	Args     []string      // of the server, without its name
	Grace    time.Duration // how long the server may take to end on SIGTERM; 8 s, as engines kill after 10 s
	NoResend bool          // keep the journal even where the kernel can resend
	Keep     bool          // have a service manager that can do so keep socket and mount for the next supervisor
	Log      *slog.Logger
}

const (
	// young is the age under which a server's death counts as one of a row of failures.
	young = 10 * time.Second
	// The pauses before a server is started again: none after a first death, then firstPause, doubled up to maxPause.
	firstPause = 100 * time.Millisecond
	maxPause   = 3 * time.Second
	// lookEvery is how often the server is looked at.
	lookEvery = time.Second
)

// Run is the supervisor's life. It gives nil after SIGTERM, SIGINT or the end of ctx, when the server has ended and
// nothing is left of socket and mount unless somebody keeps them; an error if it can't begin. It reaps every child of
// this process, so nothing
// else in it may start processes.
func Run(ctx context.Context, cfg Config) error {
	// A server is to die with the supervisor. The kernel takes the thread that started it for the supervisor (prctl(2),
	// PR_SET_PDEATHSIG), so that thread must be kept.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGPIPE)
	s, err := begin(cfg)
	if err != nil {
		return fmt.Errorf("supervise: %w", err)
	}
	s.live(ctx)
	return s.end()
}

// supervisor is what outlives servers.
type supervisor struct {
	cfg      Config
	log      *slog.Logger
	env      []string
	listener *net.UnixListener
	socket   *os.File // of the listener
	fuse     *os.File
	journal  *os.File // nil: the kernel resends
	handover *os.File // a memory file, see store
	kept     bool     // the service manager keeps all that
	resumed  bool     // it had done so

	server  *os.Process // nil: none runs
	stuck   bool        // it seemed dead at the last look, but isn't reaped
	ending  bool
	started time.Time
	lives   int // servers started so far
	pause   time.Duration
}

// begin makes everything a server inherits.
func begin(cfg Config) (_ *supervisor, err error) {
	s := &supervisor{cfg: cfg, log: cfg.Log}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.end())
		}
	}()
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.Grace <= 0 {
		s.cfg.Grace = 8 * time.Second
	}
	if s.cfg.Program == "" {
		// not /proc/self/exe: that stays the old file when it is replaced
		if s.cfg.Program, err = os.Executable(); err != nil {
			return s, err
		}
	}
	if s.cfg.Keep {
		if err := s.resume(); err != nil {
			return s, err
		}
	}
	if s.listener == nil {
		if err := s.listen(); err != nil {
			return s, err
		}
	}
	if s.fuse == nil {
		if err := s.mount(); err != nil {
			return s, err
		}
	}
	return s, s.store()
}

// listen opens the plugin's socket.
func (s *supervisor) listen() error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o755); err != nil {
		return fmt.Errorf("folder of the plugin's socket: %w", err)
	}
	switch fi, err := os.Lstat(s.cfg.Socket); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("plugin's socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("plugin's socket: %s exists and is no socket: move it away", s.cfg.Socket)
	default:
		if err := os.Remove(s.cfg.Socket); err != nil {
			return fmt.Errorf("remove the stale socket: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.cfg.Socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("plugin's socket: %w", err)
	}
	s.listener = l
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil {
		return fmt.Errorf("plugin's socket: %w", err)
	}
	if s.socket, err = l.File(); err != nil {
		return fmt.Errorf("plugin's socket: %w", err)
	}
	return nil
}

// mount mounts FUSE, does the handshake and prepares what servers are told of it.
func (s *supervisor) mount() error {
	if err := fusewire.Unmount(s.cfg.FuseDir); err != nil {
		return err
	}
	if err := os.MkdirAll(s.cfg.FuseDir, 0o755); err != nil {
		return fmt.Errorf("folder for the FUSE mount: %w", err)
	}
	var err error
	if s.fuse, err = fusewire.Mount(s.cfg.FuseDir); err != nil {
		return err
	}
	var without uint64
	if s.cfg.NoResend {
		without = fusewire.FlagHasResend
	}
	h := handover{Generation: rand.Text()}
	if h.Init, err = fusewire.Handshake(s.fuse, without); err != nil {
		return err
	}
	if h.Journal = !h.Init.Has(fusewire.FlagHasResend); h.Journal {
		if s.journal, err = fusewire.NewJournal(); err != nil {
			return err
		}
	}
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if s.handover, err = memory(storedHandover, text); err != nil {
		return err
	}
	s.env = append(os.Environ(), variable+"="+string(text))
	s.log.Info("fuse mounted", "dir", s.cfg.FuseDir, "protocol", fmt.Sprintf("7.%d", h.Init.Minor), "journal",
		h.Journal, "generation", h.Generation)
	return nil
}

// live starts servers until ctx ends and the last of them is dead.
func (s *supervisor) live(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	start, kill, done := time.After(0), (<-chan time.Time)(nil), ctx.Done()
	for !s.ending || s.server != nil {
		dead := false
		select {
		case <-start:
			start = s.start()
		case <-died:
			dead = s.reap()
		case <-look.C:
			dead = s.giveUp()
		case <-done:
			s.ending, done, start = true, nil, nil
			if s.server != nil {
				s.signal(syscall.SIGTERM)
				kill = time.After(s.cfg.Grace)
			}
		case <-kill:
			s.kill()
		}
		if dead && !s.ending {
			start = time.After(s.nextPause())
		}
	}
}

// start starts a server. Where that fails it gives the time to try again.
func (s *supervisor) start() <-chan time.Time {
	if (s.lives > 0 || s.resumed) && s.journal == nil {
		if err := fusewire.Resend(s.fuse); err != nil {
			s.log.Error("requests of the former server are lost", "err", err)
		}
	}
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr, listenerFD: s.socket, fuseFD: s.fuse}
	if s.journal != nil {
		files = append(files, s.journal)
	}
	s.lives++
	s.started = time.Now()
	p, err := os.StartProcess(s.cfg.Program, append([]string{s.cfg.Program}, s.cfg.Args...), &os.ProcAttr{
		Env: s.env, Files: files, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		s.log.Error("start the server", "err", err)
		return time.After(max(s.nextPause(), firstPause))
	}
	s.server, s.stuck = p, false
	s.log.Info("server started", "pid", p.Pid, "life", s.lives)
	return nil
}

// reap collects every dead child: the server, and as process 1 of a container whatever was orphaned in it. It reports
// whether the server was among them. It waits in the stead of os.Process, which would have to compete with it.
func (s *supervisor) reap() (serverDied bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err != nil || pid == 0: // ECHILD: none left
			return serverDied
		case s.server != nil && pid == s.server.Pid:
			s.ended(how(status))
			serverDied = true
		}
	}
}

// giveUp reports whether the server is dead although it can't be reaped, seen twice in a row: a thread of it waits for
// a reply to a request that its own process has read. That happens to a server that is killed while it mounts an
// overlay on its own tree, and ends only when a successor answers the request.
func (s *supervisor) giveUp() bool {
	if s.server == nil {
		return false
	}
	dying := isDying(s.server.Pid)
	if !dying || !s.stuck {
		s.stuck = dying
		return false
	}
	s.ended("waits for itself")
	return true
}

// isDying reports whether a process is about to end: its first thread is a zombie, while another one goes on, or is
// still to take the SIGKILL by which the kernel ends all threads, whatever they die of; see proc_pid_status(5).
func isDying(pid int) bool {
	const killed = 1 << (unix.SIGKILL - 1)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false // it is gone, and will be reaped
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); name {
		case "State":
			if strings.HasPrefix(value, "Z") {
				return true
			}
		case "SigPnd":
			pending, err := strconv.ParseUint(value, 16, 64)
			return err == nil && pending&killed != 0
		}
	}
	return false
}

func (s *supervisor) ended(how string) {
	level := slog.LevelWarn
	if s.ending {
		level = slog.LevelInfo
	}
	s.log.Log(context.Background(), level, "server ended", "pid", s.server.Pid, "how", how, "age",
		time.Since(s.started).Round(time.Millisecond))
	s.server.Release() // gives back a descriptor, can't fail
	s.server = nil
}

func how(status unix.WaitStatus) string {
	if status.Signaled() {
		return status.Signal().String()
	}
	return fmt.Sprintf("exit %d", status.ExitStatus())
}

// nextPause is how long to wait before the next start, now that a server is dead.
func (s *supervisor) nextPause() time.Duration {
	if time.Since(s.started) >= young {
		s.pause = 0
	}
	pause := s.pause
	s.pause = min(max(2*s.pause, firstPause), maxPause)
	return pause
}

func (s *supervisor) signal(sig syscall.Signal) {
	if err := s.server.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.log.Error("signal the server", "signal", sig.String(), "err", err)
	}
}

// kill ends a server that did not end on SIGTERM. Without the mount it can't wait for itself; with one that is kept the
// next server answers it.
func (s *supervisor) kill() {
	s.log.Warn("server did not end in time: killed", "grace", s.cfg.Grace)
	if !s.kept {
		if err := fusewire.Unmount(s.cfg.FuseDir); err != nil {
			s.log.Error("end the server", "err", err)
		}
	}
	s.signal(syscall.SIGKILL)
}

// end gives everything back. Requests that still wait fail with ENOTCONN, unless the mount is kept.
func (s *supervisor) end() error {
	var errs []error
	if s.fuse != nil && !s.kept {
		errs = append(errs, fusewire.Unmount(s.cfg.FuseDir))
	}
	for _, f := range []*os.File{s.fuse, s.journal, s.handover} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if s.socket != nil {
		errs = append(errs, s.socket.Close())
	}
	if s.listener != nil {
		errs = append(errs, s.listener.Close()) // removes the socket's file, unless it is kept
	}
	return errors.Join(errs...)
}
