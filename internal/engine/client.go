package engine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Command is the engine's command line client with the arguments given, not started yet.
func (e *Engine) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, e.tools.Docker, append([]string{"--host", "unix://" + e.Socket()}, args...)...)
	// A client configuration of its own: none of the user's credentials, contexts or plugins.
	cmd.Env = append(e.tools.Environ(), "HOME="+e.path("home"), "DOCKER_CONFIG="+e.path("home"), "TMPDIR="+os.TempDir())
	// Like the keeper, in a process group of its own.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	return cmd
}

// Docker runs the client and gives what it prints to its standard output. The error of a client that fails has what it
// prints to its standard error.
func (e *Engine) Docker(ctx context.Context, args ...string) (string, error) {
	var out, complaint bytes.Buffer
	cmd := e.Command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
}
