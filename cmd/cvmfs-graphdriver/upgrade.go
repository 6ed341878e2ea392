package main

import (
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/policy"
)

// upgradeCommand replaces the plugin by that of another bundle.
func upgradeCommand() *cli.Command {
	return &cli.Command{
		Name:  "upgrade",
		Usage: "replace the plugin with that of another bundle; settings and images stay",
		Description: "Disables the plugin, replaces it, enables it and restarts the engine: containers stop and are started again. If that fails, the\n" +
			"former plugin is restored (exit code 4).",
		Flags: []cli.Flag{
			bundleFlag, keyFlag, nameFlag, fileFlag, hostFlag, restartFlag, testFlag, thinFlag, yesFlag,
			jsonFlag, recordFlag,
		},
		Action: func(c *cli.Context) error {
			return onHost(c, func(h *policy.Host, i *installer.Installer) error {
				renewal, err := h.Upgrade(i)
				if err != nil {
					return err
				}
				if err := h.Restarts(c.Context, i); err != nil {
					return err
				}
				return i.Upgrade(c.Context, renewal)
			})
		},
	}
}
