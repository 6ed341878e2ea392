package installer

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/test/testutil"
)

func TestInstallAndUninstall(t *testing.T) {
	f, p := newHost(t)
	before := p.snapshot(t, f)
	p.must(t, "install")
	if f.driver != DefaultName || !f.plugins[DefaultName].Enabled ||
		!slices.Contains(f.plugins[DefaultName].Settings.Env, "DEBUG=1") {
		t.Fatalf("the engine runs on %s, with the plugin %+v", f.driver, f.plugins[DefaultName])
	}
	installed, starts := p.snapshot(t, f), f.starts
	f.asked = nil
	p.must(t, "install")
	if now := p.snapshot(t, f); now != installed || f.starts != starts {
		t.Errorf("a second install changed\n%s\ninto\n%s", installed, now)
	}
	for _, request := range f.asked {
		if strings.Contains(request, "/plugins/") {
			t.Errorf("a second install asked for %s", request)
		}
	}
	p.must(t, "purge")
	if after := p.snapshot(t, f); after != before {
		t.Errorf("after the uninstall there is\n%s\nand not\n%s", after, before)
	}
}

func TestUninstallKeepsLayers(t *testing.T) {
	f, p := begun(t, "uninstall")
	p.must(t, "uninstall")
	if f.driver != "overlay2" || f.plugins[DefaultName] == nil || f.plugins[DefaultName].Enabled {
		t.Errorf("the engine runs on %s, with %+v", f.driver, f.plugins[DefaultName])
	}
	p.isAsBefore(t, "in the end")
	p.must(t, "install")
	if f.driver != DefaultName {
		t.Errorf("installed again, the engine runs on %s", f.driver)
	}
	p.must(t, "purge")
}

func TestUpgradeKeepsSettings(t *testing.T) {
	f, p := begun(t, "upgrade")
	id := f.plugins[DefaultName].ID
	folder := "/srv/configuration"
	f.change(func() {
		f.plugins[DefaultName].Settings.Mounts[0].Source = &folder
		f.plugins[DefaultName].Config.Mounts[0].Source = &folder
	})
	p.must(t, "upgrade")
	got := f.plugins[DefaultName]
	if used := *got.Config.Mounts[0].Source; used != folder {
		t.Errorf("the engine uses %s for %s, which was set to %s", used, got.Config.Mounts[0].Name, folder)
	}
	if got.ID != id || !got.Enabled || !slices.Contains(got.Settings.Env, "DEBUG=1") ||
		!strings.HasSuffix(got.Config.Description, "version 2") {
		t.Errorf("the plugin is %+v", got)
	}
	starts := f.starts
	p.must(t, "upgrade")
	if f.starts != starts {
		t.Error("a second upgrade restarted the engine")
	}
}

// Every point of every operation: a failure there is undone, and the host is as before.
func TestAFailureAnywhereIsUndone(t *testing.T) {
	for _, what := range []string{"install", "upgrade", "uninstall"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			for n := 0; ; n += testutil.Stride() {
				f, p := begun(t, what)
				before := p.snapshot(t, f)
				where, err := p.failAt(t, what, n)
				if where == "" { // the end was reached
					if err != nil {
						t.Fatal(err)
					}
					if n < 5 {
						t.Errorf("only %d points were passed", n)
					}
					return
				}
				if where == "before: commit" { // all is done but for the record, which tells of an open transaction
					continue
				}
				var back *RolledBackError
				if !errors.As(err, &back) || back.ExitCode() != 4 || !strings.Contains(err.Error(), "injected") {
					t.Errorf("failing at %q: %v", where, err)
				}
				if after := p.snapshot(t, f); after != before {
					t.Errorf("failing at %q leaves\n%s\nand not\n%s", where, after, before)
				}
				if rec, err := readRecord(p.record); err != nil || rec.Open != nil {
					t.Errorf("failing at %q leaves the record %+v, %v", where, rec, err)
				}
			}
		})
	}
}

