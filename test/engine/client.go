package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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
	return e.inside(ctx, "sh", "-euc", "cd \"$0\"\n"+script, dir)
}

// inside is a program, not started yet, that sees what the engine sees.
func (e *Engine) inside(ctx context.Context, argv ...string) *exec.Cmd {
	keeper := fmt.Sprint(e.keeper.Process.Pid)
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", keeper, "--mount", "--pid"}, argv...)...)
	cmd.Env = append(e.clientEnviron(), "DOCKER_HOST=unix://"+e.Socket())
	return cmd
}

// clientEnviron has a client configuration of its own: none of the user's credentials, contexts or plugins. Builds are
// the classic builder's unless DOCKER_BUILDKIT is set behind it.
func (e *Engine) clientEnviron() []string {
	return append(e.tools.Environ(), "HOME="+e.path("home"), "DOCKER_CONFIG="+e.path("home"), "TMPDIR="+os.TempDir(),
		"DOCKER_BUILDKIT=0")
}

// linkClientPlugins puts the plugins of the client, if it has any, where it looks for them.
func (e *Engine) linkClientPlugins() error {
	if e.tools.plugins == "" {
		return nil
	}
	err := os.Symlink(e.tools.plugins, filepath.Join(e.path("home"), "cli-plugins"))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// Docker runs the client and gives what it prints to its standard output. The error of a client that fails has what it
// prints to its standard error.
func (e *Engine) Docker(ctx context.Context, args ...string) (string, error) {
	return output(ctx, "docker "+strings.Join(args, " "), e.Command(ctx, args...))
}

// output runs a client, named in errors, and gives what it prints, and an error as [Engine.Docker] does.
func output(ctx context.Context, name string, cmd *exec.Cmd) (string, error) {
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.String(), fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(complaint.String()))
}
