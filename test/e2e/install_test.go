package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// administrator is a user who has the plugin installed on an engine that knows nothing of it.
type administrator struct {
	*reader
	thin string // a thin image in a registry
}

// newAdministrator returns one with an image of the engine's own driver, and both reference images in a registry.
func newAdministrator(t *testing.T, found *engine.Tools, o stand.Options) *administrator {
	t.Helper()
	a := &administrator{reader: &reader{user: onPlainStand(t, found, o), dir: t.TempDir()}}
	a.prepare()
	for _, variable := range a.env {
		if thin, ok := strings.CutPrefix(variable, "THIN="); ok {
			a.thin = thin
		}
	}
	return a
}

// installer runs the host's program where the engine runs; it must end with the code given.
func (a *administrator) installer(code int, args ...string) string {
	a.Helper()
	for i, arg := range args {
		args[i] = "'" + arg + "'"
	}
	cmd := a.Engine.Inside(a.Context(), "/", filepath.Join(shared.dir, "bin/cvmfs-graphdriver")+" "+strings.Join(args,
		" "))
	out, err := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code {
		a.Fatalf("cvmfs-graphdriver %s ended with %d, %v, want %d:\n%s", strings.Join(args, " "), got, err, code, out)
	}
	return string(out)
}

// common are the flags that suit a private engine.
func (a *administrator) common(args ...string) []string {
	return append(args, "--yes", "--record", a.record(), "--restart", "command:"+a.Engine.RestartCommand())
}

// record is the installer's record, as the machine's /var/lib is not the engine's own.
func (a *administrator) record() string { return filepath.Join(a.dir, "installer/install.json") }

// images lists the engine's images.
func (a *administrator) images() string {
	a.Helper()
	ids := strings.Fields(a.docker("images", "--quiet", "--no-trunc"))
	slices.Sort(ids) // those made at one time come in any order
	return strings.Join(slices.Compact(ids), "\n")
}

func (a *administrator) daemonJSON() string {
	a.Helper()
	b, err := os.ReadFile(a.Engine.ConfigFile())
	if err != nil {
		a.Fatal(err)
	}
	return string(b)
}

// host is what an installer may change: the engine's state, and the files it may touch, with their modes, sizes and
// times.
func (a *administrator) host() string {
	a.Helper()
	b := a.docker("info", "--format", "{{.Driver}} {{.Images}} {{.Containers}} {{.ID}}") + "\n" + a.docker("plugin",
		"ls", "--no-trunc") + "\n" + a.images() + "\n"
	for _, dir := range []string{filepath.Dir(a.Engine.ConfigFile()), "/etc/cvmfs", a.dir, "/etc/docker"} {
		listed, err := a.Engine.Inside(a.Context(), "/", "find "+dir+
			" -xdev -path '*/containerd' -prune -o -path '*/engine.log' -prune -o -printf '%p %m %s %T@ %C@\\n' 2>/dev/null | sort || true").Output()
		if err != nil {
			a.Fatal(err)
		}
		b += string(listed)
	}
	return b
}

// upgraded is a bundle of another version.
func upgraded(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("make", "--silent", "--directory", "../..", "bundle", "DIST="+dir,
		"VERSION=0.next").CombinedOutput(); err != nil {
		t.Fatalf("make another bundle: %v: %s", err, out)
	}
	return filepath.Join(dir, "cvmfs-graphdriver-plugin-0.next")
}

// useless is a bundle whose program ends at once.
func useless(t *testing.T) string {
	t.Helper()
	b, err := bundle.New(testutil.PluginProgram(t, runtime.GOARCH, "0.bad", ""), rootfs.Build{Version: "0.bad"})
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), b.Name())
	if err := b.WriteFolder(folder); err != nil {
		t.Fatal(err)
	}
	return folder
}

