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

	"github.com/docker/docker/api/types"
	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/testutil"
)

// An engine that its storage driver keeps from starting is brought back, whatever is wrong with the plugin.
func TestADeadEngineIsBroughtBack(t *testing.T) {
	for how := range kills {
		for _, what := range []string{"install", "uninstall", "purge"} {
			for _, record := range []bool{true, false} {
				for _, started := range []bool{true, false} { // the engine was started again since, or not yet
					if how == "damaged" && what == "install" && !started {
						continue // nothing tells it yet
					}
					t.Run(fmt.Sprintf("%s, %s, with a record %t, started %t", how, what, record, started),
						func(t *testing.T) { bringBack(t, how, what, record, started) })
				}
			}
		}
	}
}

func bringBack(t *testing.T, how, what string, record, started bool) {
	f, p := begun(t, what)
	if what == "install" {
		p.must(t, "install")
	}
	if started {
		f.die(how)
	} else {
		kills[how](f)
	}
	if !record {
		if err := os.RemoveAll(filepath.Dir(p.record)); err != nil {
			t.Fatal(err)
		}
	}
	p.must(t, what)
	want := "overlay2"
	if what == "install" {
		want = DefaultName
	}
	if !f.up || f.driver != want || f.start() != nil {
		t.Errorf("up %t on %s", f.up, f.driver)
	}
	if what == "purge" && len(f.plugins) > 0 {
		t.Errorf("the plugins %v are left", f.plugins)
	}
	if what == "install" {
		p.must(t, "purge")
	}
	if record {
		p.isAsBefore(t, "in the end")
	}
}

// The images of a plugin that was removed are gone: the engine's list of them goes, too.
func TestTheImagesOfAPluginThatWasRemovedAreForgotten(t *testing.T) {
	f, p := begun(t, "uninstall")
	listed := filepath.Join(staleFolder(f.root, DefaultName), "repositories.json")
	if err := os.WriteFile(listed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.die("removed")
	p.must(t, "install")
	if !absent(listed) {
		t.Error("the list is there")
	}
}

// Every point of bringing it back: after kill -9 or a failure there, the next run does it.
func TestBringingADeadEngineBackMayBeCutOff(t *testing.T) {
	for _, what := range []string{"install", "uninstall"} {
		for n := 0; ; n += testutil.Stride() {
			f, p := begun(t, "uninstall")
			f.die("removed")
			before, err := os.ReadFile(p.file)
			if err != nil {
				t.Fatal(err)
			}
			where, err := p.failAt(t, what, n)
			if where == "" {
				if err != nil || n < 4 {
					t.Errorf("%s: %v after %d points", what, err, n)
				}
				break
			}
			if errors.As(err, new(*StuckError)) || err == nil {
				t.Errorf("%s failing at %q: %v", what, where, err)
			}
			if b, err := os.ReadFile(p.file); err != nil || !f.up && string(b) != string(before) {
				t.Errorf("%s failing at %q: the engine doesn't run, and its file is %q, %v", what, where, b, err)
			}
			p.must(t, what)
			if !f.up {
				t.Errorf("%s failing at %q, and again: the engine doesn't run", what, where)
			}
		}
	}
}

// Kill -9 at every point of what is special: an engine that is dead, and a plugin that lies in another data folder.
func TestKillWhileBringingBackIsMendedByTheNextRun(t *testing.T) {
	for _, c := range []struct {
		what  string
		moved bool
	}{{"install", false}, {"uninstall", false}, {"purge", false}, {"purge", true}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			t.Parallel()
			for n := 0; ; n += testutil.Stride() {
				f, p := newHost(t)
				f.change(func() { f.remapped = false })
				former := f.root
				i, w := p.newInstall(t)
				if c.moved {
					w.DataRoot = filepath.Join(filepath.Dir(p.socket), "elsewhere")
				}
				if err := i.Install(t.Context(), w); err != nil {
					t.Fatal(err)
				}
				f.die("disabled")
				killed, out, err := p.killedAt(c.what, n)
				if err != nil {
					t.Fatalf("point %d: %v: %s", n, err, out)
				}
				p.must(t, c.what)
				want := map[string]string{"install": DefaultName, "uninstall": "overlay2", "purge": "overlay2"}[c.what]
				if !f.up || f.driver != want || f.root != former || c.what == "purge" &&
					len(f.plugins)+len(f.elsewhere[w.DataRoot]) > 0 {
					t.Errorf("killed at point %d: up %t on %s in %s with %v and %v", n, f.up, f.driver, f.root,
						f.plugins, f.elsewhere)
				}
				p.must(t, "purge")
				p.isAsBefore(t, "killed at point %d", n)
				if !killed {
					if n < 4 {
						t.Errorf("only %d points were passed", n)
					}
					return
				}
			}
		})
	}
}

