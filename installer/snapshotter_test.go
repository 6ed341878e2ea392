package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/test/testutil"
)

// fakeUnits are a host's services, as far as an installer of the snapshotter has to do with them: the snapshotter and
// a containerd, which reads its configuration when it starts.
type fakeUnits struct {
	engine          *fakeEngine
	dir             string
	active, enabled bool
	known           bool   // containerd knows the snapshotter
	broken          bool   // the snapshotter doesn't answer
	reloaded        bool   // systemd has read the definition that is there
	restarts        int    // of containerd
	settings        string // with which the snapshotter runs
	snapshots       int
	uses            []string
	dumb            bool // what is run says nothing
	left            bool // of a run that was killed, something is
	ran             []string
}

const containerdUnit = "containerd.service"

func (u *fakeUnits) path(name string) string { return filepath.Join(u.dir, name) }

func (u *fakeUnits) exists(name string) bool { return !absent(u.path(name)) }

func (u *fakeUnits) Restart(_ context.Context, unit string) error {
	if unit == containerdUnit {
		u.restarts++
		main, err := os.ReadFile(u.path("config.toml"))
		u.known = err == nil && strings.Contains(string(main), "drop.toml") && u.exists("drop.toml")
		return err
	}
	if !u.reloaded || !u.exists("unit") {
		return errors.New("there is no such unit")
	}
	settings, err := os.ReadFile(u.path("config.json"))
	u.active, u.settings = err == nil, string(settings)
	return err
}

func (u *fakeUnits) Stop(context.Context, string) error {
	if u.known {
		u.engine.t.Error("the snapshotter is stopped, and containerd knows it")
	}
	u.active = false
	return nil
}

func (u *fakeUnits) Enable(context.Context, string) error {
	u.enabled = true
	return nil
}

func (u *fakeUnits) Disable(context.Context, string) error {
	u.enabled = false
	return nil
}

func (u *fakeUnits) Reload(context.Context) error {
	u.reloaded = u.exists("unit")
	return nil
}

func (u *fakeUnits) State(context.Context, string) (active, enabled bool, err error) {
	return u.active, u.enabled, nil
}

func (u *fakeUnits) Ready(context.Context) error { return nil }

func (u *fakeUnits) Serves(context.Context, string, bool) error {
	if !u.known || !u.active || u.broken {
		return fmt.Errorf("known %t, active %t, broken %t", u.known, u.active, u.broken)
	}
	return nil
}

func (u *fakeUnits) Uses(context.Context, string) ([]string, error) { return u.uses, nil }

func (u *fakeUnits) Empty(context.Context, string) (int, error) {
	if !u.known || !u.active {
		return 0, errors.New("nobody answers for the snapshots")
	}
	removed := u.snapshots
	u.snapshots = 0
	return removed, nil
}

func (u *fakeUnits) Run(_ context.Context, snapshotter string, t containerd.Trial) (string, int, error) {
	if !u.known || !u.active || snapshotter != SnapshotterName {
		return "", 0, errors.New("nobody unpacks it")
	}
	u.ran = append(u.ran, t.Name)
	if u.dumb {
		return "", 0, nil
	}
	return strings.Join(t.Args, " ") + "\n", 0, nil
}

func (u *fakeUnits) Clear(context.Context) error {
	u.left = false
	return nil
}

// The files of before.
const (
	mainBefore   = "# the administrator's\nversion = 3\n"
	dockerBefore = "{\n  \"features\": {\"buildkit\": true},\n  \"debug\": true\n}\n"
)