// Every point of every operation, and of undoing it: after kill -9 there, the next run undoes what was left and goes
// on.
func TestKillAnywhereIsMendedByTheNextRun(t *testing.T) {
	for _, what := range []string{"install", "upgrade", "uninstall"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			for n := 0; ; n += testutil.Stride() {
				f, p := begun(t, what)
				killed, out, err := p.killedAt(what, n)
				if err != nil {
					t.Fatalf("point %d: %v: %s", n, err, out)
				}
				// The engine restarts meanwhile, as after a power cut, or not.
				if n%2 == 1 {
					f.start()
				}
				p.must(t, what)
				wanted := map[string]string{
					"install": DefaultName, "upgrade": DefaultName,
					"uninstall": "overlay2",
				}[what]
				if f.driver != wanted || !f.up {
					t.Errorf("killed at point %d: the engine runs on %s, up %v", n, f.driver, f.up)
				}
				if what == "upgrade" && !strings.HasSuffix(f.plugins[DefaultName].Config.Description, "version 2") {
					t.Errorf("killed at point %d: the plugin is %s", n, f.plugins[DefaultName].Config.Description)
				}
				p.must(t, "purge")
				p.isAsBefore(t, "killed at point %d", n)
				if !killed {
					if n < 5 {
						t.Errorf("only %d points were passed", n)
					}
					return
				}
			}
		})
	}
}

// Every point of an upgrade that fails, and of undoing it.
func TestKillWhileUndoingIsMendedByTheNextRun(t *testing.T) {
	for n := 0; ; n += testutil.Stride() {
		f, p := begun(t, "upgrade")
		before := p.snapshot(t, f)
		b, err := p.bundle("2")
		if err != nil {
			t.Fatal(err)
		}
		f.change(func() { f.broken[b.Config.Description] = true })
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"=upgrade:"+p.String(), killVariable+"="+strconv.Itoa(n))
		out, err := cmd.CombinedOutput()
		if !cmd.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() {
			if err == nil || !strings.Contains(string(out), "rolled back") {
				t.Errorf("the upgrade ended with %v: %s", err, out)
			}
			if n < 10 {
				t.Errorf("only %d points were passed", n)
			}
			return
		}
		if n%2 == 1 {
			f.start()
		}
		p.must(t, "install")
		if after := p.snapshot(t, f); after != before {
			t.Errorf("killed at point %d, there is then\n%s\nand not\n%s", n, after, before)
		}
	}
}

// What an engine refuses is undone, and told.
func TestRefusalsOfTheEngineAreUndone(t *testing.T) {
	for _, c := range []struct{ what, fails string }{
		{"install", "POST /plugins/create"},
		{"install", "POST /plugins/cvmfs-graphdriver/set"},
		{"install", "POST /plugins/cvmfs-graphdriver/enable"},
		{"install", "POST /images/load"},
		{"install", "POST /containers/create"},
		{"install", "POST /containers/c1/start"},
		{"upgrade", "POST /plugins/cvmfs-graphdriver/disable"},
		{"upgrade", "POST /plugins/cvmfs-graphdriver/upgrade"},
		{"upgrade", "POST /images/load"},
	} {
		t.Run(c.what+" "+c.fails, func(t *testing.T) {
			f, p := begun(t, c.what)
			before := p.snapshot(t, f)
			i := p.newInstaller(t)
			f.change(func() { f.fails = c.fails })
			i.Tell = f.mends
			err := p.act(i, c.what)
			if err == nil || !errors.As(err, new(*RolledBackError)) ||
				!strings.Contains(err.Error(), "no space left on device") {
				t.Errorf("it ended with %v", err)
			}
			if after := p.snapshot(t, f); after != before {
				t.Errorf("it leaves\n%s\nand not\n%s", after, before)
			}
		})
	}
}

// A new plugin on which the engine doesn't start: it is started on another driver, the plugin put back, and all is as
// before.
func TestABadUpgradeIsRescued(t *testing.T) {
	for what, spoil := range map[string]func(*fakeEngine, string){
		"the engine doesn't start": func(f *fakeEngine, d string) { f.broken[d] = true },
		"containers don't start":   func(f *fakeEngine, d string) { f.silent[d] = true },
	} {
		t.Run(what, func(t *testing.T) {
			f, p := begun(t, "upgrade")
			before := p.snapshot(t, f)
			b, err := p.bundle("2")
			if err != nil {
				t.Fatal(err)
			}
			spoil(f, b.Config.Description)
			if err := p.try(t, "upgrade"); !errors.As(err, new(*RolledBackError)) {
				t.Errorf("it ended with %v", err)
			}
			if after := p.snapshot(t, f); after != before {
				t.Errorf("it leaves\n%s\nand not\n%s", after, before)
			}
		})
	}
}

