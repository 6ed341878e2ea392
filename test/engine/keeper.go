package engine

import (
	"bufio"
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
	Private string   // folder for the namespace's own tmpfs
	Argv    []string // the engine, absolute path first
	Env     []string
	Log     string // file the engine's output is appended to
}

// What goes over the keeper's standard input and output, a word a line. The end of input ends everything.
const (
	orderStart = "start" // start the engine
	orderTerm  = "term"  // ask it to end
	orderKill  = "kill"  // end it at once, and only it

	eventReady   = "ready"   // the namespace is set up
	eventStarted = "started" // the engine was started; what comes after this is about it
	eventExited  = "exited"  // the engine ended, or had ended when it was to end; how follows
	eventFailed  = "failed"  // an order or the set-up was not carried out; the cause follows
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
		fmt.Printf("%s %v\n", eventFailed, err)
		os.Exit(1)
	}
	fmt.Println(eventReady)
	keep(&spec)
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

// keep carries out orders and reaps whatever becomes a child of process 1, until the input ends.
func keep(spec *keeperSpec) {
	orders := make(chan string)
	go func() {
		defer close(orders)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			orders <- in.Text()
		}
	}()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD, restartSignal)

	var engine int
	var again bool // the engine is to be started when it has ended
	for {
		select {
		case order, ok := <-orders:
			if !ok {
				return
			}
			if err := obey(spec, order, &engine); err != nil {
				fmt.Printf("%s %s: %v\n", eventFailed, order, err)
			}
		case s := <-signals:
			if s == restartSignal {
				again = true
				if engine != 0 {
					unix.Kill(engine, unix.SIGTERM)
				}
			}
			reap(&engine, again)
			if again && engine == 0 {
				again = false
				var err error
				if engine, err = launch(spec); err != nil {
					fmt.Printf("%s to restart: %v\n", eventFailed, err)
				}
			}
		}
	}
}

// obey carries out one order; engine is the engine's process, 0 for none.
func obey(spec *keeperSpec, order string, engine *int) error {
	switch order {
	case orderStart:
		pid, err := launch(spec)
		if err != nil {
			return err
		}
		*engine = pid
		fmt.Println(eventStarted)
		return nil
	case orderTerm, orderKill:
		if *engine == 0 {
			fmt.Println(eventExited, "before")
			return nil
		}
		return unix.Kill(*engine, map[string]unix.Signal{orderTerm: unix.SIGTERM, orderKill: unix.SIGKILL}[order])
	}
	return fmt.Errorf("unknown order")
}

// launch starts the engine. It is not waited for by os/exec, since a process 1 reaps all in one place.
func launch(spec *keeperSpec) (int, error) {
	log, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	return syscall.ForkExec(spec.Argv[0], spec.Argv, &syscall.ProcAttr{
		Dir:   filepath.Dir(spec.Log), // not /, where it makes a folder when it knows a plugin that was never enabled
		Env:   spec.Env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
	})
}

// reap collects every ended child and tells of the engine's end, unless that was asked for within.
func reap(engine *int, quiet bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if pid != *engine {
			continue
		}
		*engine = 0
		if quiet {
			continue
		}
		if status.Signaled() {
			fmt.Printf("%s by signal %v\n", eventExited, status.Signal())
		} else {
			fmt.Printf("%s with status %d\n", eventExited, status.ExitStatus())
		}
	}
}
