package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/program"
	"cvmfs-graphdriver/test/testutil"
)

// Where nobody sees what is mounted, nothing is started.
func TestMountsThatNobodySeesAreRefused(t *testing.T) {
	dir := testutil.SmallDisk(t, "1m")
	must(t, unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
	var out, errOut bytes.Buffer
	code := run(t.Context(), []string{"cvmfs-snapshotter", "--root", dir + "/r", "--address", dir + "/s"}, &out, &errOut)
	if code != program.Unfit || !strings.Contains(errOut.String(), "make-rshared") {
		t.Errorf("%d: %s", code, &errOut)
	}
	if _, err := os.Lstat(dir + "/s"); err == nil {
		t.Error("a socket is there")
	}
}

// The program is started again by itself to evaluate a script of proxy auto-configuration.
func TestScriptsOfProxyAutoConfigurationAreEvaluated(t *testing.T) {
	c := exec.CommandContext(t.Context(), os.Args[0], "evaluate-pac")
	c.Env = append(os.Environ(), underTest+"=1")
	out, err := c.CombinedOutput() // there is no script
	if err == nil || strings.TrimSpace(string(out)) != "EOF" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestWrongCallsAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.json")
	for _, c := range []struct {
		content string // of the file of settings
		args    []string
		code    int
		says    string
	}{
		{`{}`, []string{"--version"}, program.Done, "cvmfs-snapshotter development"},
		{`{}`, []string{"version"}, program.Done, "cvmfs-snapshotter development"},
		{`{}`, []string{"start"}, program.Usage, "unknown command"},
		{`{}`, []string{"--root", "here"}, program.Usage, "absolute"},
		{`{}`, []string{"--root", "/a:b"}, program.Usage, "mount options"},
		{`{}`, []string{"--storage-opt", "cvmfs.veiw=fuse"}, program.Usage, "cvmfs.veiw"},
		{
			`{"storage-opts":["cvmfs.metrics=unix:/run/docker/plugins/m.sock"]}`, nil, program.Usage,
			"outside of /run/docker/plugins",
		},
		{
			`{"address":"/run/x/a","storage-opts":["cvmfs.metrics=unix:/run/x/control.sock"]}`, nil, program.Usage,
			"is for something else",
		},
		{`{"control":"c.sock"}`, nil, program.Usage, "control: want an absolute path"},
		{`{"rooot":"/a"}`, nil, program.Failed, "rooot"},
		{`{"root":"/a"} {}`, nil, program.Failed, "behind"},
		{`{"address":"s"}`, nil, program.Usage, "address: want an absolute path"},
		{`{}`, []string{"serve"}, program.Failed, "supervisor"},
	} {
		must(t, os.WriteFile(file, []byte(c.content), 0o600))
		var said bytes.Buffer
		args := append([]string{"cvmfs-snapshotter", "--config", file}, c.args...)
		if code := run(t.Context(), args, &said, &said); code != c.code || !strings.Contains(said.String(), c.says) {
			t.Errorf("%s %q: %d, %s", c.content, c.args, code, &said)
		}
	}
}

func TestStorageOptionsAreThoseOfThePlugin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.json")
	must(t, os.WriteFile(file, []byte(`{"storage-opts":["cvmfs.isolate=yes","cvmfs.cache-limit=1G"]}`), 0o600))
	app := cli.App{Flags: flags(), Action: func(c *cli.Context) error {
		cfg, err := readConfig(c)
		must(t, err)
		if !cfg.settings.Isolate || cfg.settings.CacheLimit != 1<<30 || cfg.settings.CacheFloor != 2<<30 {
			t.Errorf("%+v", cfg.settings)
		}
		return nil
	}}
	must(t, app.RunContext(t.Context(), []string{"", "--config", file, "--storage-opt", "cvmfs.cache-floor=2G"}))
}
