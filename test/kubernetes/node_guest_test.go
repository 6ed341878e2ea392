//go:build guest

package kubernetes

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed boot.sh
var boot string

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
	t.Cleanup(func() { must(t, os.RemoveAll(work)) })
	n := &node{dir: filepath.Join(work, "test")}
	must(t, os.Mkdir(n.dir, 0o755))
	bin := filepath.Join(work, "programs")
	must(t, os.Mkdir(bin, 0o755))
	for name, from := range programs {
		must(t, link(from, filepath.Join(bin, name)))
	}
	group := fmt.Sprintf("cvmfs-kubernetes-%d", os.Getpid())
	groups := makeGroups(t, group)
	// The shell joins the groups before it makes namespaces, so that its group is the root of what the node sees.
	join := "for g in " + strings.Join(groups, " ") + "; do echo $$ >$g/cgroup.procs; done\n" +
		`exec unshare --mount --pid --ipc --uts --cgroup --fork --kill-child sh -euc "$@"`
	cmd := exec.Command("sh", append([]string{"-euc", join, "join", boot, "boot"}, tree, work, bin)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if n.first != 0 {
			must(t, unix.Kill(n.first, unix.SIGKILL))
		}
		<-ended
		removeGroups(t, groups)
	})
	children := fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid)
	eventually(t, time.Minute, func() error {
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("the node ended: %w: %s", err, &said)
		default:
		}
		b, err := os.ReadFile(children)
		if err == nil {
			n.first, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		if err == nil {
			_, err = n.try(t.Context(), "systemctl is-active basic.target")
		}
		return err
	})
	return n
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

// makeGroups makes a control group in each hierarchy there is.
func makeGroups(t *testing.T, name string) (groups []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if fields[2] != "cgroup" && fields[2] != "cgroup2" {
			continue
		}
		group := filepath.Join(fields[1], name)
		must(t, os.Mkdir(group, 0o755))
		groups = append(groups, group)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if all, err := os.ReadFile(filepath.Join(fields[1], file)); err == nil {
				must(t, os.WriteFile(filepath.Join(group, file), all, 0o644))
			}
		}
	}
	return groups
}

// removeGroups removes control groups with those below, once their processes have ended.
func removeGroups(t *testing.T, groups []string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		var failures []error
		for _, group := range groups {
			err := exec.Command("find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
			if _, gone := os.Stat(group); gone == nil {
				failures = append(failures, fmt.Errorf("%s is left: %w", group, err))
			}
		}
		return errors.Join(failures...)
	})
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
