// Command cvmfs-graphdriver is the host's side of the Docker storage plugin for images that lie unpacked in CernVM-FS.
//
// It exits with 0 when all was done, 1 when something failed, 2 when it was called wrongly, and 3 when the host doesn't qualify
// for what was asked.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program without its process: it gives the exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	app := &cli.App{
		Name:           "cvmfs-graphdriver",
		Usage:          "run Docker images whose layers lie unpacked in CernVM-FS",
		HideVersion:    true,
		Commands:       []*cli.Command{bundleCommand(), repoCommand(), versionCommand()},
		Action:         onlyCommands,
		OnUsageError:   wrongUsage,
		Writer:         out,
		ErrWriter:      errOut,
		ExitErrHandler: func(*cli.Context, error) {}, // exit codes are given below
	}
	refuseBadFlags(app.Commands)
	err := app.RunContext(ctx, args)
	if err == nil {
		return 0
	}
	fmt.Fprintf(errOut, "cvmfs-graphdriver: %v\n", err)
	if errors.As(err, new(usageError)) {
		return exitUsage
	}
	return exitFailed
}

// usageError is a mistake of the caller's.
type usageError struct{ error }

// usagef makes a usageError that says where to look.
func usagef(c *cli.Context, format string, args ...any) error {
	return usageError{fmt.Errorf("%s (see %s --help)", fmt.Sprintf(format, args...), c.Command.HelpName)}
}

func wrongUsage(c *cli.Context, err error, _ bool) error { return usagef(c, "%v", err) }

// refuseBadFlags makes all commands report unknown flags as usage errors.
func refuseBadFlags(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = wrongUsage
		refuseBadFlags(c.Subcommands)
	}
}

// onlyCommands is what a command does that has subcommands and was given none.
func onlyCommands(c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef(c, "unknown command %q", c.Args().First())
	}
	return cli.ShowSubcommandHelp(c)
}