func TestWhatCannotBeUndoneIsToldAndTriedAgain(t *testing.T) {
	f, p := begun(t, "install")
	i := p.newInstaller(t)
	f.change(func() { f.fails = "POST /plugins/cvmfs-graphdriver/enable" })
	i.Tell = func(e Event) {
		if e.Step == stepEnable && e.Outcome == Failed {
			f.change(func() { f.fails = "DELETE /plugins/" })
		}
	}
	err := p.act(i, "install")
	var stuck *StuckError
	if !errors.As(err, &stuck) {
		t.Fatalf("it ended with %v", err)
	}
	for _, want := range []string{"docker plugin rm --force cvmfs-graphdriver", "rmdir " + p.folder} {
		if !slices.ContainsFunc(stuck.ByHand, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("by hand it takes %q, without %q", stuck.ByHand, want)
		}
	}
	f.change(func() { f.fails = "" })
	p.must(t, "install")
	if f.driver != DefaultName {
		t.Errorf("the engine runs on %s", f.driver)
	}
}

func TestTwoRunsKeepApart(t *testing.T) {
	_, p := newHost(t)
	rec, err := openRecord(p.record)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.close()
	if err := p.try(t, "install"); err == nil || !strings.Contains(err.Error(), "is at work here") {
		t.Errorf("a second run ended with %v", err)
	}
}

func TestAnEditSinceTheInstallStays(t *testing.T) {
	_, p := begun(t, "uninstall")
	b, err := os.ReadFile(p.file)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(b), `"json-file"`, `"local"`, 1)
	if err := os.WriteFile(p.file, []byte(edited), 0o640); err != nil {
		t.Fatal(err)
	}
	p.must(t, "uninstall")
	want := strings.Replace(administrators, `"json-file"`, `"local"`, 1)
	if b, err = os.ReadFile(p.file); err != nil || string(b) != want {
		t.Errorf("the configuration is %q, %v, want %q", b, err, want)
	}
}

func TestPlanChangesNothing(t *testing.T) {
	f, p := newHost(t)
	before := p.snapshot(t, f)
	i := p.newInstaller(t)
	var said string
	i.Tell = func(e Event) { said += e.Text + "\n" }
	w, err := p.wishes()
	if err == nil {
		err = i.Plan(t.Context(), w)
	}
	if err != nil {
		t.Fatal(err)
	}
	if after := p.snapshot(t, f); after != before {
		t.Errorf("planning changed\n%s\ninto\n%s", before, after)
	}
	if _, err := os.Stat(filepath.Dir(p.record)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("planning made the record's folder: %v", err)
	}
	for _, want := range []string{
		`+	"storage-driver": "cvmfs-graphdriver"`, `-	"storage-driver": "overlay2"`,
		"create and enable the plugin", "restart the engine (systemctl restart docker)",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("the plan doesn't say %q:\n%s", want, said)
		}
	}
}

// byHand leaves restarts to the test.
type byHand struct{ fakeService }

func (byHand) Restart(context.Context, func(context.Context) error) error { return ErrNoRestart }

func TestTheUserMayRestartTheEngine(t *testing.T) {
	f, p := newHost(t)
	i := p.newInstaller(t)
	i.Service = byHand{fakeService{p.socket, p.dropIn}}
	do := func(what, driver string) {
		t.Helper()
		if err := p.act(i, what); err != nil || f.driver != driver {
			t.Errorf("%s: %v, the engine runs on %s", what, err, f.driver)
		}
	}
	do("install", "overlay2")
	if err := f.start(); err != nil {
		t.Fatal(err)
	}
	if err := i.Test(t.Context(), "", Images{}); err != nil {
		t.Error(err)
	}
	do("install", DefaultName)

	// An upgrade that fails is undone all the same.
	layOut(t, f, p, DefaultName)
	before := p.snapshot(t, f)
	i.inject = func(point string) error {
		if point == "after: "+string(pluginEnabled) {
			return errors.New("injected")
		}
		return nil
	}
	if err := p.act(i, "upgrade"); !errors.As(err, new(*RolledBackError)) {
		t.Errorf("an upgrade that fails: %v", err)
	}
	i.inject = nil
	if d := cmp.Diff(before, p.snapshot(t, f)); d != "" {
		t.Errorf("an upgrade that failed: %s", d)
	}

	do("uninstall", DefaultName)
	if !f.plugins[DefaultName].Enabled {
		t.Error("the plugin is disabled while it is in use")
	}
	if err := f.start(); err != nil {
		t.Fatal(err)
	}
	do("purge", "overlay2")
	if len(f.plugins) > 0 {
		t.Errorf("the engine has the plugins %v", f.plugins)
	}
}

