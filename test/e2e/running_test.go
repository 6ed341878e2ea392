package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"cvmfs-graphdriver/test/stand"
)

// running is a container that runs until it is ended.
type running struct {
	root      string // the container's root folder, as it sees it
	client    *exec.Cmd
	input     io.Closer
	said, err bytes.Buffer
}

// start runs a container whose program waits for the end of its input, then writes the files given to its output, and
// ends.
func (u user) start(image string, files ...string) *running {
	u.Helper()
	r := &running{}
	note := filepath.Join(u.TempDir(), "id")
	args := []string{"run", "--rm", "--interactive", "--cidfile", note, "--network", "none", image, "/dev/stdin"}
	r.client = u.Engine.Command(u.Context(), append(args, files...)...)
	r.client.Stdout, r.client.Stderr = &r.said, &r.err
	input, err := r.client.StdinPipe()
	if err != nil {
		u.Fatal(err)
	}
	r.input = input
	if err := r.client.Start(); err != nil {
		u.Fatal(err)
	}
	u.eventually("the container runs", func() error {
		id, err := os.ReadFile(note)
		if err != nil {
			return err
		}
		state, err := u.Engine.Docker(u.Context(), "inspect", "--format", "{{.State.Status}}", string(id))
		if err != nil {
			return err
		}
		for pid, inner := range u.processes(string(id)) {
			if inner == 1 && strings.TrimSpace(state) == "running" {
				r.root = fmt.Sprintf("/proc/%d/root", pid)
				return nil
			}
		}
		return fmt.Errorf("it is %s", state)
	})
	return r
}

// end ends the container's input, waits for its end and gives what it said, without white space around it.
func (r *running) end() (string, error) {
	if err := r.input.Close(); err != nil {
		return "", err
	}
	if err := r.client.Wait(); err != nil {
		return "", fmt.Errorf("%w: %s", err, &r.err)
	}
	return strings.TrimSpace(r.said.String()), nil
}

// eventually tries until there is no error, as long as a user would.
func (u user) eventually(what string, try func() error) {
	u.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			u.Fatalf("%s: not after %v: %v", what, patience, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// processes returns the processes of a container or of the plugin by its id, with the number each has inside.
func (u user) processes(id string) map[int]int {
	u.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		u.Fatal(err)
	}
	found := map[int]int{}
	for _, file := range files {
		// A process may end while it is looked at.
		groups, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(groups), id) {
			continue
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(file), "status"))
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			u.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			// NSpid lists the process's number in each namespace, the innermost last.
			if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
				fields := strings.Fields(numbers)
				if found[pid], err = strconv.Atoi(fields[len(fields)-1]); err != nil {
					u.Fatal(err)
				}
			}
		}
	}
	return found
}

// plugin is the plugin's id.
func (u user) plugin() string {
	u.Helper()
	return u.docker("plugin", "inspect", "--format", "{{.Id}}", stand.Plugin)
}
