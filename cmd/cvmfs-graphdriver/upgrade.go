package main

import (
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/policy"
)

// upgradeCommand replaces the plugin by that of another bundle.
func upgradeCommand() *cli.Command {
	return &cli.Command{
		Name:  "upgrade",
		Usage: "run the newer plugin or snapshotter that has come with this program; settings and images stay",
		Description: "The snapshotter is restarted and looked at, and containers go on. The plugin is disabled, replaced and enabled, and the\n" +
			"engine restarted: containers stop and are started again. If that fails, the former plugin is restored (exit code 4). On a\n" +
			"host that has both the snapshotter is meant, with --plugin the plugin.",
		Flags: []cli.Flag{
			bundleFlag, keyFlag, nameFlag, pluginFlag, containerdFlag, fileFlag, hostFlag, restartFlag, testFlag,
			thinFlag, yesFlag, jsonFlag, recordFlag,
		},
		Action: func(c *cli.Context) error {
			return onHost(c, func(h *policy.Host, i *installer.Installer) error {
				second, err := h.HasSnapshotter()
				if err != nil {
					return err
				}
				if second {
					return onSnapshotter(c, h, i, func(client *containerd.Client) error {
						wishes, err := h.InstallSnapshotter(c.Context, i, client)
						if err != nil {
							return err
						}
						wishes.Renew = true
						return i.InstallSnapshotter(c.Context, wishes)
					})
				}
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
