package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/engine"
)

func TestMain(m *testing.M) {
	engine.Main()
	os.Exit(m.Run())
}

// contextThatEnds returns a context that ends once something is so.
func contextThatEnds(t *testing.T, so func() bool) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for !so() && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond) // there is no event for it
		}
		cancel()
	}()
	return ctx, cancel
}

func TestFlagsAreTakenApart(t *testing.T) {
	for _, c := range []struct {
		args []string
		want []Flag
	}{
		{nil, nil},
		{
			[]string{"-H", "fd://", "--containerd=/run/containerd/containerd.sock"},
			[]Flag{{"host", "fd://"}, {"containerd", "/run/containerd/containerd.sock"}},
		},
		{
			[]string{"--storage-driver", "overlay2", "--storage-opt", "a=b", "--storage-opt=c=d"},
			[]Flag{{"storage-driver", "overlay2"}, {"storage-opt", "a=b"}, {"storage-opt", "c=d"}},
		},
		{
			[]string{"-soverlay2", "-s=vfs", "-g", "/data", "-Hunix:///x"},
			[]Flag{
				{"storage-driver", "overlay2"},
				{"storage-driver", "vfs"},
				{"graph", "/data"},
				{"host", "unix:///x"},
			},
		},
		{
			[]string{"-D", "-Ds", "vfs", "--experimental", "--debug=false"},
			[]Flag{{"debug", ""}, {"debug", ""}, {"storage-driver", "vfs"}, {"experimental", ""}, {"debug", "false"}},
		},
		{[]string{"--icc", "--", "-s", "vfs"}, []Flag{{"icc", ""}}},
		{[]string{"-Zx", "--data-root="}, []Flag{{"Z", "x"}, {"data-root", ""}}},
	} {
		if diff := cmp.Diff(c.want, ParseFlags(c.args)); diff != "" {
			t.Errorf("%q: %s", c.args, diff)
		}
	}
	if path := ConfigFile(ParseFlags([]string{"--config-file", "/a", "--config-file=/b"})); path != "/b" {
		t.Errorf("configuration file %s", path)
	}
	if path := ConfigFile(nil); path != "/etc/docker/daemon.json" {
		t.Errorf("default configuration file %s", path)
	}
}

func TestTheUnitIsToldByTheControlGroup(t *testing.T) {
	for cgroup, want := range map[string]string{
		"0::/system.slice/docker.service\n":                                              "docker.service",
		"12:pids:/system.slice/x.service\n1:name=systemd:/system.slice/docker.service\n": "docker.service",
		"0::/user.slice/user-0.slice/session-1.scope\n":                                  "",
		"0::/\n": "",
		"":       "",
	} {
		if got := unitOf(cgroup); got != want {
			t.Errorf("%q: %q, want %q", cgroup, got, want)
		}
	}
}

func TestARestarterIsChosenByItsWord(t *testing.T) {
	for _, word := range []string{"systemd:docker-ce.service", "openrc", "sysv", "command:true", "none"} {
		r, err := Choose(word, nil)
		if err != nil || r.String() != word {
			t.Errorf("Choose(%q) = %v, %v", word, r, err)
		}
		if err := r.Reload(t.Context()); word[:4] != "syst" && err != nil {
			t.Errorf("%s: %v", word, err)
		}
	}
	if r, err := Choose("systemd", &Engine{Unit: "my.service"}); err != nil || r.String() != "systemd:my.service" {
		t.Errorf("the unit of the engine: %v, %v", r, err)
	}
	for _, word := range []string{"", "command:", "command: ", "upstart", "systemd:"} {
		if r, err := Choose(word, nil); err == nil {
			t.Errorf("Choose(%q) = %v", word, r)
		}
	}
	if r, err := Choose("none", nil); err != nil || !errors.Is(r.Restart(t.Context()), ErrByHand) {
		t.Errorf("by hand: %v", err)
	}
}

func TestTheHostSaysWhatRestartsTheEngine(t *testing.T) {
	unit, process := &Engine{Unit: "my.service"}, &Engine{PID: 7}
	for _, c := range []struct {
		host   host
		engine *Engine
		want   string // of the word, or the error
	}{
		{host{systemd: true}, nil, "systemd"},
		{host{systemd: true, script: true}, unit, "systemd:my.service"},
		{
			host{systemd: true, script: true},
			process,
			"process 7, runs in no systemd unit (say how to restart it: --restart command:…)",
		},
		{host{openrc: true, script: true}, process, "openrc"},
		{host{script: true}, nil, "sysv"},
		{host{openrc: true}, nil, "is not known (say how to restart it: --restart command:…)"},
		{host{}, process, "is not known"},
	} {
		word, err := c.host.choose(c.engine)
		if err == nil {
			if _, unknown := Choose(word, c.engine); word != c.want || unknown != nil {
				t.Errorf("%+v: %q, %v, want %q", c.host, word, unknown, c.want)
			}
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.host, err, c.want)
		}
	}
}