func TestInstallUpgradeUninstall(t *testing.T) {
	tools(t)
	next, bad := upgraded(t), useless(t)
	for name, programs := range of(engines(), "20.10") {
		t.Run(name, func(t *testing.T) {
			a := newAdministrator(t, programs(t), stand.Options{Settings: map[string]any{"experimental": false}})
			before, images := a.daemonJSON(), a.images()
			install := func(code int, args ...string) string {
				t.Helper()
				return a.installer(code,
					a.common(append([]string{
						"install", "--bundle", shared.bundle(), "--cvmfs-config", a.Config,
						"--thin-image", a.thin,
					}, args...)...)...)
			}

			if name != "20.10" { // which can't judge its configuration without starting
				a.refusesBadLevel(before, install)
			}
			untouched := a.host()
			said := install(0, "--dry-run")
			a.contains("the plan", said, `+  "experimental": true`)
			a.same("the host after --dry-run", a.host(), untouched)

			said = install(0)
			a.contains("the install", said, "runs on cvmfs-graphdriver")
			a.contains("the install", said, a.thin+", pulled, runs")
			a.same("the driver", a.docker("info", "--format", "{{.Driver}}"), stand.Plugin)

			installed := a.daemonJSON()
			pid := a.pid()
			said = install(0)
			a.contains("a second install", said, "nothing was changed")
			a.same("daemon.json after a second install", a.daemonJSON(), installed)
			a.same("the engine's process after a second install", a.pid(), pid)

			a.contains("install with another setting", install(0, "--debug"), "DEBUG=1")
			a.contains("the plugin's settings", a.docker("plugin", "inspect", "--format", "{{.Settings.Env}}",
				stand.Plugin), "DEBUG=1")

			id := a.docker("plugin", "inspect", "--format", "{{.Id}}", stand.Plugin)
			here := a.images()
			if name == "20.10" { // the engine waits long for a plugin that ends
				a.upgradeInVain(bad)
				a.same("the images after an upgrade that failed", a.images(), here)
				a.run(a.thin)
			}
			said = a.installer(0, a.common("upgrade", "--bundle", next, "--thin-image", a.thin)...)
			a.contains("the upgrade", said, "is of version 0.next now")
			a.same("the plugin's id after the upgrade", a.docker("plugin", "inspect", "--format", "{{.Id}}",
				stand.Plugin), id)
			a.contains("the settings after the upgrade", a.docker("plugin", "inspect", "--format", "{{.Settings}}",
				stand.Plugin), "DEBUG=1")
			a.same("the images after the upgrade", a.images(), here)
			a.same("the thin image after the upgrade", a.run(a.thin), a.run(a.thin))

			a.installer(0, a.common("uninstall")...)
			a.same("daemon.json after the uninstall", a.daemonJSON(), before)
			a.same("the images after the uninstall", a.images(), images)
			a.same("the plugin after the uninstall", a.docker("plugin", "ls", "--format", "{{.Enabled}}"), "false")

			install(0)
			a.contains("the images of before", a.images(), strings.Fields(here)[0])
			a.installer(0, a.common("uninstall", "--purge")...)
			a.same("daemon.json after the purge", a.daemonJSON(), before)
			a.same("the plugins after the purge", a.docker("plugin", "ls", "--quiet"), "")
			a.same("the images after the purge", a.images(), images)
			if _, err := os.Stat(filepath.Join(a.Engine.Data(), "image", stand.Plugin)); !os.IsNotExist(err) {
				t.Errorf("the purge leaves the list of images: %v", err)
			}
		})
	}
}

// refusesBadLevel has the engine's own program judge a file whose fault no other rule finds.
func (a *administrator) refusesBadLevel(file string, install func(code int, args ...string) string) {
	a.Helper()
	write := func(content string) {
		if err := os.WriteFile(a.Engine.ConfigFile(), []byte(content), 0o644); err != nil {
			a.Fatal(err)
		}
	}
	write(strings.Replace(file, "{", `{"log-level": "none-such",`, 1))
	a.contains("an install with a bad log-level", install(1), "none-such")
	write(file)
}

// upgradeInVain upgrades to a bundle that doesn't work: the plugin of before is put back, as it was set.
func (a *administrator) upgradeInVain(bad string) {
	a.Helper()
	plugin := func() string {
		return a.docker("plugin", "inspect", "--format", "{{.Enabled}} {{.Config.Description}} {{json .Settings}}",
			stand.Plugin)
	}
	before := plugin()
	a.contains("an upgrade that fails", a.installer(4, a.common("upgrade", "--bundle", bad)...), "rolled back")
	a.same("the plugin after an upgrade that failed", plugin(), before)
}

