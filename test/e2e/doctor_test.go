package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/test/stand"
)

func TestDoctorAndStatusKnowTheDriverInUse(t *testing.T) {
	u := onStand(t)
	u.run(stand.Thin, "/data/a.txt")
	p := preflight.Plan{Host: "unix://" + u.Engine.Socket(), Name: stand.Plugin}
	f := preflight.Gather(t.Context(), p)
	if !f.Engine.Active(stand.Plugin) || f.Engine.Elsewhere != "" || f.Service.LogFile != u.Engine.LogFile() {
		t.Errorf("engine %+v\nservice %+v", f.Engine, f.Service)
	}
	g := f.Plugin
	if !g.Present || !g.Enabled || !g.Ours || g.Settings["cvmfs_ext_config"] != u.Config {
		t.Errorf("plugin %+v", g)
	}
	if s := g.State; s == nil || s.Err != "" || s.Version != "0.test" || s.Thin == 0 || len(s.Images) == 0 ||
		s.Images[0].Repositories[stand.Repository] == 0 || s.PeerGroup == "" || s.Unseen {
		t.Errorf("state %+v", s)
	}
	if d := g.Disk; d == nil || d.Objects == 0 || d.Bytes == 0 || !d.Whole {
		t.Errorf("store %+v", d)
	}
	if r := f.Configuration.Repositories; f.Configuration.Dir != u.Config || len(r) == 0 || r[0].Trouble != "" ||
		r[0].Revision == 0 {
		t.Errorf("configuration %+v", f.Configuration)
	}
	if err := preflight.Unfit(preflight.Judge(f, p)); err != nil {
		t.Error(err)
	}
	// What is expected of the kernel without the driver is what the driver does.
	for _, pair := range f.Engine.DriverStatus {
		if view := preflight.Expected(f.Kernel); pair[0] == "View" && pair[1] != view {
			t.Errorf("%q was expected, the driver has %q", view, pair[1])
		}
	}

	program := filepath.Join(shared.dir, "bin/cvmfs-graphdriver")
	report := filepath.Join(t.TempDir(), "report.tar.gz")
	for _, args := range [][]string{
		{"status"},
		{"status", "--json"},
		{"doctor"},
		{"doctor", "--json", "--bundle-report", report},
	} {
		out, err := exec.CommandContext(t.Context(), program, append(args, "--host", p.Host)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), stand.Repository) || !strings.Contains(string(out), "0.test") {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
	log, err := exec.Command("tar", "--extract", "--gzip", "--to-stdout", "--file", report,
		"cvmfs-graphdriver-report/engine.log", "cvmfs-graphdriver-report/plugin/files.txt").Output()
	if err != nil || !strings.Contains(string(log), "level=") || !strings.Contains(string(log), "store/objects") {
		t.Errorf("%v: the report has no log or no files of the plugin:\n%.500s", err, log)
	}
}
