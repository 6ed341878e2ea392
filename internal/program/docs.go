package program

import (
	_ "embed"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// The completion of each shell asks the program itself, with an argument more, what can stand where the cursor is. NAME
// is the program's.
var (
	//go:embed completion.bash
	bashCompletion string
	//go:embed completion.zsh
	zshCompletion string
	//go:embed completion.fish
	fishCompletion string
)

// docsCommand prints what packages ship beside a program. It is hidden: people have --help.
func docsCommand() *cli.Command {
	return &cli.Command{
		Name:   "docs",
		Usage:  "print the man page or shell completions, for packages",
		Hidden: true,
		Subcommands: []*cli.Command{
			docCommand("man", "the man page", func(c *cli.Context) string {
				date := time.Now()
				if given := c.Timestamp("date"); given != nil {
					date = *given
				}
				return manPage(c.App, date)
			}, &cli.TimestampFlag{
				Name: "date", Usage: "`DATE` of the man page, for example 2026-01-31",
				Layout: time.DateOnly,
			}),
			docCommand("bash", "the completion script for bash", completion(bashCompletion)),
			docCommand("zsh", "the completion script for zsh", completion(zshCompletion)),
			docCommand("fish", "the completion script for fish", completion(fishCompletion)),
		},
		Action: OnlyCommands,
	}
}

func docCommand(name, what string, text func(*cli.Context) string, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name:  name,
		Usage: "print " + what,
		Flags: flags,
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return Usagef(c, "unknown argument %q", c.Args().First())
			}
			_, err := io.WriteString(c.App.Writer, text(c))
			return err
		},
	}
}

func completion(script string) func(*cli.Context) string {
	return func(c *cli.Context) string { return strings.ReplaceAll(script, "NAME", c.App.Name) }
}
