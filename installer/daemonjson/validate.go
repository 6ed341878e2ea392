package daemonjson

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/child"
)

// validateWait bounds how long the engine's program may think about a configuration.
const validateWait = 20 * time.Second

// ErrCannotValidate says that an engine has no way to judge a configuration without starting; those before 23 haven't.
var ErrCannotValidate = errors.New("this engine can't validate its configuration")

// Validate has the engine's own program judge the file as it is to be, together with the arguments (without the
// program's name) and the environment that the engine is started with. The error is what it says against them, or
// [ErrCannotValidate].
func (f *File) Validate(ctx context.Context, program string, args, environ []string) error {
	if !f.Exists() {
		return nil
	}
	err := f.validate(ctx, program, args, environ)
	if err != nil && !errors.Is(err, ErrCannotValidate) {
		return fmt.Errorf("validate %s: %w", f.Path, err)
	}
	return err
}

func (f *File) validate(ctx context.Context, program string, args, environ []string) (err error) {
	temporary, err := os.CreateTemp("", "daemon.json-") // only its owner may read it
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(temporary.Name())) }()
	_, err = temporary.Write(f.content)
	if err := errors.Join(err, temporary.Close()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, validateWait)
	defer cancel()
	// Of two flags of a name the last counts.
	cmd := exec.CommandContext(ctx, program, append(slices.Clip(args), "--config-file", temporary.Name(),
		"--validate")...)
	cmd.Env = environ
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err = child.Start(cmd); err == nil {
		err = cmd.Wait()
	}
	said := strings.TrimSpace(strings.ReplaceAll(out.String(), temporary.Name(), f.Path))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case strings.Contains(said, "unknown flag: --validate"):
		return ErrCannotValidate
	case errors.As(err, new(*exec.ExitError)):
		return errors.New(said)
	}
	return err
}