// secondHost is a host without the plugin, in which an engine of Docker's runs on a containerd.
func secondHost(t *testing.T, docker bool) (*fakeUnits, *Installer, SnapshotterWishes) {
	t.Helper()
	f := newFakeEngine(t)
	u := &fakeUnits{engine: f, dir: filepath.Dir(f.socket)}
	f.known = func() bool { return u.known && u.active && !u.broken }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(u.path("config.toml"), []byte(mainBefore), 0o644))
	must(os.MkdirAll(filepath.Dir(f.file), 0o755))
	must(os.WriteFile(f.file, []byte(dockerBefore), 0o644))
	must(f.start())
	engine, err := Connect(f.socket)
	must(err)
	t.Cleanup(func() { engine.Close() })
	i := &Installer{
		Engine: engine, Service: fakeService{f.socket, u.path("docker.conf")}, Units: u, Containerd: u, Record: u.path("record/install.json"),
		Hello: u.path("config.toml"), Tell: func(Event) {}, Ask: func(context.Context, []string) error { return nil },
	}
	w := SnapshotterWishes{
		SettingsFile: u.path("config.json"), Settings: []daemonjson.Change{daemonjson.Set("debug", true)},
		Unit: &Text{u.path("unit"), []byte("[Unit]\n")},
		Config: []Text{
			{u.path("drop.toml"), []byte("version = 3\n")},
			{u.path("config.toml"), []byte(mainBefore + "imports = ['drop.toml']\n")},
		},
		ConfigUnit: containerdUnit, File: f.file, Preflight: func(context.Context) error { return nil },
	}
	if !docker {
		i.Engine, i.Service, w.File = nil, nil, ""
	}
	return u, i, w
}

// isAsBefore asserts that nothing of the snapshotter is left.
func (u *fakeUnits) isAsBefore(t *testing.T, when string) {
	t.Helper()
	for path, want := range map[string]string{u.path("config.toml"): mainBefore, u.engine.file: dockerBefore} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %s is %q, %v", when, path, got, err)
		}
	}
	for _, dir := range []string{u.dir, filepath.Dir(u.engine.file)} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !slices.Contains([]string{"config.toml", "daemon.json", "docker.sock", "data", "etc", "record"}, e.Name()) {
				t.Errorf("%s: %s is left", when, e.Name())
			}
		}
	}
	if u.active || u.enabled || u.known || !u.engine.up || u.engine.driver != "overlay2" {
		t.Errorf("%s: active %t, enabled %t, known %t, the engine is up %t on %s", when, u.active, u.enabled, u.known,
			u.engine.up, u.engine.driver)
	}
}

// installed asserts that all is as it was wished.
func (u *fakeUnits) installed(t *testing.T, when string, docker bool) {
	t.Helper()
	driver := "overlay2"
	if docker {
		driver = SnapshotterName
	}
	if !u.active || !u.enabled || !u.known || u.engine.driver != driver || !strings.Contains(u.settings, "debug") {
		t.Errorf("%s: active %t, enabled %t, known %t, driver %s, settings %s", when, u.active, u.enabled, u.known,
			u.engine.driver, u.settings)
	}
}

func forDoors(t *testing.T, do func(t *testing.T, docker bool)) {
	for _, docker := range []bool{true, false} {
		t.Run(fmt.Sprintf("docker %t", docker), func(t *testing.T) {
			t.Parallel()
			do(t, docker)
		})
	}
}