// pid is the engine's process.
func (a *administrator) pid() string {
	a.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(a.Engine.ConfigFile()), "engine.pid"))
	if err != nil {
		a.Fatal(err)
	}
	return string(b)
}

// A host on which the engine can't start with the plugin: the install is undone, and says why.
func TestAFailedInstallLeavesTheHostAsItWas(t *testing.T) {
	a := newAdministrator(t, tools(t), stand.Options{})
	before, images := a.daemonJSON(), a.images()
	said := a.installer(4, a.common("install", "--bundle", shared.bundle(), "--cvmfs-config", a.Config, "--thin-image",
		"127.0.0.1:1/none:1")...)
	a.contains("the install", said, "rolled back")
	a.same("daemon.json", a.daemonJSON(), before)
	a.same("the images", a.images(), images)
	a.same("the plugins", a.docker("plugin", "ls", "--quiet"), "")

	// What the driver or the plugin would not take is refused before anything is changed.
	untouched := a.host()
	for _, wish := range [][]string{{"--storage-opt", "cvmfs.view=none"}, {"--set", "NONE=1"}} {
		said = a.installer(1, a.common(append([]string{
			"install", "--bundle", shared.bundle(), "--cvmfs-config",
			a.Config,
		}, wish...)...)...)
		a.contains("an install with a bad wish", said, strings.Split(wish[1], "=")[0])
		a.same("the host after it", a.host(), untouched)
	}

	// Nobody to ask: nothing is done.
	said = a.installer(2, "install", "--bundle", shared.bundle(), "--cvmfs-config", a.Config, "--record", a.record(),
		"--restart", "command:false")
	a.contains("without --yes", said, "--yes")

	// Lines of JSON.
	said = a.installer(4, a.common("install", "--json", "--bundle", shared.bundle(), "--cvmfs-config", a.Config,
		"--test-image", "127.0.0.1:1/none:1")...)
	for line := range strings.Lines(said) {
		var event struct{ Step, Outcome string }
		if strings.HasPrefix(line, "cvmfs-graphdriver: ") {
			continue // the error, on the error output
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil || event.Step == "" || event.Outcome == "" {
			t.Errorf("%q is no event: %v", line, err)
		}
	}
	a.same("the driver", a.docker("info", "--format", "{{.Driver}}"), "vfs")
}

// An engine that can't start on its driver is brought back by install, which mends the plugin, and by uninstall; a
// container that runs meanwhile, runs again after an install that failed.
func TestADeadEngineIsBroughtBack(t *testing.T) {
	for name, programs := range of(engines(), "26.1") {
		t.Run(name, func(t *testing.T) {
			a := newAdministrator(t, programs(t), stand.Options{})
			before := a.daemonJSON()
			id := a.docker("run", "--detach", "--network", "none", "--interactive", stand.Ordinary, "/dev/stdin")
			install := func(code int, args ...string) string {
				t.Helper()
				return a.installer(code,
					a.common(append([]string{"install", "--bundle", shared.bundle(), "--cvmfs-config", a.Config},
						args...)...)...)
			}
			install(4, "--test-image", "127.0.0.1:1/none:1")
			a.same("a container after an install that failed",
				a.docker("inspect", "--format", "{{.State.Running}}", id), "true")

			install(0)
			for _, kill := range []struct{ how, script, says string }{
				{"disabled", "docker plugin disable --force " + stand.Plugin, "found but disabled"},
				{"damaged", "rm " + a.Engine.Data() + "/plugins/*/rootfs/bin/*", ""},
				{"removed", "docker plugin rm --force " + stand.Plugin, "not found"},
			} {
				if out, err := a.Engine.Inside(t.Context(), "/",
					kill.script+"; "+a.Engine.RestartCommand()).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", kill.how, err, out)
				}
				a.eventually("the engine gives up", func() error {
					if out, err := a.Engine.Docker(t.Context(), "version"); err == nil {
						return fmt.Errorf("it answers: %s", out)
					}
					return nil
				})
				a.eventually(kill.how+": the doctor tells why", func() error { // once the engine has written it
					said := a.installer(3, "doctor", "--record", a.record(), "--cvmfs-config", a.Config)
					if !strings.Contains(said, "engine.unreachable") ||
						!strings.Contains(said, "the engine's log says: ") || !strings.Contains(said, kill.says) {
						return errors.New(said)
					}
					return nil
				})
				a.contains(kill.how+": the install", install(0, "--thin-image", a.thin), "runs on "+stand.Plugin)
			}
			if out, err := a.Engine.Inside(t.Context(), "/", "docker plugin rm --force "+stand.Plugin+"; "+
				a.Engine.RestartCommand()).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			a.installer(0, a.common("uninstall", "--purge")...)
			a.same("the driver", a.docker("info", "--format", "{{.Driver}}"), "vfs")
			a.same("daemon.json", a.daemonJSON(), before)
		})
	}
}

