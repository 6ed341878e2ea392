package engine

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockPoll = 200 * time.Millisecond
	dockerd  = "engine" // the engine's name as a service
)

// Engine is one private engine. Its methods are not for concurrent use, apart from those that run a client.
type Engine struct {
	// Containerd is the engine's own, which is to be started before it; nil for an engine that starts one by itself.
	Containerd *Containerd

	tools  *Tools
	dir    string
	parent string // control group of the containers
	first  string // folder that comes first in PATH
	keeper *exec.Cmd
	orders io.WriteCloser
	routed chan struct{} // closed when the keeper has nothing more to tell
	engine *Service

	mu       sync.Mutex
	services map[string]*Service
}

// Supported says why private engines can't run here, or nil.
func Supported() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: a private engine mounts and makes namespaces")
	}
	filesystems, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !strings.Contains(string(filesystems), "\toverlay\n") && exec.Command("modprobe", "overlay").Run() != nil {
		return errors.New("needs overlayfs: the kernel has none")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("needs FUSE: %w (modprobe fuse)", err)
	}
	return nil
}

// New sets up the namespaces for an engine in dir, an absolute path, which must exist and, as a unix socket lies in it,
// have less than 90 bytes. The engine isn't started yet. Close it, also if it was never started.
func New(tools *Tools, dir string) (*Engine, error) {
	if len(dir) > 90 {
		return nil, fmt.Errorf("make an engine in %s: the path is too long for a unix socket (set TMPDIR to a shorter one)", dir)
	}
	if err := Supported(); err != nil {
		return nil, fmt.Errorf("make an engine: %w", err)
	}
	e := &Engine{
		tools: tools, dir: dir, parent: "cvmfs-graphdriver" + groupName(dir), services: map[string]*Service{},
	}
	for _, sub := range []string{"private", "home", "data"} {
		if err := os.MkdirAll(e.path(sub), 0o711); err != nil {
			return nil, fmt.Errorf("make an engine: %w", err)
		}
	}
	var err error
	if e.first, err = e.wrapRunc(); err != nil {
		return nil, fmt.Errorf("make an engine: %w", err)
	}
	if err := e.linkClientPlugins(); err != nil {
		return nil, fmt.Errorf("make an engine: %w", err)
	}
	if err := e.startKeeper(); err != nil {
		e.Close()
		return nil, fmt.Errorf("make namespaces for an engine: %w", err)
	}
	e.engine = e.Service(dockerd, tools.Dockerd, "--config-file", e.ConfigFile())
	if tools.containerd != "" {
		e.Containerd = newContainerd(e)
	}
	return e, nil
}

// environ is the environment of what runs in the namespaces.
func (e *Engine) environ() []string {
	env := append(e.tools.Environ(), "HOME="+e.path("home"))
	for n, v := range env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			env[n] = "PATH=" + e.first + ":" + path
		}
	}
	return env
}

// startKeeper starts this program as the keeper and waits until the namespaces are set up.
func (e *Engine) startKeeper() error {
	spec, err := json.Marshal(keeperSpec{Private: e.path("private")})
	if err != nil {
		return err
	}
	keeper := exec.Command("/proc/self/exe")
	keeper.Args[0] = "engine-keeper"
	keeper.Env = append(os.Environ(), keeperVariable+"="+string(spec))
	keeper.Stderr = os.Stderr
	// A process group of its own: a Ctrl-C is for us, who then end the engine in order.
	keeper.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Setpgid: true}
	if e.orders, err = keeper.StdinPipe(); err != nil {
		return err
	}
	out, err := keeper.StdoutPipe()
	if err != nil {
		return err
	}
	itself := e.Service("") // whose events are the keeper's own
	if err := keeper.Start(); err != nil {
		return err
	}
	e.keeper = keeper
	e.routed = make(chan struct{})
	go func() {
		defer close(e.routed)
		e.route(out)
	}()
	if err := itself.await(context.Background(), eventReady); err != nil {
		return fmt.Errorf("%w (a program that uses engines calls engine.Main first)", err)
	}
	return nil
}

func (e *Engine) path(name string) string { return filepath.Join(e.dir, name) }

// ControlGroup is the name of the control group of the engine's containers.
func (e *Engine) ControlGroup() string { return e.parent }

// Data is the engine's data folder.
func (e *Engine) Data() string { return e.path("data") }

