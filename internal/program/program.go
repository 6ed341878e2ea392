// Package program is what the project's command line programs have in common: how they end, and how they say what they
// are.
//
// A program exits with [Done], [Failed], [Usage], [Unfit] or [RolledBack]; a mistake of the caller's is told from a
// failure by its error ([Usagef]), what a host or a repository isn't fit for by an error the program names itself, and
// an error may have an ExitCode of its own.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
)

// Exit codes.
const (
	Done   = 0
	Failed = 1
	Usage  = 2 // it was called wrongly
	Unfit  = 3 // the host, or a repository, doesn't qualify for what was asked

	RolledBack = 4 // it failed, and what it had changed of the host is undone

	// nobody read the output to its end; a shell says the same of a program that SIGPIPE ends
	Unread = 128 + int(syscall.SIGPIPE)
)

// exits says what the exit codes mean, in the manual pages of all programs.
var exits = []struct {
	code  int
	means string
}{
	{Done, "success"},
	{Failed, "failure"},
	{Usage, "wrong usage"},
	{Unfit, "the host or the repository does not meet the requirements"},
	{RolledBack, "install, upgrade or uninstall failed, and its changes to the host were undone"},
	{Unread, "the output was not read to its end, for example because a pipe was closed"},
}

// impatience is how long after a signal that ends a program another one is taken for the same: timeout(1) sends its
// twice, once to the program and once to its group.
const impatience = time.Second

// Main runs a program as this process and ends it. SIGINT, SIGTERM and SIGHUP end the context, unless whoever started
// it has them ignored; one that comes more than a second later ends the process. A pipe that nobody reads any more is
// an error of what writes to it: no signal ends the program before it has cleaned up.
func Main(run func(ctx context.Context, args []string, out, errOut io.Writer) int) {
	ctx, cancel := context.WithCancel(context.Background())
	ends := make(chan os.Signal, 1)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(ends, s)
		}
	}
	go func() {
		<-ends
		cancel()
		time.Sleep(impatience)
		signal.Stop(ends) // the next one ends the process
	}()
	// not ignored, which programs that are started would inherit
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// unread tells the error of an output that nobody reads any more.
func unread(err error) bool {
	wrote, ok := errors.AsType[*fs.PathError](err)
	return ok && wrote.Path == os.Stdout.Name() && errors.Is(wrote, syscall.EPIPE)
}

// Run runs an app without a process of its own, tells an error on its ErrWriter, and gives the exit code. An error's
// ExitCode counts; errors that are one of unfit give Unfit.
func Run(ctx context.Context, app *cli.App, args []string, unfit ...error) int {
	app.HideVersion = true
	if app.Action == nil {
		app.Action = OnlyCommands
	}
	app.OnUsageError = wrongUsage
	app.ExitErrHandler = func(*cli.Context, error) {} // exit codes are given below
	app.EnableBashCompletion = true
	app.Commands = append(app.Commands, docsCommand())
	prepare(app.Commands)
	err := app.RunContext(ctx, args)
	switch {
	case err == nil:
		return Done
	case unread(err):
		return Unread
	}
	fmt.Fprintf(app.ErrWriter, "%s: %v\n", app.Name, err)
	if IsUsage(err) {
		return Usage
	}
	if own := cli.ExitCoder(nil); errors.As(err, &own) {
		return own.ExitCode()
	}
	for _, u := range unfit {
		if errors.Is(err, u) {
			return Unfit
		}
	}
	return Failed
}

// usageError is a mistake of the caller's.
type usageError struct{ error }

// Usagef makes the error of a mistake of the caller's; it says where to look.
func Usagef(c *cli.Context, format string, args ...any) error {
	return usageError{fmt.Errorf("%s (see %s --help)", fmt.Sprintf(format, args...), c.Command.HelpName)}
}

// IsUsage reports whether it is the error of a mistake of the caller's.
func IsUsage(err error) bool { return errors.As(err, new(usageError)) }

func wrongUsage(c *cli.Context, err error, _ bool) error { return Usagef(c, "%v", err) }

// prepare makes all commands report unknown flags as mistakes of the caller's, and those that take arguments take
// "help" for one.
func prepare(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = wrongUsage
		c.HideHelpCommand = len(c.Subcommands) == 0
		prepare(c.Subcommands)
	}
}

// OnlyCommands is what a command does that has subcommands and was given none.
func OnlyCommands(c *cli.Context) error {
	if c.NArg() > 0 {
		return Usagef(c, "unknown command %q", c.Args().First())
	}
	return cli.ShowSubcommandHelp(c)
}

// VersionCommand reports which build a program is: the version, and the commit if it is known.
func VersionCommand(version, commit string) *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return Usagef(c, "unknown argument %q", c.Args().First())
			}
			build := version
			if commit != "" {
				build += " (" + commit + ")"
			}
			_, err := fmt.Fprintf(c.App.Writer, "%s %s %s %s/%s\n", c.App.Name, build, runtime.Version(), runtime.GOOS,
				runtime.GOARCH)
			return err
		},
	}
}
