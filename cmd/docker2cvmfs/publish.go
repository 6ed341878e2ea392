package main

import (
	"encoding/json"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/internal/program"
)

// publishCommand looks after repositories of our own publisher.
func publishCommand() *cli.Command {
	return &cli.Command{
		Name: "publish", Usage: "create and maintain a repository",
		Action: program.OnlyCommands,
		Subcommands: []*cli.Command{
			publishCreateCommand(), publishInfoCommand(), publishResignCommand(), publishCheckCommand(),
			publishTagCommand(),
			publishGCCommand(), publishServeCommand(),
		},
	}
}

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print the result as JSON"} }

// withRepository opens the publisher's folder of the only argument for fn.
func withRepository(fn func(c *cli.Context, r *publish.Repository) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := needArgs(c, "DIR"); err != nil {
			return err
		}
		r, err := publish.Open(c.Args().First(), publish.Options{})
		if err != nil {
			return err
		}
		return fn(c, r)
	}
}

func printJSON(c *cli.Context, value any) error { return json.NewEncoder(c.App.Writer).Encode(value) }
