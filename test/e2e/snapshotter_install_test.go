package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// machine stands for the systemd of a host whose containerd knows nothing of the snapshotter.
type machine struct {
	user
	dir         string
	snapshotter *engine.Service
	active      bool
	enabled     bool
}

func (m *machine) socket() string { return filepath.Join(m.dir, "s.sock") }

func (m *machine) Restart(ctx context.Context, unit string) error {
	if unit != installer.SnapshotterUnit {
		if err := m.Engine.Containerd.Stop(ctx); err != nil {
			return err
		}
		return m.Engine.Containerd.Start(ctx)
	}
	if m.active {
		if err := m.Stop(ctx, unit); err != nil {
			return err
		}
	}
	m.active = true
	return m.snapshotter.Start(ctx, func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", m.socket())
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

func (m *machine) Stop(ctx context.Context, _ string) error {
	if !m.active {
		return nil
	}
	m.active = false
	return m.snapshotter.Stop(ctx)
}

func (m *machine) Enable(context.Context, string) error {
	m.enabled = true
	return nil
}

func (m *machine) Disable(context.Context, string) error {
	m.enabled = false
	return nil
}

func (m *machine) Reload(context.Context) error { return nil }

func (m *machine) State(context.Context, string) (active, enabled bool, err error) {
	return m.active, m.enabled, nil
}

// dockers is the engine as a service.
type dockers struct {
	installer.Service // nil: what isn't here isn't asked
	user
}

func (d dockers) Restart(ctx context.Context, ping func(context.Context) error) error {
	if out, err := d.Engine.Inside(ctx, "/", d.Engine.RestartCommand()).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := ping(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (dockers) ByHand() string { return "restart the engine" }

func (m *machine) read(name string) string {
	m.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		m.Fatal(err)
	}
	return string(b)
}

// The snapshotter comes to an engine with images in containerd, and goes again.
func TestTheSnapshotterIsInstalledOnPrivateHosts(t *testing.T) {
	for _, stack := range among([]engine.Stack{
		engine.Stack29on21, engine.Stack28on21, engine.Stack29on17, engine.Stack29on24,
	}, engine.Stack29on21, engine.Stack29on17) {
		t.Run(stack.String(), func(t *testing.T) { installs(t, stack) })
	}
}

func installs(t *testing.T, stack engine.Stack) {
	o := stand.Options{Tools: stackTools(t, stack), Testdata: testutil.Data(t)}
	t.Parallel()
	m := &machine{user: own(t, func() (*stand.Stand, error) { return stand.NewSnapshotter(t.Context(), o) })}
	m.dir = filepath.Dir(m.Snapshots())
	m.load("tiny.tar")
	images := m.docker("images", "--quiet", "--no-trunc")
	main, docker := m.read(m.Engine.Containerd.ConfigFile()), m.read(m.Engine.ConfigFile())
	i, w := m.installer(t)
	var told []string
	tell := i.Tell
	i.Tell = func(e installer.Event) {
		if tell(e); e.Outcome != installer.Begins && e.Outcome != installer.Told {
			told = append(told, e.Step+" "+string(e.Outcome))
		}
	}
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	check("plan", i.PlanSnapshotter(t.Context(), w))
	m.same("the file after a plan", m.read(m.Engine.Containerd.ConfigFile()), main)
	told = nil
	check("install", i.InstallSnapshotter(t.Context(), w))
	m.documented("\npreflight ", told, true)
	m.same("the storage driver", m.docker("info", "--format", "{{.Driver}}"), stand.Snapshotter)
	m.load("tiny.tar")
	m.load("thin_tiny.tar")
	m.same("a thin container", m.run(stand.Thin), m.run(stand.Ordinary))
	check("install again", i.InstallSnapshotter(t.Context(), w))
	w.Renew = true
	check("upgrade", i.InstallSnapshotter(t.Context(), w))
	container := m.docker("create", "--name", "stays", "--network", "none", stand.Thin)
	m.docker("start", "--attach", container)
	if err := i.UninstallSnapshotter(t.Context(), installer.SnapshotterLeave{}); err == nil ||
		!strings.Contains(err.Error(), "stays") {
		t.Errorf("with a container: %v", err)
	}
	told = nil
	check("uninstall", i.UninstallSnapshotter(t.Context(), installer.SnapshotterLeave{Force: true}))
	m.documented("\ndaemon.json ", told, true)
	m.same("the storage driver", m.docker("info", "--format", "{{.Driver}}"), stand.BuiltIn)
	m.same("containerd's file", m.read(m.Engine.Containerd.ConfigFile()), main)
	m.same("the engine's file", m.read(m.Engine.ConfigFile()), docker)
	// The engine connects anew to a containerd that was restarted when it comes to it.
	m.eventually("the images of before are back", func() error {
		out, err := m.Engine.Docker(t.Context(), "images", "--quiet", "--no-trunc")
		if err == nil && !strings.Contains(out, images) {
			err = fmt.Errorf("there are %q, want %q", out, images)
		}
		return err
	})
	m.run(stand.Ordinary)
	if m.active || m.enabled {
		t.Error("the snapshotter is still there")
	}
}

// documented fails the test unless the steps with their outcomes are those of the block in docs/install.md's section on
// the snapshotter that begins with a step. Without Docker some are left out.
func (m *machine) documented(begin string, told []string, docker bool) {
	m.Helper()
	_, section, _ := strings.Cut(document(m.T, "docs/install.md"), "\n## The snapshotter\n")
	_, block, found := strings.Cut(section, "\n```"+begin)
	block, _, _ = strings.Cut(begin[1:]+block, "\n```")
	var want []string
	for _, line := range regexp.MustCompile(`(?m)^(.{14}) +([a-z]+)`).FindAllStringSubmatch(block, -1) {
		if step := strings.TrimSpace(line[1]); docker || step != "daemon.json" && step != "driver" {
			want = append(want, step+" "+line[2])
		}
	}
	if diff := cmp.Diff(want, told); diff != "" || !found {
		m.Errorf("docs/install.md shows other steps than there are: %s", diff)
	}
}

// installer returns what installs the snapshotter on the machine, and what is wished for.
func (m *machine) installer(t *testing.T) (*installer.Installer, installer.SnapshotterWishes) {
	t.Helper()
	client, err := containerd.Connect(m.Engine.Containerd.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	docker, err := installer.Connect(m.Engine.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { docker.Close() })
	version, err := client.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dropIn, path := filepath.Join(m.dir, "drop.toml"), m.Engine.Containerd.ConfigFile()
	o := containerd.Options{
		Name: stand.Snapshotter, Socket: m.socket(), Root: m.Snapshots(), CRI: true, Platform: "linux/" + runtime.GOARCH,
	}
	main, err := containerd.Main([]byte(m.read(path)), version, dropIn, o)
	if err != nil {
		t.Fatal(err)
	}
	told, err := containerd.DropIn(version, main, o)
	if err != nil {
		t.Fatal(err)
	}
	settings := filepath.Join(m.dir, "snapshotter.json")
	m.snapshotter = m.Engine.Service("snapshotter", shared.snapshotter(), "--config", settings)
	i := &installer.Installer{
		Engine: docker, Service: dockers{user: m.user}, Units: m, Containerd: client,
		Record: filepath.Join(m.dir, "record/install.json"), Hello: filepath.Join(shared.dir, "bin/cvmfs-graphdriver"),
		Tell: func(e installer.Event) { t.Log(e.Step, e.Outcome, e.Text) },
		Ask:  func(context.Context, []string) error { return nil },
	}
	return i, installer.SnapshotterWishes{
		SettingsFile: settings,
		Settings: []daemonjson.Change{
			daemonjson.Set("root", m.Snapshots()), daemonjson.Set("address", m.socket()),
			daemonjson.Set("cvmfs-config", m.Config), daemonjson.Set("containerd", m.Engine.Containerd.Socket()),
		},
		Unit: &installer.Text{Path: filepath.Join(m.dir, "unit"), Content: []byte("[Unit]\n")},
		Config: []installer.Text{
			{Path: dropIn, Content: []byte(told)}, {Path: path, Content: main},
		},
		ConfigUnit: "containerd.service", File: m.Engine.ConfigFile(),
		Preflight: func(context.Context) error { return nil },
	}
}
