package installer

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/installer/service"
)

// processNamed starts a process of a name, until the test ends.
func processNamed(t *testing.T, name string) int {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(sleep, program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	return cmd.Process.Pid
}

// hostOf is a host without systemd, whose engine has a file with its process id and is restarted by a word's means.
func hostOf(t *testing.T, word string) *host {
	t.Helper()
	by, err := service.Choose(word, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &host{by: by, startWait: time.Hour}
}

// pidFile writes one, and a configuration file that names it and the engine's sockets.
func pidFile(t *testing.T, pid, hosts string) *daemonjson.File {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pid"), []byte(pid), 0o600); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{"storage-driver": %q, "pidfile": %q, "hosts": [%s]}`, DefaultName,
		filepath.Join(dir, "pid"), hosts)
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := daemonjson.Read(filepath.Join(dir, "daemon.json"))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestWithoutSystemdTheProcessTellsWhetherAnEngineRuns(t *testing.T) {
	f := newFakeEngine(t)
	engine, other := fmt.Sprint(processNamed(t, "dockerd")), fmt.Sprint(processNamed(t, "another"))
	there, nowhere := fmt.Sprintf("%q", "unix://"+f.socket), fmt.Sprintf("%q", "unix://"+f.socket+".none")
	for _, c := range []struct {
		name, word, pid, hosts string
		startWait              time.Duration
		what, stop             string // "" for none
	}{
		{"answers", "openrc", engine, nowhere + "," + there, time.Hour, f.socket, "rc-service docker stop"},
		{"answers, of init scripts", "sysv", engine + "\n", there, time.Hour, f.socket, "service docker stop"},
		{"answers, of a command", "command:x", engine, there, time.Hour, f.socket, "kill " + engine},
		{"starts", "openrc", engine, nowhere, time.Hour, "", ""},
		{"hangs", "none", engine, nowhere, 0, "process " + engine, "kill " + engine},
		{"is another program by now", "openrc", other, there, 0, "", ""},
		{"has ended", "openrc", "4194304", there, 0, "", ""},
		{"no number", "openrc", "x", there, 0, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := hostOf(t, c.word)
			h.startWait = c.startWait
			got := h.Running(t.Context(), pidFile(t, c.pid, c.hosts))
			switch {
			case c.what == "" && got != nil:
				t.Errorf("an engine runs: %+v", got)
			case c.what != "" && (got == nil || !strings.Contains(got.What, c.what) || got.Stop != c.stop):
				t.Errorf("got %+v, want %s and %s", got, c.what, c.stop)
			}
		})
	}
}

// Under OpenRC, too, an engine behind another socket is no dead one: neither its file nor its process is touched.
func TestAWrongSocketIsNoDeadEngineWithoutSystemd(t *testing.T) {
	f := newFakeEngine(t)
	file := pidFile(t, fmt.Sprint(processNamed(t, "dockerd")), fmt.Sprintf("%q", "unix://"+f.socket))
	before, err := os.ReadFile(file.Path)
	if err != nil {
		t.Fatal(err)
	}
	p := placeOf(f)
	p.socket, p.file = f.socket+".wrong", file.Path
	for _, what := range []string{"install", "uninstall"} {
		i := p.newInstaller(t)
		i.Service = hostOf(t, "openrc")
		i.Ask = func(context.Context, []string) error { t.Error("asked"); return nil }
		err = p.act(i, what)
		for _, want := range []string{"at unix://" + f.socket + ")", "with --host", "rc-service docker stop"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", what, err, want)
			}
		}
	}
	if after, err := os.ReadFile(file.Path); err != nil || string(after) != string(before) || f.starts != 1 {
		t.Errorf("the file is %q, %v; %d starts", after, err, f.starts)
	}
}
