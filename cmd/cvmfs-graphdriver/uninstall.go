package main

import (
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/policy"
)

// uninstallCommand has the engine run on its former storage driver again.
func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "go back to the engine's former storage driver",
		Description: "Puts the engine's configuration file back, restarts the engine and disables the plugin. The plugin's images are kept, and\n" +
			"shown again by another install, unless they are purged.",
		Flags: []cli.Flag{
			nameFlag,
			&cli.BoolFlag{Name: "purge", Usage: "remove the plugin with all its images, containers and layers"},
			fileFlag, hostFlag, restartFlag, yesFlag, jsonFlag, recordFlag,
		},
		Action: func(c *cli.Context) error {
			return onHost(c, func(h *policy.Host, i *installer.Installer) error {
				if err := h.Restarts(c.Context, i); err != nil {
					return err
				}
				return i.Uninstall(c.Context, h.Uninstall(c.Bool("purge")))
			})
		},
	}
}
