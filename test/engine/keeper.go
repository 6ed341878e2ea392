package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// keeperVariable names the environment variable that makes a program a keeper; its value is the keeperSpec.
const keeperVariable = "CVMFS_GRAPHDRIVER_ENGINE_KEEPER"

// keeperSpec is what a keeper is told when it starts.
type keeperSpec struct {
	Private string // folder for the namespace's own tmpfs
}

// process is what the keeper starts.
type process struct {
	Argv []string // absolute path first
	Env  []string
	Log  string // file its output is appended to; the program's folder is the file's
}

// order and event are what goes over the keeper's standard input and output, as JSON. The end of input ends everything.
type (
	order struct {
		Do      string
		Service string
		Process process // to start
	}
	event struct {
		Service string // "" for the keeper itself
		What    string
		How     string // of an end or a failure
	}
)

const (
	orderStart = "start" // start the service
	orderTerm  = "term"  // ask it to end
	orderKill  = "kill"  // end it at once, and only it

	eventReady   = "ready"   // the namespace is set up
	eventStarted = "started" // the service was started; what comes after this is about it
	eventExited  = "exited"  // the service ended, or had ended when it was to end
	eventFailed  = "failed"  // an order or the set-up was not carried out
)

// restartSignal has the keeper restart the engine; those inside may send it.
const restartSignal = unix.SIGHUP

// Main turns the program into a keeper when it was started as one and then doesn't return. Programs that use [New] call
// it first thing in main, tests in TestMain.
func Main() {
	value, ok := os.LookupEnv(keeperVariable)
	if !ok {
		return
	}
	var spec keeperSpec
	err := json.Unmarshal([]byte(value), &spec)
	if err == nil {
		err = isolate(spec.Private)
	}
	if err != nil {
		tell(event{What: eventFailed, How: err.Error()})
		os.Exit(1)
	}
	tell(event{What: eventReady})
	(&keeper{services: map[string]*kept{}}).keep()
	os.Exit(0)
}

// isolate sets the mount namespace up: changes to /etc, /opt and /run stay in a tmpfs, /proc shows the new PID
// namespace.
func isolate(private string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", private, "tmpfs", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", private, err)
	}
	for _, dir := range []string{"etc", "opt", "run"} {
		upper, work := filepath.Join(private, dir, "upper"), filepath.Join(private, dir, "work")
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
			return err
		}
		options := fmt.Sprintf("lowerdir=/%s,upperdir=%s,workdir=%s", dir, upper, work)
		if err := unix.Mount("overlay", "/"+dir, "overlay", 0, options); err != nil {
			return fmt.Errorf("mount an overlay on /%s: %w", dir, err)
		}
	}
	// An engine that runs on the machine has its state and the sockets of its plugins here.
	if err := os.MkdirAll("/run/docker", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run/docker", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount a tmpfs on /run/docker: %w", err)
	}
	// An engine that sees AppArmor loads a profile into the kernel, where it would outlive the namespace.
	const security = "/sys/kernel/security"
	if _, err := os.Stat(filepath.Join(security, "apparmor")); err == nil {
		if err := unix.Mount("tmpfs", security, "tmpfs", unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("hide AppArmor: %w", err)
		}
	}
	// As systemd has it on most machines: a plugin that outlives the engine goes on to show its mounts to the next one
	// only so.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the mounts: %w", err)
	}
	return nil
}

// keeper is process 1.
type keeper struct{ services map[string]*kept }

// kept is a service that was started.
type kept struct {
	process process
	pid     int  // 0: it has ended
	again   bool // it is to be started when it has ended
}

// keep carries out orders and reaps whatever becomes a child of process 1, until the input ends.
func (k *keeper) keep() {
	orders := make(chan order)
	go func() {
		defer close(orders)
		for in := json.NewDecoder(os.Stdin); ; {
			var o order
			if in.Decode(&o) != nil {
				return
			}
			orders <- o
		}
	}()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD, restartSignal)
	for {
		select {
		case o, ok := <-orders:
			if !ok {
				return
			}
			if err := k.obey(o); err != nil {
				tell(event{o.Service, eventFailed, fmt.Sprintf("to %s: %v", o.Do, err)})
			}
		case s := <-signals:
			if s == restartSignal {
				k.restart(dockerd)
			}
			k.reap()
		}
	}
}

func tell(e event) { json.NewEncoder(os.Stdout).Encode(e) } // a write that fails means that nobody waits for it

// obey carries out one order.
func (k *keeper) obey(o order) error {
	s := k.services[o.Service]
	switch o.Do {
	case orderStart:
		pid, err := launch(&o.Process)
		if err != nil {
			return err
		}
		k.services[o.Service] = &kept{process: o.Process, pid: pid}
		tell(event{Service: o.Service, What: eventStarted})
		return nil
	case orderTerm, orderKill:
		if s == nil || s.pid == 0 {
			tell(event{o.Service, eventExited, "before"})
			return nil
		}
		return unix.Kill(s.pid, map[string]unix.Signal{orderTerm: unix.SIGTERM, orderKill: unix.SIGKILL}[o.Do])
	}
	return errors.New("unknown order")
}

// restart has a service started that was started before, after it has ended if it runs.
func (k *keeper) restart(service string) {
	if s := k.services[service]; s != nil {
		s.again = true
		if s.pid != 0 {
			unix.Kill(s.pid, unix.SIGTERM)
			return
		}
		s.start(service)
	}
}

func (s *kept) start(service string) {
	s.again = false
	var err error
	if s.pid, err = launch(&s.process); err != nil {
		tell(event{service, eventFailed, fmt.Sprintf("to restart: %v", err)})
	}
}

// launch starts a program. It is not waited for by os/exec, since a process 1 reaps all in one place.
func launch(p *process) (int, error) {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	return syscall.ForkExec(p.Argv[0], p.Argv, &syscall.ProcAttr{
		// Not /, where an engine makes a folder when it knows a plugin that was never enabled.
		Dir:   filepath.Dir(p.Log),
		Env:   p.Env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
	})
}

// reap collects every ended child and tells of the services' ends, but for one that is to be restarted.
func (k *keeper) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for name, s := range k.services {
			if s.pid == pid {
				k.ended(name, s, status)
			}
		}
	}
}

func (k *keeper) ended(name string, s *kept, status unix.WaitStatus) {
	s.pid = 0
	switch {
	case s.again:
		s.start(name)
	case status.Signaled():
		tell(event{name, eventExited, fmt.Sprintf("by signal %v", status.Signal())})
	default:
		tell(event{name, eventExited, fmt.Sprintf("with status %d", status.ExitStatus())})
	}
}