// An engine that is down for another reason is left alone.
func TestAnEngineThatIsDownOtherwiseIsLeftAlone(t *testing.T) {
	f, p := newHost(t)
	f.change(func() { f.up = false })
	for _, what := range []string{"install", "uninstall", "upgrade"} {
		if err := p.try(t, what); err == nil || !strings.Contains(err.Error(), "no engine answers") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if b, err := os.ReadFile(p.file); err != nil || string(b) != administrators || f.starts != 1 {
		t.Errorf("%d starts, the configuration is %q, %v", f.starts, b, err)
	}
}

// An engine that runs on the plugin is not taken for dead where its socket is another, or it answers with an error.
func TestAnEngineThatRunsIsNotBroughtBack(t *testing.T) {
	for _, what := range []string{"install", "uninstall", "purge"} {
		for how, want := range map[string]string{"another socket": "--host", "an error": "500"} {
			f, p := begun(t, "uninstall")
			i := p.newInstaller(t)
			if how == "another socket" {
				other := p
				other.socket = filepath.Join(t.TempDir(), "none")
				i.Engine = other.newInstaller(t).Engine
			} else {
				f.change(func() { f.fails = "HEAD /_ping" })
			}
			before, starts := p.snapshot(t, f), f.starts
			if err := p.act(i, what); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s, %s: %v", what, how, err)
			}
			f.change(func() { f.fails = "" })
			if diff := cmp.Diff(before, p.snapshot(t, f)); diff != "" || f.starts != starts {
				t.Errorf("%s, %s: %d starts more, -before +after\n%s", what, how, f.starts-starts, diff)
			}
		}
	}
}

func TestThePlanForADeadEngineChangesNothing(t *testing.T) {
	f, p := begun(t, "uninstall")
	f.die("removed")
	before := p.snapshot(t, f)
	i := p.newInstaller(t)
	said := ""
	i.Tell = func(e Event) { said += e.Text }
	w, err := p.wishes()
	if err == nil {
		err = i.Plan(t.Context(), w)
	}
	if err != nil || !strings.Contains(said, "it is started on the storage driver overlay2 first") {
		t.Errorf("%v: %s", err, said)
	}
	if d := cmp.Diff(before, p.snapshot(t, f)); d != "" {
		t.Error(d)
	}
}

