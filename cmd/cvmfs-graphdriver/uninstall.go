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
		Usage: "restore the engine's former storage driver",
		Description: "Restores the engine's configuration file, restarts the engine and disables the plugin. The plugin's images are kept, unless\n" +
			"--purge is given: another install shows them again.",
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