func TestTheSnapshotterIsInstalledAndTakenBack(t *testing.T) {
	forDoors(t, func(t *testing.T, docker bool) {
		u, i, w := secondHost(t, docker)
		var said strings.Builder
		i.Tell = func(e Event) { fmt.Fprintln(&said, e.Step, e.Outcome, e.Text) }
		if err := i.PlanSnapshotter(t.Context(), w); err != nil || !strings.Contains(said.String(), "+imports") {
			t.Errorf("the plan: %v, %s", err, &said)
		}
		u.isAsBefore(t, "planned")
		if err := i.InstallSnapshotter(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		u.installed(t, "installed", docker)
		if b, err := os.ReadFile(w.SettingsFile); err != nil || !strings.Contains(string(b), `"debug": true`) {
			t.Errorf("%s, %v", b, err)
		}
		starts, restarts := u.engine.starts, u.restarts
		if err := i.InstallSnapshotter(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		if u.engine.starts != starts || u.restarts != restarts ||
			!strings.Contains(said.String(), "nothing was changed") {
			t.Errorf("installed again: %s", &said)
		}
		w.Settings = []daemonjson.Change{daemonjson.Set("debug", false)}
		if err := i.InstallSnapshotter(t.Context(), w); err != nil || !strings.Contains(u.settings, "false") {
			t.Errorf("with another setting: %v, %s", err, u.settings)
		}
		if u.engine.starts != starts || u.restarts != restarts {
			t.Error("a setting of the snapshotter restarts others")
		}
		u.snapshots = 7
		u.uses = []string{"moby/c1"}
		err := i.UninstallSnapshotter(t.Context(), SnapshotterLeave{})
		if err == nil || !strings.Contains(err.Error(), "moby/c1") || u.snapshots != 7 {
			t.Errorf("with a container: %v", err)
		}
		if err := i.UninstallSnapshotter(t.Context(), SnapshotterLeave{Force: true}); err != nil || u.snapshots != 0 {
			t.Errorf("uninstalled: %v, %d snapshots", err, u.snapshots)
		}
		u.isAsBefore(t, "uninstalled")
	})
}

// A snapshotter that containerd can't use never comes to Docker's configuration.
func TestASnapshotterThatDoesNotAnswerIsTakenBack(t *testing.T) {
	u, i, w := secondHost(t, true)
	u.broken = true
	starts := u.engine.starts
	err := i.InstallSnapshotter(t.Context(), w)
	if !errors.As(err, new(*RolledBackError)) || u.engine.starts != starts {
		t.Errorf("%v, %d starts of the engine", err, u.engine.starts-starts)
	}
	u.isAsBefore(t, "rolled back")
}

// Docker 29 doesn't start where containerd has lost what it was told of the snapshotter: an install tells it again.
func TestAnEngineWithoutItsSnapshotterIsBroughtBack(t *testing.T) {
	u, i, w := secondHost(t, true)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(i.InstallSnapshotter(t.Context(), w))
	must(os.WriteFile(u.path("config.toml"), []byte(mainBefore), 0o644)) // by an upgrade of its package
	must(u.Restart(t.Context(), containerdUnit))
	if u.engine.start() == nil {
		t.Fatal("the engine starts")
	}
	if err := i.UninstallSnapshotter(t.Context(), SnapshotterLeave{Force: true}); err == nil ||
		!strings.Contains(err.Error(), `"cvmfs-graphdriver install" mends that`) {
		t.Errorf("nobody answers for the snapshots: %v", err)
	}
	must(i.PlanSnapshotter(t.Context(), w))
	if u.engine.up {
		t.Error("a plan starts the engine")
	}
	must(i.InstallSnapshotter(t.Context(), w))
	u.installed(t, "again", true)
	must(i.UninstallSnapshotter(t.Context(), SnapshotterLeave{}))
	u.isAsBefore(t, "uninstalled")
}

// Where there is no engine, containerd runs the images; one that doesn't run has the install undone.
func TestContainerdAloneRunsImages(t *testing.T) {
	u, i, w := secondHost(t, false)
	u.dumb = true
	if err := i.InstallSnapshotter(t.Context(), w); !errors.As(err, new(*RolledBackError)) {
		t.Errorf("an image that says nothing: %v", err)
	}
	u.isAsBefore(t, "rolled back")
	u.dumb, u.ran, w.CRI = false, nil, true
	var said strings.Builder
	i.Tell = func(e Event) { fmt.Fprintln(&said, e.Step, e.Outcome, e.Text) }
	if err := i.InstallSnapshotter(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if len(u.ran) != 1 || !strings.Contains(said.String(), "pods weren't tried") {
		t.Errorf("%q ran: %s", u.ran, &said)
	}
	if err := i.TestSnapshotter(t.Context(), Images{}); err != nil || len(u.ran) != 2 {
		t.Errorf("%v, %q ran", err, u.ran)
	}
	u.left = true
	if err := i.UninstallSnapshotter(t.Context(), SnapshotterLeave{}); err != nil || u.left {
		t.Errorf("%v, something is left: %t", err, u.left)
	}
}

// An install that can't bring a dead engine back leaves it as it was.
func TestAnEngineThatStaysDownIsToldOf(t *testing.T) {
	u, i, w := secondHost(t, true)
	if err := i.InstallSnapshotter(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	u.broken = true
	if u.engine.start() == nil {
		t.Fatal("the engine starts")
	}
	w.Renew = true
	if err := i.InstallSnapshotter(t.Context(), w); !errors.As(err, new(*RolledBackError)) {
		t.Errorf("%v", err)
	}
	u.broken = false
	if err := i.InstallSnapshotter(t.Context(), w); err != nil {
		t.Error(err)
	}
	u.installed(t, "mended", true)
}

// A dead engine is no reason to stay: it is started on its former storage driver, if its containers may be lost.
func TestADeadEngineLeavesTheSnapshotter(t *testing.T) {
	u, i, w := secondHost(t, true)
	if err := i.InstallSnapshotter(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	u.engine.up = false
	err := i.UninstallSnapshotter(t.Context(), SnapshotterLeave{})
	if err == nil || !strings.Contains(err.Error(), "--force") || u.engine.up {
		t.Errorf("its containers can't be told: %v", err)
	}
	if err := i.UninstallSnapshotter(t.Context(), SnapshotterLeave{Force: true}); err != nil {
		t.Fatal(err)
	}
	u.isAsBefore(t, "uninstalled")
}

// A run that fails at any point undoes what it did; one that is killed there is undone by the next.
func TestTheSnapshotterMayBeCutOffAnywhere(t *testing.T) {
	forDoors(t, func(t *testing.T, docker bool) {
		for _, killed := range []bool{false, true} {
			for _, what := range []string{"install", "uninstall"} {
				for n := 0; cutOff(t, docker, killed, what, n); n += testutil.Stride() {
					if n > 100 {
						t.Fatal("it never ends")
					}
				}
			}
		}
	})
}

// cutOff cuts off a run at its nth point, and reports whether it has one.
func cutOff(t *testing.T, docker, killed bool, what string, n int) bool {
	t.Helper()
	u, i, w := secondHost(t, docker)
	if what == "uninstall" {
		if err := i.InstallSnapshotter(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	u.snapshots = 3
	do := func(what string) error {
		if what == "install" {
			return i.InstallSnapshotter(t.Context(), w)
		}
		return i.UninstallSnapshotter(t.Context(), SnapshotterLeave{})
	}
	where := ""
	passed := 0
	i.inject = func(point string) error {
		if passed++; passed == n+1 {
			where = point
		}
		if where == "" || !killed && passed > n+1 {
			return nil
		}
		return errors.New("cut off") // a killed one does nothing more, and undoes nothing
	}
	err := do(what)
	i.inject = nil
	when := fmt.Sprintf("%s, killed %t at %q (%d)", what, killed, where, n)
	if where == "" {
		if err != nil || n < 5 {
			t.Errorf("%s: %v", when, err)
		}
		return false
	}
	if err == nil {
		t.Errorf("%s: no error", when)
	}
	if what == "install" && !killed && where != "before: commit" { // where all is done, and only the record isn't
		u.isAsBefore(t, when)
	}
	if err := do(what); err != nil {
		t.Errorf("%s, and again: %v", when, err)
	}
	if what == "install" {
		u.installed(t, when, docker)
		if err := do("uninstall"); err != nil {
			t.Errorf("%s, and taken back: %v", when, err)
		}
	}
	u.isAsBefore(t, when)
	return !t.Failed()
}

// What the snapshotter has mounted doesn't keep its folder from being removed, and isn't emptied.
func TestMountsDoNotKeepAFolderFromBeingRemoved(t *testing.T) {
	testutil.NeedRoot(t)
	other, dir := t.TempDir(), filepath.Join(t.TempDir(), "root")
	kept := filepath.Join(other, "kept")
	inner := filepath.Join(dir, "run/images/1")
	for _, err := range []error{
		os.WriteFile(kept, nil, 0o600), os.MkdirAll(inner, 0o755), unix.Mount(other, inner, "", unix.MS_BIND, ""),
		unix.Mount("", inner, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""), removeTree(dir),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !absent(dir) || absent(kept) {
		t.Errorf("the folder is gone: %t, what was mounted there: %t", absent(dir), absent(kept))
	}
}