// What an install that was killed has left half done is undone by the next run, wherever it was.
func TestAKilledInstallIsUndoneByTheNextRun(t *testing.T) {
	a := newAdministrator(t, tools(t), stand.Options{})
	before, images := a.daemonJSON(), a.images()
	for _, step := range []string{"plugin", "enable", "daemon.json", "driver"} {
		a.killAfter(step, a.common("install", "--json", "--bundle", shared.bundle(), "--cvmfs-config", a.Config)...)
		a.contains("the next run after a kill at "+step, a.installer(0, a.common("uninstall")...), "the install of ")
		a.same("daemon.json after a kill at "+step, a.daemonJSON(), before)
		a.same("the images after a kill at "+step, a.images(), images)
		a.same("the plugins after a kill at "+step, a.docker("plugin", "ls", "--quiet"), "")
		a.same("the driver after a kill at "+step, a.docker("info", "--format", "{{.Driver}}"), "vfs")
	}
}

// killAfter kills the host's program once it has told that a step is done.
func (a *administrator) killAfter(step string, args ...string) {
	a.Helper()
	pid := filepath.Join(a.dir, "pid")
	cmd := a.Engine.Inside(a.Context(), "/", "echo $$ >"+pid+"; exec "+filepath.Join(shared.dir,
		"bin/cvmfs-graphdriver")+" '"+strings.Join(args, "' '")+"'")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		a.Fatal(err)
	}
	done := false
	for lines := bufio.NewScanner(out); !done && lines.Scan(); {
		done = strings.HasPrefix(lines.Text(), `{"step":"`+step+`","outcome":"done"`)
	}
	if killed, err := a.Engine.Inside(a.Context(), "/", "kill -9 $(cat "+pid+")").CombinedOutput(); !done ||
		err != nil {
		a.Fatalf("told of %s: %t; kill: %v: %s", step, done, err, killed)
	}
	if err := cmd.Wait(); err == nil {
		a.Fatalf("the install was through before it was killed at %s", step)
	}
}

// The plugin comes from a registry this time.
func TestInstallOpensThePluginsFoldersToUserNamespaces(t *testing.T) {
	o := remapped("auto")
	o.Driver = nil
	a := newAdministrator(t, tools(t), o)
	ref := strings.TrimSuffix(a.thin, stand.Thin) + "example/plugin:1"
	a.installer(0, "bundle", "push", shared.archive(), ref)
	a.installer(0, a.common("install", "--from", ref, "--cvmfs-config", a.Config, "--thin-image", a.thin)...)
	root := a.docker("info", "--format", "{{.DockerRootDir}}")
	modes := func() (m []string) {
		for _, folder := range []string{"plugins", "plugins/" + a.docker("plugin", "inspect", "--format", "{{.Id}}",
			stand.Plugin)} {
			info, err := os.Stat(filepath.Join(root, folder))
			if err != nil {
				t.Fatal(err)
			}
			m = append(m, info.Mode().String())
		}
		return m
	}
	a.same("the modes", fmt.Sprint(modes()), fmt.Sprint([]fs.FileMode{fs.ModeDir | 0o711, fs.ModeDir | 0o711}))
	a.installer(0, a.common("uninstall", "--purge")...)
	if info, err := os.Stat(filepath.Join(root, "plugins")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("after the purge the folder of plugins is %v, %v", info, err)
	}
}