func TestACommandIsRun(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	run := func(ctx context.Context, command string) error {
		r, err := Choose("command:"+command, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r.Restart(ctx)
	}
	if err := run(t.Context(), "echo done > "+mark); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(mark); err != nil || string(b) != "done\n" {
		t.Errorf("%q, %v", b, err)
	}
	err := run(t.Context(), "echo one; echo two >&2; exit 3")
	if err == nil || !strings.HasSuffix(err.Error(), "exit status 3\n  one\n  two") {
		t.Errorf("a command that fails: %v", err)
	}
	// The end of long output counts.
	if err := run(t.Context(), "yes | head -c 100000; echo last; false"); err == nil ||
		!strings.HasSuffix(err.Error(), "last") || len(err.Error()) > 3*maxOutput {
		t.Errorf("%.200v", err)
	}
	// What it leaves in the background, with its output, isn't waited for.
	pid := filepath.Join(t.TempDir(), "pid")
	start := time.Now()
	if err := run(t.Context(), "sleep 60 & echo $! > "+pid); err != nil || time.Since(start) > 30*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
	if err := run(t.Context(), "kill $(cat "+pid+")"); err != nil {
		t.Errorf("the process in the background: %v", err)
	}
	started := filepath.Join(t.TempDir(), "started")
	ctx, cancel := contextThatEnds(t, func() bool { return isFile(started) })
	defer cancel()
	if err := run(ctx, "touch "+started+"; sleep 60; true"); !errors.Is(err, context.Canceled) {
		t.Errorf("a command that hangs: %v", err)
	}
}

func TestTheLogIsTakenFromATimeOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.log")
	log := `continued
time="2026-11-28T10:00:00.5Z" level=info msg="Starting up"
failed to start daemon: old
time="2026-11-28T11:00:00.5Z" level=info msg="Starting up"
failed to start daemon: new
`
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := logSince(path, time.Date(2026, 11, 28, 10, 30, 0, 0, time.UTC))
	if want := log[strings.Index(log, `time="2026-11-28T11`):]; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := logSince(filepath.Join(t.TempDir(), "none"), time.Time{}); got != "" || err != nil {
		t.Errorf("no file: %q, %v", got, err)
	}
}

// logged is a restarter that has a log.
type logged struct {
	byHand
	log atomic.Value
}

func (l *logged) Log(context.Context, time.Time) (string, error) {
	return fmt.Sprint(l.log.Load()), nil
}

func TestTheEngineIsWaitedForUntilItAnswersOrGivesUp(t *testing.T) {
	down := errors.New("connection refused")
	l := new(logged)
	l.log.Store("time=\"2026-11-28T10:00:00Z\" level=info msg=\"Starting up\"\n")
	pings := 0
	progressed := false
	err := Await(t.Context(), l, time.Time{}, time.Minute, func(context.Context) error {
		if pings++; pings <= looksEvery {
			return down
		}
		return nil
	}, func(time.Duration) { progressed = true })
	if err != nil || !progressed || pings != looksEvery+1 {
		t.Errorf("%v after %d pings, progress %t", err, pings, progressed)
	}

	never := func(context.Context) error { return down }
	if err := Await(t.Context(), l, time.Time{}, pingEvery, never, nil); !errors.Is(err, down) {
		t.Errorf("an engine that doesn't answer: %v", err)
	}
	l.log.Store("failed to start daemon: error initializing graphdriver: driver not supported\n")
	start := time.Now()
	err = Await(t.Context(), l, time.Time{}, time.Minute, never, nil)
	if err == nil || !strings.Contains(err.Error(), "doesn't start: failed to start daemon: error initializing") ||
		time.Since(start) > 30*time.Second {
		t.Errorf("an engine that has given up, after %s: %v", time.Since(start), err)
	}
}

