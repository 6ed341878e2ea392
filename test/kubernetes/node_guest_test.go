//go:build guest

package kubernetes

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The scripts that a node runs by.
//
//go:embed boot.sh
var boot string

//go:embed keep.sh
var keep string

// node is a Debian that is booted.
type node struct {
	dir   string // its /srv/test
	first int    // its process 1
}

// bootNode boots a tree; programs are folders, which come below /srv/programs by the names given.
func bootNode(t *testing.T, tree string, programs map[string]string) *node {
	t.Helper()
	work, err := os.MkdirTemp("", "node-")
	must(t, err)
	n := &node{dir: filepath.Join(work, "test")}
	bin := filepath.Join(work, "programs")
	cmd := exec.Command("sh", "-euc", keep, "keep", boot, tree, work, bin)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives a test that is interrupted, and clears up
	open, err := cmd.StdinPipe()
	must(t, err)
	must(t, os.Mkdir(n.dir, 0o755))
	must(t, os.Mkdir(bin, 0o755))
	for name, from := range programs {
		must(t, link(from, filepath.Join(bin, name)))
	}
	must(t, cmd.Start())
	t.Cleanup(func() {
		must(t, open.Close())
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("the node's end: %v: %s", err, &said)
		}
	})
	eventually(t, time.Minute, func() error {
		child, err := onlyChild(cmd.Process.Pid)
		if err == nil {
			n.first, err = onlyChild(child)
		}
		if err == nil {
			_, err = n.try(t.Context(), "systemctl is-active basic.target")
		}
		return err
	})
	return n
}

// onlyChild returns the one child that a process has.
func onlyChild(pid int) (int, error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(children)))
}

// link makes a folder with hard links to the files of another.
func link(from, to string) error {
	out, err := exec.Command("cp", "--archive", "--link", from, to).CombinedOutput()
	if err != nil { // another file system
		out, err = exec.Command("cp", "--archive", from, to).CombinedOutput()
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

// command is a shell script, not started yet, on the node.
func (n *node) command(ctx context.Context, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(n.first), "--mount", "--pid", "--ipc", "--uts",
		"--cgroup", "/bin/bash", "-euo", "pipefail", "-c", "cd /srv/test; "+script)
	var path string
	for _, folder := range []string{"kubernetes", "containerd", "crictl", "helm"} {
		path += "/srv/programs/" + folder + ":"
	}
	cmd.Env = []string{
		"PATH=" + path + "/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
		"KUBECONFIG=/srv/test/kubeconfig", "CONTAINER_RUNTIME_ENDPOINT=unix:///run/containerd/containerd.sock",
	}
	return cmd
}

// try runs a script and gives what it prints.
func (n *node) try(ctx context.Context, script string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := n.command(ctx, script)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s%s", script, err, &out, &errOut)
	}
	return strings.TrimSpace(out.String()), err
}

// sh runs a script, which ends the test if it fails.
func (n *node) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := n.try(t.Context(), script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// write writes a file of the node's.
func (n *node) write(t *testing.T, path, content string) {
	t.Helper()
	cmd := n.command(t.Context(), fmt.Sprintf("mkdir -p %q; cat >%q", filepath.Dir(path), path))
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("write %s: %v: %s", path, err, out)
	}
}

// until waits until a script succeeds and prints something wanted.
func (n *node) until(t *testing.T, wait time.Duration, script, wanted string) {
	t.Helper()
	eventually(t, wait, func() error {
		got, err := n.try(t.Context(), script)
		if err == nil && got != wanted {
			err = fmt.Errorf("%s prints %q, want %q", script, got, wanted)
		}
		return err
	})
}

func eventually(t *testing.T, wait time.Duration, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatalf("after %v: %v", wait, err)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