func TestTheDataFolderMoves(t *testing.T) {
	for _, fails := range []string{"", "POST /images/load"} {
		f, p := newHost(t)
		former := f.root
		i, w := p.newInstall(t)
		w.DataRoot = filepath.Join(filepath.Dir(p.socket), "elsewhere")
		f.change(func() { f.remapped, f.fails = false, fails })
		err := i.Install(t.Context(), w)
		if fails == "" && (err != nil || f.root != w.DataRoot || f.driver != DefaultName) {
			t.Errorf("%v: the engine runs on %s in %s", err, f.driver, f.root)
		}
		if fails != "" && (!errors.As(err, new(*RolledBackError)) || f.root != former || f.driver != "overlay2") {
			t.Errorf("%v: the engine runs on %s in %s", err, f.driver, f.root)
		}
		f.change(func() { f.fails = "" })
		p.must(t, "purge")
		if b, err := os.ReadFile(p.file); err != nil || string(b) != administrators || f.root != former {
			t.Errorf("the configuration is %q, %v, the engine's data are in %s", b, err, f.root)
		}
	}
}

// Comments make the engine fail at its next start: they are left out, and stay out when all else is undone.
func TestAFileThatTheEngineRejects(t *testing.T) {
	f, p := newHost(t)
	const commented = "{\n\t// by me\n\t\"log-driver\": \"json-file\",\n}\n"
	if err := os.WriteFile(p.file, []byte(commented), 0o644); err != nil {
		t.Fatal(err)
	}
	i, w := p.newInstall(t)
	if err := i.Install(t.Context(), w); err == nil || !strings.Contains(err.Error(), "line 2") ||
		!strings.Contains(err.Error(), "--fix") {
		t.Errorf("it ended with %v", err)
	}
	w.Fix = true
	f.change(func() { f.fails = "POST /containers/create" })
	if err := i.Install(t.Context(), w); !errors.As(err, new(*RolledBackError)) {
		t.Errorf("it ended with %v", err)
	}
	const plain = "{\n\t\"log-driver\": \"json-file\"\n}\n"
	if b, err := os.ReadFile(p.file); err != nil || string(b) != plain || !f.up || f.driver != "overlay2" {
		t.Errorf("rolled back, the configuration is %q, %v, and the engine runs on %s", b, err, f.driver)
	}
}

// A plugin that was made the driver by hand.
func TestUninstallWithoutARecord(t *testing.T) {
	f, p := newHost(t)
	p.must(t, "install")
	if err := os.RemoveAll(filepath.Dir(p.record)); err != nil {
		t.Fatal(err)
	}
	p.must(t, "uninstall")
	if f.driver != "overlay2" || f.plugins[DefaultName].Enabled {
		t.Errorf("the engine runs on %s", f.driver)
	}
}

func TestRecordsThatCannotBeUnderstoodStopTheRun(t *testing.T) {
	for content, want := range map[string]string{"{": "unexpected end", `{"format": 2}`: "format 2"} {
		_, p := newHost(t)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p.record), 0o755),
			os.WriteFile(p.record, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := p.try(t, "install"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
	}
}

func TestAFileThatTheEngineWouldRejectIsNotWritten(t *testing.T) {
	f, p := newHost(t)
	before := p.snapshot(t, f)
	i, w := p.newInstall(t)
	w.Validate = func(_ context.Context, file *daemonjson.File) error {
		if driver, _ := file.Get("storage-driver"); string(driver) != `"`+DefaultName+`"` {
			t.Errorf("the engine is asked about a file with the storage driver %s", driver)
		}
		return errors.New("the engine says no")
	}
	for name, do := range map[string]func(context.Context, Wishes) error{"install": i.Install, "plan": i.Plan} {
		if err := do(t.Context(), w); err == nil || !strings.Contains(err.Error(), "the engine says no") ||
			errors.As(err, new(*RolledBackError)) {
			t.Errorf("%s ended with %v", name, err)
		}
	}
	if d := cmp.Diff(before, p.snapshot(t, f)); d != "" {
		t.Error(d)
	}
}
