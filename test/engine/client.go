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
	cmd.Env = e.clientEnviron()
	// Like the keeper, in a process group of its own.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	return cmd
}

// Inside is a shell script, not started yet, that runs in a folder and sees what the engine sees: what it writes below
// /etc, /opt and /run stays the engine's, and its docker is the client, which talks to the engine. It stops at the
// first command that fails.
func (e *Engine) Inside(ctx context.Context, dir, script string) *exec.Cmd {
	keeper := fmt.Sprint(e.keeper.Process.Pid)
	cmd := exec.CommandContext(ctx, "nsenter", "--target", keeper, "--mount", "--pid", "sh", "-euc",
		"cd \"$0\"\n"+script, dir)
	cmd.Env = append(e.clientEnviron(), "DOCKER_HOST=unix://"+e.Socket())
	return cmd
}

// clientEnviron has a client configuration of its own: none of the user's credentials, contexts or plugins. The classic
// builder, as the other one is a plugin of the client.
func (e *Engine) clientEnviron() []string {
	return append(e.tools.Environ(), "HOME="+e.path("home"), "DOCKER_CONFIG="+e.path("home"), "TMPDIR="+os.TempDir(),
		"DOCKER_BUILDKIT=0")
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
	return out.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err,
		strings.TrimSpace(complaint.String()))
}