// The driver's options stay through it.
func TestOptionsOutliveADeadEngine(t *testing.T) {
	f, p := newHost(t)
	i, w := p.newInstall(t)
	w.StorageOpts = []string{"cvmfs.view=fuse"}
	if err := i.Install(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	f.die("disabled")
	p.must(t, "install")
	if b, err := os.ReadFile(p.file); err != nil || !strings.Contains(string(b), `"cvmfs.view=fuse"`) ||
		f.driver != DefaultName {
		t.Errorf("%q, %v", b, err)
	}
}

// They stay, too, where the engine runs again and the install is given up then: they limit what containers may read.
func TestOptionsOutliveAnInstallThatIsGivenUp(t *testing.T) {
	f, p := newHost(t)
	install := func(change func(w *Wishes)) error {
		i, w := p.newInstall(t)
		change(&w)
		return i.Install(t.Context(), w)
	}
	const option = "cvmfs.repositories=layers.example.org"
	if err := install(func(w *Wishes) { w.StorageOpts = []string{option} }); err != nil {
		t.Fatal(err)
	}
	f.die("disabled")
	unfit := errors.New("unfit")
	err := install(func(w *Wishes) { w.Preflight = func(context.Context) (bool, error) { return false, unfit } })
	if !errors.Is(err, unfit) || f.driver != "overlay2" {
		t.Fatalf("given up with %v, the engine runs on %s", err, f.driver)
	}
	for range 2 {
		p.must(t, "install")
		if b, err := os.ReadFile(p.file); err != nil || strings.Count(string(b), option) != 1 ||
			f.driver != DefaultName {
			t.Errorf("%q, %v", b, err)
		}
	}
	if rec, err := readRecord(p.record); err != nil || rec.Options != nil {
		t.Errorf("%+v, %v", rec, err)
	}
}

// Containers that ran run again where the driver is the one of before: after a failure, and after an upgrade.
func TestContainersRunAgain(t *testing.T) {
	for _, c := range []struct {
		what, fails string
		want        bool
	}{
		{"install", "", false},
		{"install", "POST /plugins/create", true},
		{"install", "POST /images/load", true},
		{"upgrade", "", true},
		{"upgrade", "POST /images/load", true},
		{"uninstall", "", false},
	} {
		f, p := begun(t, c.what)
		f.change(func() { f.running["abc"], f.running["def"] = true, false })
		i := p.newInstaller(t)
		f.change(func() { f.fails = c.fails })
		i.Tell = f.mends
		said := ""
		i.Ask = func(_ context.Context, what []string) error { said += strings.Join(what, "\n"); return nil }
		if err := p.act(i, c.what); (err != nil) != (c.fails != "") {
			t.Errorf("%s, failing at %q: %v", c.what, c.fails, err)
		}
		if f.running["abc"] != c.want || f.running["def"] {
			t.Errorf("%s, failing at %q: they run: %v", c.what, c.fails, f.running)
		}
		if !strings.Contains(said, "running containers stop") {
			t.Errorf("%s: it isn't said that they stop: %s", c.what, said)
		}
	}
}

// A plugin made by hand is found by what it is.
func TestAPluginIsFoundWhateverItsName(t *testing.T) {
	f, p := newHost(t)
	p.must(t, "install")
	f.plugins["my-graphdriver"], f.plugins["other"] = f.plugins[DefaultName], &types.Plugin{Name: "other:latest"}
	f.change(func() { f.plugins["my-graphdriver"].Name = "my-graphdriver:latest" })
	delete(f.plugins, DefaultName)
	const byHand = `{"experimental": true, "storage-driver": "my-graphdriver"}`
	if err := errors.Join(os.RemoveAll(filepath.Dir(p.record)), os.WriteFile(p.file, []byte(byHand), 0o644),
		f.start()); err != nil {
		t.Fatal(err)
	}
	name := func(want string) {
		t.Helper()
		i := p.newInstaller(t)
		if got, err := FindName(t.Context(), i.Engine, p.record, p.file); err != nil || got != want {
			t.Errorf("found %q, %v, want %q", got, err, want)
		}
	}
	name("my-graphdriver")
	f.change(func() { f.up = false })
	name("my-graphdriver")
	f.change(func() { f.up = true })
	layOut(t, f, p, "my-graphdriver")
	p.must(t, "upgrade")
	if !strings.HasSuffix(f.plugins["my-graphdriver"].Config.Description, "version 2") {
		t.Errorf("upgraded: %+v", f.plugins["my-graphdriver"])
	}
	p.must(t, "uninstall")
	if f.driver != "overlay2" || f.plugins["my-graphdriver"].Enabled {
		t.Errorf("uninstalled: %s", f.driver)
	}
	name("my-graphdriver")
	p.must(t, "purge")
	if f.plugins["my-graphdriver"] != nil || f.plugins["other"] == nil {
		t.Errorf("purged: %v", f.plugins)
	}
	name(DefaultName)
}

// Two of them, none in use: which is meant must be said.
func TestOfSeveralPluginsOneIsNamed(t *testing.T) {
	f, p := newHost(t)
	p.must(t, "install")
	p.must(t, "uninstall")
	second := *f.plugins[DefaultName]
	second.Name = "second:latest"
	f.change(func() { f.plugins["second"] = &second })
	if err := os.RemoveAll(filepath.Dir(p.record)); err != nil {
		t.Fatal(err)
	}
	i := p.newInstaller(t)
	if _, err := FindName(t.Context(), i.Engine, p.record, p.file); err == nil ||
		!strings.Contains(err.Error(), "--name") {
		t.Error(err)
	}
}

// The plugin is removed from the data folder it lies in, and what another folder has under its name stays.
func TestPurgeRemovesThePluginWhereItLies(t *testing.T) {
	for _, how := range []string{"at once", "kept before", "dead"} {
		f, p := newHost(t)
		f.change(func() { f.remapped = false })
		former := f.root
		f.add(DefaultName, &types.PluginConfig{Description: "another"})
		others := f.plugins
		f.plugins = map[string]*types.Plugin{} // the install is into a folder without it
		i, w := p.newInstall(t)
		w.DataRoot = filepath.Join(filepath.Dir(p.socket), "elsewhere")
		if err := i.Install(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		f.elsewhere[former] = others
		id := f.plugins[DefaultName].ID
		switch how {
		case "kept before":
			p.must(t, "uninstall")
			if f.root != former || f.plugins[DefaultName].Config.Description != "another" {
				t.Errorf("uninstalled, its data are in %s", f.root)
			}
		case "dead":
			f.die("disabled")
		}
		p.must(t, "purge")
		if f.root != former || f.driver != "overlay2" || !f.up || f.plugins[DefaultName] == nil {
			t.Errorf("%s: the engine's data are in %s, it runs on %s, with %v", how, f.root, f.driver, f.plugins)
		}
		if left := f.elsewhere[w.DataRoot]; left[DefaultName] != nil {
			t.Errorf("%s: the plugin is left", how)
		}
		for _, gone := range []string{"plugins/" + id, "image/" + DefaultName} {
			if !absent(filepath.Join(w.DataRoot, gone)) {
				t.Errorf("%s: %s is left", how, gone)
			}
		}
		if absent(filepath.Join(former, "plugins", others[DefaultName].ID)) {
			t.Errorf("%s: the other plugin's layers are gone", how)
		}
		p.isAsBefore(t, "%s", how)
		if rec, err := readRecord(p.record); err != nil || rec.Installed != nil {
			t.Errorf("%s: the record is %+v, %v", how, rec.Installed, err)
		}
	}
}

// A plugin that can't be removed keeps the engine's list of its images: another install shows them again.
func TestAPluginThatIsNotRemovedKeepsTheListOfItsImages(t *testing.T) {
	f, p := begun(t, "uninstall")
	listed := filepath.Join(staleFolder(f.root, DefaultName), "repositories.json")
	if err := os.WriteFile(listed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.change(func() { f.fails = "DELETE /plugins/" })
	if err := p.try(t, "purge"); err == nil || f.plugins[DefaultName] == nil {
		t.Fatalf("purge: %v, with the plugins %v", err, f.plugins)
	}
	if absent(listed) {
		t.Error("the list has gone")
	}
}

func TestAnInstalledPluginIsNotMoved(t *testing.T) {
	for _, what := range []string{"", "uninstall"} {
		f, p := begun(t, "uninstall")
		if what != "" {
			p.must(t, what)
		}
		before := p.snapshot(t, f)
		i, w := p.newInstall(t)
		w.DataRoot = filepath.Join(filepath.Dir(p.socket), "elsewhere")
		for name, do := range map[string]func(context.Context, Wishes) error{"install": i.Install, "plan": i.Plan} {
			if err := do(t.Context(), w); err == nil || !strings.Contains(err.Error(), "uninstall --purge") ||
				errors.As(err, new(*RolledBackError)) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if d := cmp.Diff(before, p.snapshot(t, f)); d != "" {
			t.Error(d)
		}
	}
}

// Wishes that can't come true are refused before anything is changed, of a dead engine, too.
func TestWishesAreCheckedFirst(t *testing.T) {
	for _, c := range []struct {
		settings, options []string
		says              string
	}{
		{
			[]string{"DEBUGG=1"},
			nil,
			`unknown setting "DEBUGG": the plugin has cvmfs_ext_config, minio_ext_config, fuse, DEBUG`,
		},
		{[]string{"DEBUG.source=1"}, nil, "unknown setting"},
		{[]string{"DEBUG=2"}, nil, "want 0 or 1"},
		{[]string{"cvmfs_ext_config=relative"}, nil, "absolute path"},
		{[]string{"cvmfs_ext_config=/no/such/folder"}, nil, "no such file"},
		{[]string{"minio_ext_config.source=/etc/passwd"}, nil, "no folder"},
		{[]string{"fuse=/dev/none"}, nil, "no such file"},
		{nil, []string{"cvmfs.vieuw=fuse"}, "cvmfs.view"},
		{nil, []string{"cvmfs.view=ext4"}, "auto, erofs and fuse"},
		{nil, []string{"cvmfs.repositories=-"}, "repository's name"},
		{nil, []string{"overlay2.override_kernel_check=maybe"}, "true or false"},
	} {
		for _, dead := range []bool{false, true} {
			f, p := begun(t, "uninstall")
			if dead {
				f.die("removed")
			}
			before := p.snapshot(t, f)
			i, w := p.newInstall(t)
			w.Settings, w.StorageOpts = c.settings, c.options
			if err := i.Install(t.Context(), w); err == nil || !strings.Contains(err.Error(), c.says) ||
				errors.As(err, new(*RolledBackError)) {
				t.Errorf("%+v: %v", c, err)
			}
			if d := cmp.Diff(before, p.snapshot(t, f)); d != "" {
				t.Errorf("%+v: %s", c, d)
			}
		}
	}
}

func TestSettingsAreTakenBack(t *testing.T) {
	f, p := newHost(t)
	for _, c := range []struct {
		settings, options []string
		debug             *bool
		env, opts         string
	}{
		{
			[]string{"DEBUG=1"},
			[]string{"cvmfs.view=fuse", "cvmfs.repositories=a.b"},
			new(true), "DEBUG=1",
			`["cvmfs.view=fuse","cvmfs.repositories=a.b"]`,
		},
		{[]string{"DEBUG="}, []string{"cvmfs.view="}, new(false), "DEBUG=0", `["cvmfs.repositories=a.b"]`},
		{nil, nil, nil, "DEBUG=0", `["cvmfs.repositories=a.b"]`},
		{nil, []string{"cvmfs.repositories="}, nil, "DEBUG=0", ""},
	} {
		i, w := p.newInstall(t)
		w.Settings, w.StorageOpts, w.Debug = c.settings, c.options, c.debug
		if err := i.Install(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(p.file)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(f.plugins[DefaultName].Settings.Env, c.env) || c.opts != "" &&
			!strings.Contains(strings.ReplaceAll(string(b), " ", ""), c.opts) ||
			c.opts == "" && strings.Contains(string(b), "storage-opts") ||
			strings.Contains(string(b), "debug") != (c.debug != nil && *c.debug) {
			t.Errorf("%+v: the plugin has %v, the file is %s", c, f.plugins[DefaultName].Settings.Env, b)
		}
	}
	p.must(t, "purge")
	p.isAsBefore(t, "in the end")
}
