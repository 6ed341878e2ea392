package main

import (
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
)

// upgradeCommand replaces the plugin by that of another bundle.
func upgradeCommand() *cli.Command {
	return &cli.Command{
		Name:  "upgrade",
		Usage: "replace the plugin by that of another bundle, settings and images kept",
		Description: "Disables the plugin, replaces it, enables it and restarts the engine: containers stop. If that fails, the plugin of before is\n" +
			"put back (exit code 4).",
		Flags: []cli.Flag{
			bundleFlag, keyFlag, nameFlag, fileFlag, hostFlag, restartFlag, testFlag, thinFlag, yesFlag,
			jsonFlag, recordFlag,
		},
		Action: func(c *cli.Context) error {
			s, err := newSetup(c)
			if err != nil {
				return err
			}
			defer s.Engine.Close() // nothing is on its way any more
			images, err := s.images()
			if err != nil {
				return err
			}
			b, err := bundleToInstall(c)
			if err != nil {
				return err
			}
			if err := s.restarts(); err != nil {
				return err
			}
			return s.Upgrade(c.Context, installer.Renewal{
				Name: c.String("name"), Bundle: b, File: s.file,
				Images: images,
			})
		},
	}
}
