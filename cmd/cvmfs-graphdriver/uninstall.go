package main

import (
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/policy"
)

// uninstallCommand has the engine run on its former storage driver again.
func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "take back what install has set up",
		Description: "Restores the engine's configuration file, and restarts the engine. The plugin is disabled; its images are kept for another\n" +
			"install, unless --purge is given. Of the snapshotter, all that is unpacked with it is removed from containerd, whose files are\n" +
			"restored; --purge also removes what it has fetched. A host that has both gives up the snapshotter, or with --plugin\n" +
			"the plugin.",
		Flags: []cli.Flag{
			nameFlag, pluginFlag,
			&cli.BoolFlag{Name: "purge", Usage: "remove the plugin with all its images, containers and layers, or what the snapshotter has fetched"},
			&cli.BoolFlag{Name: "force", Usage: "also if containers have their files from the snapshotter, which they lose"},
			containerdFlag, fileFlag, hostFlag, restartFlag, yesFlag, jsonFlag, recordFlag,
		},
		Action: func(c *cli.Context) error {
			return onHost(c, func(h *policy.Host, i *installer.Installer) error {
				second, err := h.HasSnapshotter()
				if err != nil {
					return err
				}
				if second {
					return onSnapshotter(c, h, i, func(*containerd.Client) error {
						leave, err := h.SnapshotterLeave(c.Bool("force"), c.Bool("purge"))
						if err != nil {
							return err
						}
						return i.UninstallSnapshotter(c.Context, leave)
					})
				}
				if err := h.Restarts(c.Context, i); err != nil {
					return err
				}
				return i.Uninstall(c.Context, h.Uninstall(c.Bool("purge")))
			})
		},
	}
}
