package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/images"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

// demoThin is the thin image that the demonstration makes.
const demoThin = "example/thin_analysis:1"

// needDebian skips a test that needs the image of Debian packages where it is not.
func needDebian(t *testing.T) *images.Image {
	t.Helper()
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	image, err := images.FindDebian(cache)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// demo runs the demonstration with the bundle given and checks that it leaves the machine as it was: what it mounts,
// starts and writes. It gives its output, its exit code and the folder its temporary files lay in. Once it prints the
// text until, if any, it is interrupted.
func demo(t *testing.T, bundle, until string) (said string, code int, tmp string) {
	t.Helper()
	tmp, err := os.MkdirTemp("", "demo-") // not t.TempDir, whose path is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	before, err := engine.Machine(tmp)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.demo(), "-bundle", bundle, "-snapshotter", shared.snapshotter(),
		"-converter", shared.converter(), "-testdata", testutil.Data(t))
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	out := &trigger{until: until, pull: func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
	}}
	cmd.Stdout, cmd.Stderr = out, out
	// Out of the way of a Ctrl-C for the tests.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	err = cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("the demonstration does not end: %s", out.said.String())
	}
	after, machineErr := engine.Machine(tmp)
	if machineErr != nil {
		t.Fatal(machineErr)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the machine changed: %s", diff)
	}
	t.Logf("%s%v", out.said.String(), err)
	return out.said.String(), cmd.ProcessState.ExitCode(), tmp
}

// trigger keeps what is written and pulls once a text was.
type trigger struct {
	said  bytes.Buffer
	until string
	pull  func()
}

func (tr *trigger) Write(b []byte) (int, error) {
	n, err := tr.said.Write(b)
	if tr.until != "" && strings.Contains(tr.said.String(), tr.until) {
		tr.until = ""
		tr.pull()
	}
	return n, err
}

// left lists the files of a folder.
func left(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestTheDemonstrationRunsBothImagesOnBothEnginesAndLeavesNothing(t *testing.T) {
	tools(t)
	stackTools(t, engine.Stack29on21)
	needDebian(t)
	said, code, tmp := demo(t, shared.bundle(), "")
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	for _, engine := range []string{`20\.10\.\S+ +` + stand.Plugin, `29\.\S+ +` + stand.Snapshotter} {
		for _, image := range []string{images.Debian, demoThin} {
			if !regexp.MustCompile(engine + ` +` + regexp.QuoteMeta(image) + ` +"`).MatchString(said) {
				t.Errorf("no line tells what %s said in %s", image, engine)
			}
		}
	}
	if n := strings.Count(said, "To run example/grown:1"); n != 2 {
		t.Errorf("what was committed was published, and ran, in %d engines, want 2", n)
	}
	if names := left(t, tmp); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestAnInterruptedDemonstrationLeavesNothing(t *testing.T) {
	tools(t)
	stackTools(t, engine.Stack29on21)
	needDebian(t)
	convert, run, commit := "convert "+images.Debian, "load and run "+demoThin, "commit a container"
	for _, step := range among([]string{
		convert, "start a private engine", "create and enable", run, "start containerd", commit,
	}, convert, run, commit) {
		t.Run(step, func(t *testing.T) {
			said, code, tmp := demo(t, shared.bundle(), step)
			if code != 1 || !strings.Contains(said, "interrupted") {
				t.Errorf("exit code %d, want 1 and a word about the interruption", code)
			}
			if names := left(t, tmp); len(names) > 0 {
				t.Errorf("left behind: %v", names)
			}
		})
	}
}

func TestAFailedDemonstrationSaysWhereItsLogIs(t *testing.T) {
	tools(t)
	needDebian(t)
	broken := t.TempDir()
	if err := os.CopyFS(broken, os.DirFS(shared.bundle())); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, "rootfs/bin/cvmfs-graphdriver-plugin"), []byte("no program"),
		0o755); err != nil {
		t.Fatal(err)
	}
	said, code, tmp := demo(t, broken, "")
	if code != 1 || !strings.Contains(said, "create and enable the plugin: docker plugin enable") {
		t.Errorf("exit code %d, want 1 and the step that failed", code)
	}
	names := left(t, tmp)
	if len(names) != 1 || !strings.Contains(said, names[0]) {
		t.Errorf("left behind: %v; want the log, named in the output", names)
	}
}
