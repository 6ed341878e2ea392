package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer/doctor"
	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/internal/program"
)

// statusCommand reports what runs, without a judgement.
func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "tell what runs: engine, plugin, driver, view, repositories, store",
		Flags: hostFlags(),
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return program.Usagef(c, "unknown argument %q", c.Args().First())
			}
			plan, err := hostPlan(c)
			if err != nil {
				return err
			}
			status := doctor.StatusOf(preflight.Gather(c.Context, plan), version)
			if err := c.Context.Err(); err != nil {
				return err
			}
			write := status.Write
			if c.Bool("json") {
				write = status.WriteJSON
			}
			if err := write(c.App.Writer); err != nil {
				return err
			}
			if status.Engine.Err != "" {
				if status.Engine.Denied {
					return fmt.Errorf("the engine's socket %s is not for this user: run this program as root",
						status.Engine.Host)
				}
				return fmt.Errorf("no engine answers at %s (\"cvmfs-graphdriver doctor\" says more)",
					status.Engine.Host)
			}
			return nil
		},
	}
}
