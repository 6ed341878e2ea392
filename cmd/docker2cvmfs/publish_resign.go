package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/internal/program"
)

func publishResignCommand() *cli.Command {
	return &cli.Command{
		Name: "resign", Usage: "renew the whitelist with the master key", ArgsUsage: "DIR",
		Flags: []cli.Flag{
			&cli.IntFlag{
				Name: "days", Usage: "validity of the new whitelist in `DAYS`",
				DefaultText: "whitelist_days of DIR/publisher.json",
			},
			&cli.BoolFlag{
				Name:  "new-key",
				Usage: "create a new key and certificate for publishing; the former certificate stays in the whitelist",
			},
		},
		Action: withRepository(publishResign),
	}
}

func publishResign(c *cli.Context, r *publish.Repository) error {
	if c.IsSet("days") && c.Int("days") < 1 {
		return program.Usagef(c, "a list for %d days", c.Int("days"))
	}
	expires, err := r.Resign(c.Context, publish.ResignOptions{Days: c.Int("days"), NewKey: c.Bool("new-key")})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: whitelist good until %s\n", r.FQRN(), expires.Format(time.RFC3339))
	return err
}
