package service

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/engine"
)

// manager stands in for systemd on a bus of its own. Its methods are those of org.freedesktop.systemd1.Manager.
type manager struct {
	conn *dbus.Conn

	mu     sync.Mutex
	calls  []string
	result string // of a restart; "" is no answer
}

const managerPath = dbus.ObjectPath("/org/freedesktop/systemd1")

func (m *manager) note(call string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, call)
}

// said returns the calls so far.
func (m *manager) said() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

func (m *manager) Subscribe() *dbus.Error { return nil }

func (m *manager) Reload() *dbus.Error {
	m.note("reload")
	return nil
}

func (m *manager) ResetFailedUnit(unit string) *dbus.Error {
	m.note("reset " + unit)
	if unit == "docker.socket" {
		return dbus.NewError("org.freedesktop.systemd1.NoSuchUnit", []any{"Unit docker.socket not loaded."})
	}
	return nil
}

func (m *manager) RestartUnit(unit, mode string) (dbus.ObjectPath, *dbus.Error) {
	m.note("restart " + unit + " " + mode)
	m.mu.Lock()
	defer m.mu.Unlock()
	const job = managerPath + "/job/7"
	if m.result != "" {
		if err := m.conn.Emit(managerPath, "org.freedesktop.systemd1.Manager.JobRemoved", uint32(7), job, unit,
			m.result); err != nil {
			return job, dbus.MakeFailedError(err)
		}
	}
	return job, nil
}

// properties are a unit's.
type properties map[string]any

func (p properties) GetAll(string) (map[string]dbus.Variant, *dbus.Error) {
	all := map[string]dbus.Variant{}
	for name, value := range p {
		all[name] = dbus.MakeVariant(value)
	}
	return all, nil
}

// execCommand is one of ExecStart.
type execCommand struct {
	Path                                       string
	Argv                                       []string
	Ignore                                     bool
	Start, StartMonotonic, Exit, ExitMonotonic uint64
	PID                                        uint32
	Code, Status                               int32
}

type environmentFile struct {
	Path     string
	Optional bool
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=%/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy></busconfig>`

// fakeSystemd starts a bus with a manager that knows docker.service, and makes it this process's system bus.
func fakeSystemd(t *testing.T) *manager {
	t.Helper()
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := engine.FindProgram(cache, "dbus-daemon")
	if err != nil {
		t.Skipf("needs a message bus: %v (make packages)", err)
	}
	libraries, err := engine.ProgramLibraries(cache)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(busConfig, "%", dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--nofork", "--print-address", "--config-file", config)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+libraries)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() // Wait tells
		cmd.Wait()
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the bus's address: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(address))

	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m := &manager{conn: conn, result: "done"}
	variables := filepath.Join(dir, "docker.default")
	text := "# options\nDOCKER_OPTS=\"--storage-driver overlay2 \\\n --data-root=/data\"\nEMPTY=\n; no\n"
	if err := os.WriteFile(variables, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for path, p := range map[dbus.ObjectPath]properties{
		managerPath + "/unit/docker_2eservice": {
			"LoadState": "loaded", "ActiveState": "active", "MainPID": uint32(42),
			"TriggeredBy":      []string{"docker.socket"},
			"Environment":      []string{"HOST=fd://", PluginVariable + "=1"},
			"EnvironmentFiles": []environmentFile{{variables, true}, {filepath.Join(dir, "missing"), true}},
			"ExecStart": []execCommand{{
				Path: "/usr/sbin/dockerd",
				Argv: []string{"/usr/sbin/dockerd", "-H", "${HOST}", "$DOCKER_OPTS", "$EMPTY", "--label=a=$$b"},
			}},
		},
		managerPath + "/unit/missing_2eservice": {"LoadState": "not-found"},
	} {
		if err := conn.Export(p, path, "org.freedesktop.DBus.Properties"); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Export(m, managerPath, "org.freedesktop.systemd1.Manager"); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName("org.freedesktop.systemd1", dbus.NameFlagDoNotQueue); err != nil ||
		reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	return m
}

func TestSystemdTellsHowItWillStartTheEngine(t *testing.T) {
	fakeSystemd(t)
	u, err := LoadUnit(t.Context(), "docker.service")
	if err != nil {
		t.Fatal(err)
	}
	want := &Unit{
		Name: "docker.service", PID: 42, State: "active", Triggers: []string{"docker.socket"},
		Args: []string{"-H", "fd://", "--storage-driver", "overlay2", "--data-root=/data", "--label=a=$b"},
		Environ: []string{
			"HOST=fd://", PluginVariable + "=1",
			"DOCKER_OPTS=--storage-driver overlay2  --data-root=/data", "EMPTY=",
		},
	}
	if diff := cmp.Diff(want, u); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct {
		unit string
		pid  int
		want bool
	}{{"docker.service", 42, true}, {"docker.service", 43, false}, {"missing.service", 0, false}} {
		if got := isMain(t.Context(), c.unit, c.pid); got != c.want {
			t.Errorf("process %d is the main one of %s: %t", c.pid, c.unit, got)
		}
	}
	if _, err := LoadUnit(t.Context(), "missing.service"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a unit that doesn't exist: %v", err)
	}
}

func TestSystemdRestartsTheEngine(t *testing.T) {
	m := fakeSystemd(t)
	r, err := Choose("systemd", &Engine{Unit: "docker.service"})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	if err := r.Restart(t.Context()); err != nil {
		t.Error(err)
	}
	want := []string{"reload", "reset docker.service", "reset docker.socket", "restart docker.service replace"}
	if diff := cmp.Diff(want, m.said()); diff != "" {
		t.Error(diff)
	}
	m.mu.Lock()
	m.result = "failed"
	m.mu.Unlock()
	if err := r.Restart(t.Context()); err == nil || !strings.Contains(err.Error(),
		`restart docker.service: the job's result is "failed"`) {
		t.Error(err)
	}
}

func TestARestartThatDoesNotEndIsGivenUp(t *testing.T) {
	m := fakeSystemd(t)
	m.result = ""
	ctx, cancel := contextThatEnds(t,
		func() bool { return slices.Contains(m.said(), "restart docker.service replace") })
	defer cancel()
	r, err := Choose("systemd:docker.service", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Restart(ctx); err == nil || !strings.Contains(err.Error(),
		"wait until it is done: context canceled") {
		t.Error(err)
	}
}

func TestWithoutSystemdThatIsSaid(t *testing.T) {
	if booted() {
		t.Log("systemd runs this machine: its own socket answers")
		return
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	if err := (unitRestarter{"docker.service"}).Restart(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "restart docker.service: connect to systemd: ") {
		t.Error(err)
	}
}