// Socket is the path of the socket the engine listens on.
func (e *Engine) Socket() string { return e.path("docker.sock") }

// LogFile is the file with the engine's output over all its starts.
func (e *Engine) LogFile() string { return e.engine.process.Log }

// Log is the content of the log file, "" before the first start.
func (e *Engine) Log() string { return e.engine.Log() }

// Start writes the engine's daemon.json with the settings given besides those that make it private, starts it and waits
// until it answers. The error of one that doesn't start has the lines in which the engine says why.
func (e *Engine) Start(ctx context.Context, settings map[string]any) error {
	all := map[string]any{
		"data-root":        e.Data(),
		"pidfile":          e.path("engine.pid"),
		"hosts":            []string{"unix://" + e.Socket()},
		"exec-opts":        []string{"native.cgroupdriver=cgroupfs"},
		"cgroup-parent":    "/" + e.parent,
		"bridge":           "none",
		"iptables":         false,
		"ip-forward":       false,
		"ip-masq":          false,
		"userland-proxy":   false,
		"shutdown-timeout": 5,
	}
	if e.Containerd != nil {
		all["containerd"] = e.Containerd.Socket()
	}
	maps.Copy(all, settings)
	config, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("write the engine's daemon.json: %w", err)
	}
	if err := os.WriteFile(e.path("daemon.json"), append(config, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the engine's daemon.json: %w", err)
	}
	return e.engine.Start(ctx, e.answers)
}

// answers reports an error until the engine answers a ping.
func (e *Engine) answers(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", e.Socket())
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/_ping", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// RestartCommand is a shell command for those inside that restarts the engine, as a service manager does: with the
// daemon.json that is there. It returns when the former engine has ended.
func (e *Engine) RestartCommand() string {
	return fmt.Sprintf("pid=$(cat %s 2>/dev/null || echo none); kill -HUP 1; while kill -0 $pid 2>/dev/null; do sleep 0.1; done", e.path("engine.pid"))
}

// ConfigFile is the engine's daemon.json.
func (e *Engine) ConfigFile() string { return e.path("daemon.json") }

// Stop asks the engine to end and waits for it. Containers end with it.
func (e *Engine) Stop(ctx context.Context) error { return e.engine.Stop(ctx) }

// Kill ends the engine's process, as kill -9 does, and nothing else: containers and plugins live on.
func (e *Engine) Kill(ctx context.Context) error { return e.engine.Kill(ctx) }

// Close ends the engine and everything in its namespaces and removes what they leave in the machine's control groups.
// The engine's folder stays; the caller made it. An engine that runs is best stopped first: Close kills.
func (e *Engine) Close() error {
	if e.keeper == nil {
		return nil
	}
	e.orders.Close()
	<-e.routed
	err := e.keeper.Wait() // returns when every process of the PID namespace is gone
	e.keeper = nil
	if err != nil {
		err = fmt.Errorf("end the engine's keeper: %w", err)
	}
	return errors.Join(err, e.removeControlGroups())
}

// removeControlGroups removes the control groups of the containers' parent and of plugins. An engine that was killed
// leaves them, and even one that ends in order leaves the parent.
func (e *Engine) removeControlGroups() error {
	ours := map[string]bool{e.parent: true}
	// With userns-remap the engine's data lies in a folder named <uid>.<gid>.
	for _, pattern := range []string{"plugins/*", "*.*/plugins/*"} {
		plugins, err := filepath.Glob(filepath.Join(e.Data(), pattern))
		if err != nil {
			return err
		}
		for _, plugin := range plugins {
			if name := filepath.Base(plugin); len(name) == hex.EncodedLen(32) {
				ours[name] = true
			}
		}
	}
	groups, err := controlGroups(func(name string) bool { return ours[name] })
	if err != nil {
		return err
	}
	for _, group := range groups {
		if err := removeTree(group); err != nil {
			return err
		}
	}
	return nil
}

// removeTree removes a control group and those below it: folders only, the files in them go by themselves.
func removeTree(group string) error {
	entries, err := os.ReadDir(group)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(group, entry.Name())); err != nil {
				return err
			}
		}
	}
	// unix.Rmdir, as os.Remove tries unlink first and then reports that one's error.
	if err := unix.Rmdir(group); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the control group %s: %w", group, err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
