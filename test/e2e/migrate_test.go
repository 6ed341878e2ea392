package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
)

// A host whose engine ran on the plugin gets one that takes none: it starts on the snapshotter, with the images that
// its containers were made of.
func TestAHostGoesOverFromThePluginToTheSnapshotter(t *testing.T) {
	for name, programs := range engines() {
		t.Run(name, func(t *testing.T) { goesOver(newAdministrator(t, programs(t), stand.Options{})) })
	}
}

func goesOver(a *administrator) {
	ctx := a.Context()
	a.installer(0, a.common("install", "--bundle", shared.bundle(), "--cvmfs-config", a.Config, "--thin-image", a.thin)...)
	ordinary := strings.Replace(a.thin, stand.Thin, stand.Ordinary, 1)
	a.docker("pull", ordinary)
	want := a.run(a.thin)
	a.docker("create", "--name", "web", a.thin)
	a.docker("create", "--name", "job", ordinary)
	found := stackTools(a.T, engine.Stack29on21)
	a.must(a.Upgrade(ctx, found))
	settings := map[string]any{}
	a.must(json.Unmarshal([]byte(a.daemonJSON()), &settings))
	if err := a.Engine.Start(ctx, settings); err == nil {
		a.Fatal("the engine starts on the plugin")
	}

	said := a.installer(0, a.common("install", "--migrate", "--dry-run")...)
	for _, line := range []string{
		"pull what containers were made of: " + a.thin + ", " + ordinary,
		"make the container web (stopped, of " + a.thin + ") anew",
		"make the container job (stopped, of " + ordinary + ") anew",
	} {
		a.contains("what is told", said, line)
	}
	left, err := installer.ReadLeft(a.Engine.Data(), stand.Plugin)
	a.must(err)
	a.installer(0, a.common("uninstall")...)
	a.same("the containers of the former driver", a.docker("ps", "--all", "--quiet"), "")

	m := &machine{user: a.user, dir: filepath.Dir(a.Snapshots())}
	i, w := m.installer(a.T)
	i.Record = a.record()
	var told []string
	i.Tell = func(e installer.Event) {
		a.Log(e.Step, e.Outcome, e.Text)
		if e.Outcome == installer.Unchanged {
			told = append(told, e.Text)
		}
	}
	a.must(i.InstallSnapshotter(ctx, w))
	a.must(i.Repull(ctx, left))
	a.same("the storage driver", a.docker("info", "--format", "{{.Driver}}"), stand.Snapshotter)
	for _, image := range []string{ordinary, a.thin} {
		a.same(image, a.docker("run", "--rm", "--pull", "never", "--network", "none", image), want)
	}
	told = nil
	a.must(i.Repull(ctx, left)) // as when the command is run again
	a.same("what the second time finds", strings.Join(told, "\n"), a.thin+" is there\n"+ordinary+" is there")
	if _, err := os.Stat(filepath.Join(a.Engine.Data(), "image", stand.Plugin)); err != nil {
		a.Errorf("what the plugin had: %v", err)
	}
}
