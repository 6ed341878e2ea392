package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer/doctor"
)

// statusCommand reports what runs, without a judgement.
func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show what is running: engine, plugin, snapshotter, driver, view, images, repositories, object store",
		Flags: hostFlags(),
		Action: func(c *cli.Context) error {
			facts, _, err := look(c)
			if err != nil {
				return err
			}
			status := doctor.StatusOf(facts, version)
			write := status.Write
			if c.Bool("json") {
				write = status.WriteJSON
			}
			if err := write(c.App.Writer); err != nil {
				return err
			}
			if status.Engine.Err != "" && status.Snapshotter == nil { // containerd needs no engine
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
