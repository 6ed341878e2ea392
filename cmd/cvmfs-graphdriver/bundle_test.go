package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"aead.dev/minisign"
	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/testutil"
)

// bundleRun runs a bundle command and gives what it says.
func bundleRun(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(context.Background(), append([]string{"cvmfs-graphdriver", "bundle"}, args...), &o, &e)
	return code, o.String(), e.String()
}

// foreign is an architecture that isn't this machine's.
func foreign() string {
	if runtime.GOARCH == "amd64" {
		return "arm64"
	}
	return "amd64"
}

func TestBundlesAreBuiltShownAndVerified(t *testing.T) {
	dir, dist := t.TempDir(), filepath.Join(t.TempDir(), "dist")
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]interface{ MarshalText() ([]byte, error) }{"key": private, "key.pub": public} {
		text, err := key.MarshalText()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	code, out, errOut := bundleRun(t, "build", "--plugin", testutil.PluginProgram(t, "amd64", "dev", ""), "--plugin",
		testutil.PluginProgram(t, "arm64", "dev", ""),
		"--arch", "amd64,arm64", "--format", "dir,tar.gz,tar.zst", "--output", dist, "--sign",
		filepath.Join(dir, "key"))
	if code != 0 || strings.Count(out, "\n") != 10 {
		t.Fatalf("exit code %d: %s%s", code, out, errOut)
	}
	for line := range strings.Lines(out) {
		if _, err := os.Stat(strings.TrimSpace(line)); err != nil {
			t.Error(err)
		}
	}
	archive := filepath.Join(dist, "cvmfs-graphdriver-plugin-dev-arm64.tar.zst")
	code, out, errOut = bundleRun(t, "verify", "--key", filepath.Join(dir, "key.pub"), archive)
	if code != 0 || !strings.Contains(out, "version dev for arm64") ||
		!strings.Contains(out, fmt.Sprintf("by key %016X", public.ID())) {
		t.Errorf("exit code %d: %s%s", code, out, errOut)
	}
	code, out, errOut = bundleRun(t, "inspect", archive)
	for _, line := range []string{
		"version       dev\n", "architecture  arm64\n", "capability    CAP_SYS_ADMIN\n", "device        /dev/fuse: ",
		"setting       cvmfs_ext_config=/etc/cvmfs: ", "setting       fuse=/dev/fuse: ", "setting       DEBUG=0: ",
		"setting       minio_ext_config=" + rootfs.NoFolder + ": ",
		"mount         " + rootfs.NoFolder + " on /minio_ext_config (rbind,ro)",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("exit code %d, no %q in %s%s", code, line, out, errOut)
		}
	}
	_, out, _ = bundleRun(t, "inspect", "--json", archive)
	var told struct {
		Version, Arch, SHA256 string
		Packed, Unpacked      int64
		Settings              []struct{ Name, Description string }
	}
	if err := json.Unmarshal([]byte(out), &told); err != nil {
		t.Fatal(err)
	}
	if told.Version != "dev" || told.Arch != "arm64" || len(told.SHA256) != 64 || told.Packed == 0 ||
		told.Unpacked <= told.Packed || len(told.Settings) != 4 {
		t.Errorf("got %+v", told)
	}
	if err := os.Truncate(archive, told.Packed-1); err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := bundleRun(t, "verify", archive); code != 1 || !strings.Contains(errOut, "cut off") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
}

func TestBundleCommandsRefuseWhatIsWrong(t *testing.T) {
	plugin := testutil.PluginProgram(t, runtime.GOARCH, "dev", "")
	out := t.TempDir()
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"", 0, "build"},
		{"nonsense", 2, "nonsense"},
		{"build x", 2, `unknown argument "x"`},
		{"build --format zip", 2, `--format "zip"`},
		{"build --arch mips", 2, `--arch "mips"`},
		{
			"build --arch " + foreign() + " --plugin " + plugin, 1,
			plugin + " is for " + runtime.GOARCH + ", and " + foreign() + " was asked for",
		},
		{"build --arch amd64,arm64 --plugin " + plugin, 1, "no program given by --plugin is for " + foreign()},
		{"build --plugin " + plugin + "-not", 1, "is missing (build it: make build)"},
		{"build", 1, "is missing: none of "},
		{"build --plugin " + plugin + " --sign " + plugin, 1, "read the signing key " + plugin},
		{"build --plugin " + plugin + " --output /proc/x", 1, "build plugin bundles in /proc/x"},
		{"inspect", 2, "want FILE, DIR or REF"},
		{"inspect " + out, 1, "has no config.json"},
		{"verify a b", 2, "FILE or DIR"},
		{"verify --key " + plugin + " " + out, 1, "read the public key " + plugin},
		{"verify " + out + "/not", 1, "no such file"},
	} {
		code, stdout, stderr := bundleRun(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stdout+stderr, c.says) {
			t.Errorf("%q: exit code %d, want %d; want %q in %s%s", c.args, code, c.code, c.says, stdout, stderr)
		}
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// SIGINT ends a build in order; the program is so large here that writing its archive takes seconds.
func TestAnInterruptedBuildLeavesNothing(t *testing.T) {
	out := t.TempDir()
	plugin := testutil.PluginProgram(t, runtime.GOARCH, "dev", "")
	f, err := os.OpenFile(plugin, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = io.CopyN(f, rand.NewChaCha8([32]byte{}), 40<<20)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "bundle", "build", "--plugin", plugin, "--output", out, "--format",
		"tar.gz,tar.zst")
	cmd.Env = append(os.Environ(), underTest+"=1")
	var said testutil.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begun := filepath.Join(out, ".bundle-*", "*.tar.gz")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if found, _ := filepath.Glob(begun); len(found) > 0 { // the pattern is good
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no archive is begun: %s", said.String())
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the exit code says it all
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(said.String(),
		"build plugin bundles in "+out) {
		t.Errorf("exit code %d: %s", code, said.String())
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
