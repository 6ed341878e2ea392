package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A socket that is not for the user is no engine that doesn't run.
func TestASocketOfAnotherUsersIsNamedAsSuch(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be another user")
	}
	dir, err := os.MkdirTemp("", "denied-") // that of the test is root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, socket := filepath.Join(dir, "program"), filepath.Join(dir, "docker.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	self, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.Chmod(socket, 0o600),
		os.WriteFile(program, self, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		command, says string
		code          int
	}{
		{"doctor", "engine.permission", 3},
		{"status", "not for this user", 1},
		{"test --test-image x", "run this program as root", 1},
	} {
		cmd := exec.Command(program, append(strings.Fields(c.command), "--host", "unix://"+socket, "--record",
			filepath.Join(dir, "record"))...)
		cmd.Env = append(os.Environ(), underTest+"=1", "TMPDIR=/tmp")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.says) ||
			strings.Contains(string(out), "no engine answers") {
			t.Errorf("%s ended with %d, %v: %s", c.command, code, err, out)
		}
	}
}