func TestTheDropInComesAndGoes(t *testing.T) {
	d := DropIn{Root: t.TempDir(), Unit: "docker.service"}
	if d.Exists() {
		t.Error("it is there before")
	}
	for range 2 {
		if err := d.Write(); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(d.Root, "etc/systemd/system/docker.service.d/cvmfs-graphdriver.conf")
	b, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(b),
		"\n[Service]\nEnvironment=DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS=1\n") || !d.Exists() {
		t.Errorf("%q, %v", b, err)
	}
	theirs := filepath.Join(filepath.Dir(path), "theirs.conf")
	if err := os.WriteFile(theirs, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := os.Remove(theirs); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Write(), d.Remove()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder: %v", err)
	}
	if err := (DropIn{Root: theirs + "/no", Unit: "x"}).Write(); err != nil {
		t.Errorf("folders are made: %v", err)
	}
}

func TestWhatIsNoEngineIsNotTakenForOne(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if isFile(pidFile) || booted() {
		t.Log("this machine may have an engine, which is found instead")
		return
	}
	if e, err := Find(t.Context(), "unix://"+socket); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v, %v", e, err)
	}
	if _, err := Find(t.Context(), socket+"x"); err == nil {
		t.Error("a socket that isn't there")
	}
}

// Both engines: the running one is found, and one that doesn't start has its cause told.
func TestTheAddressesOfAnEngineAreThoseOfItsFlags(t *testing.T) {
	for _, c := range []struct{ args, configured, want []string }{
		{nil, nil, []string{"unix:///var/run/docker.sock"}},
		{nil, []string{"unix:///a"}, []string{"unix:///a"}},
		{[]string{"-H", "unix:///b", "--host=tcp://c"}, []string{"unix:///a"}, []string{"unix:///b", "tcp://c"}},
	} {
		if diff := cmp.Diff(c.want, (&Engine{Args: c.args}).Addresses(c.configured)); diff != "" {
			t.Errorf("%q: %s", c.args, diff)
		}
	}
}

func TestTheAgeOfAProcessIsKnown(t *testing.T) {
	begun := time.Now()
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	time.Sleep(50 * time.Millisecond)
	const exact = 20 * time.Millisecond // two ticks
	young, err := (&Engine{PID: cmd.Process.Pid}).Age()
	if limit := time.Since(begun) + exact; err != nil || young < 50*time.Millisecond-exact || young > limit {
		t.Errorf("%v, %v; at most %v", young, err, limit)
	}
	own, err := (&Engine{PID: os.Getpid()}).Age()
	if err != nil || own < young {
		t.Errorf("this process: %v, %v", own, err)
	}
	if _, err := (&Engine{PID: 1 << 22}).Age(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
}

func TestARealEngine(t *testing.T) {
	for name, find := range map[string]func(context.Context, string) (*engine.Tools, error){
		"old": engine.Find,
		"new": engine.FindNewer,
	} {
		t.Run(name, func(t *testing.T) {
			e := engine.NewFor(t, find)
			if err := e.Start(t.Context(), map[string]any{"storage-driver": "vfs"}); err != nil {
				t.Fatal(err)
			}
			found, err := Find(t.Context(), "unix://"+e.Socket())
			if err != nil {
				t.Fatal(err)
			}
			config := filepath.Join(filepath.Dir(e.Socket()), "daemon.json")
			if path := ConfigFile(ParseFlags(found.Args)); path != config ||
				filepath.Base(found.Program) != "dockerd" || found.LogFile != e.LogFile() {
				t.Errorf("found %+v, configuration file %s", found, path)
			}
			if home, ok := lookup(found.Environ, "HOME"); !ok ||
				home != filepath.Join(filepath.Dir(e.Socket()), "home") {
				t.Errorf("HOME=%s, %t", home, ok)
			}
			if _, ok := lookup(found.Environ, PluginVariable); ok {
				t.Errorf("%s is set", PluginVariable)
			}
			r, err := Choose("command:true", found)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				settings map[string]any
				want     string
			}{
				{
					map[string]any{"storage-driver": "thin"},
					"graphdriver plugins are only supported with experimental mode",
				},
				{
					map[string]any{"storage-driver": "overlay2", "storage-opts": []string{"cvmfs.view=auto"}},
					"overlay2: unknown option cvmfs.view",
				},
				{
					map[string]any{"no-such-key": true},
					"the following directives don't match any configuration option: no-such-key",
				},
			} {
				since := time.Now()
				if err := e.Start(t.Context(), c.settings); err == nil {
					t.Fatalf("an engine with %v started", c.settings)
				}
				log, err := r.Log(t.Context(), since)
				if err != nil {
					t.Fatal(err)
				}
				if cause := Cause(log); !strings.Contains(cause, c.want) || !gaveUp(log) {
					t.Errorf("with %v the cause is %q, want %q, of\n%s", c.settings, cause, c.want,
						log[max(0, len(log)-2000):])
				}
			}
		})
	}
}
