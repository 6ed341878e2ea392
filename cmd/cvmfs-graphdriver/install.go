package main

import (
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/policy"
)

// installCommand makes the plugin the engine's storage driver.
func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "make the plugin the storage driver of this host's Docker engine",
		Description: "Looks whether the host qualifies, shows what will be done, asks, and does it step by step. If a step fails, all is undone\n" +
			"(exit code 4). Called again it changes what differs, or nothing. See docs/install.md.",
		Flags: []cli.Flag{
			bundleFlag, keyFlag,
			&cli.StringFlag{
				Name:  "from",
				Usage: "install the plugin from a registry's `REFERENCE` in place of a bundle",
			},
			nameFlag,
			&cli.StringFlag{Name: "data-root", Usage: "`FOLDER` for the engine's data (default: where they are)"},
			&cli.StringSliceFlag{
				Name:  "storage-opt",
				Usage: "`NAME=VALUE` option of the storage driver; NAME= takes it away",
			},
			&cli.StringFlag{Name: "cvmfs-config", Usage: "`FOLDER` with the CernVM-FS configuration (default: " +
				policy.ConfigDir + ")"},
			&cli.StringFlag{Name: "minio-config", Usage: "`FOLDER` with config.json of an object store"},
			&cli.StringSliceFlag{
				Name:  "set",
				Usage: "`NAME=VALUE` setting of the plugin; NAME= puts back what the plugin came with",
			},
			&cli.BoolFlag{
				Name:  "debug",
				Usage: "engine and plugin log what a maintainer wants to know; --debug=false: not any more",
			},
			fileFlag,
			&cli.BoolFlag{
				Name:  "fix",
				Usage: "take comments and trailing commas out of the configuration file, with which the engine does not start",
			},
			hostFlag, restartFlag, testFlag, thinFlag,
			&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be done"},
			yesFlag, jsonFlag, recordFlag,
		},
		Action: func(c *cli.Context) error {
			return onHost(c, func(h *policy.Host, i *installer.Installer) error {
				wishes, err := h.Install(c.Context, i)
				if err != nil {
					return err
				}
				if err := h.Restarts(c.Context, i); err != nil {
					return err
				}
				if c.Bool("dry-run") {
					return i.Plan(c.Context, wishes)
				}
				return i.Install(c.Context, wishes)
			})
		},
	}
}
