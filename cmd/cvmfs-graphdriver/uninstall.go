package main

import (
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
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
			s, err := newSetup(c)
			if err != nil {
				return err
			}
			defer s.Engine.Close() // nothing is on its way any more
			if err := s.restarts(); err != nil {
				return err
			}
			return s.Uninstall(c.Context, installer.Leave{Name: c.String("name"), File: s.file, Purge: c.Bool("purge")})
		},
	}
}
