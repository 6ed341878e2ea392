package main

import (
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/policy"
)

// installCommand makes the plugin the engine's storage driver.
func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "have this host's Docker engine or containerd run thin images",
		Description: "On engines up to 27 the plugin becomes the storage driver. On engines 28 and newer, on those that keep their images in\n" +
			"containerd, and on hosts with a containerd alone, the snapshotter is set up.\n\n" +
			"Checks the host, shows the plan, asks for confirmation, and installs step by step. If a step fails, everything is undone\n" +
			"(exit code 4). Run again, it changes only what differs. See docs/install.md.",
		Flags: []cli.Flag{
			bundleFlag, keyFlag,
			&cli.StringFlag{
				Name:  "from",
				Usage: "install the plugin from a registry's `REFERENCE` instead of a bundle",
			},
			nameFlag,
			&cli.StringFlag{Name: "data-root", Usage: "`FOLDER` for the engine's data-root (default: the present one)"},
			&cli.StringSliceFlag{
				Name:  "storage-opt",
				Usage: "storage option `NAME=VALUE`; NAME= removes it; can be repeated",
			},
			&cli.StringFlag{Name: "cvmfs-config", Usage: "`FOLDER` with the CernVM-FS configuration (default: " +
				policy.ConfigDir + ")"},
			&cli.StringFlag{Name: "minio-config", Usage: "`FOLDER` with push-back's config.json (docs/pushback.md), which is tried"},
			&cli.StringSliceFlag{
				Name:  "set",
				Usage: "plugin setting `NAME=VALUE`; NAME= resets it to the plugin's default; can be repeated",
			},
			&cli.BoolFlag{
				Name:  "debug",
				Usage: "turn on debug logs of engine and plugin; --debug=false turns them off",
			},
			fileFlag,
			&cli.BoolFlag{
				Name:  "fix",
				Usage: "remove comments and trailing commas from the configuration file: the engine does not start with them",
			},
			containerdFlag,
			&cli.BoolFlag{Name: "cri", Usage: "Kubernetes' images are unpacked by the snapshotter, too"},
			hostFlag, restartFlag, testFlag, thinFlag,
			&cli.BoolFlag{
				Name: "migrate",
				Usage: "on an engine that was upgraded to 28 or newer: take the plugin out, set up the snapshotter, and pull what " +
					"containers were made of",
			},
			&cli.BoolFlag{Name: "dry-run", Usage: "only show the plan"},
			yesFlag, jsonFlag, recordFlag,
		},
		Action: func(c *cli.Context) error {
			return onHost(c, func(h *policy.Host, i *installer.Installer) error {
				if c.Bool("migrate") {
					return migrate(c, h, i)
				}
				second, err := h.Second(c.Context)
				if err != nil {
					return err
				}
				if second {
					return installSnapshotter(c, h, i)
				}
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

// installSnapshotter has containerd, and an engine of Docker's on it, use the snapshotter.
func installSnapshotter(c *cli.Context, h *policy.Host, i *installer.Installer) error {
	return onSnapshotter(c, h, i, func(client *containerd.Client) error {
		wishes, err := h.InstallSnapshotter(c.Context, i, client)
		if err != nil {
			return err
		}
		if c.Bool("dry-run") {
			return i.PlanSnapshotter(c.Context, wishes)
		}
		return i.InstallSnapshotter(c.Context, wishes)
	})
}

// migrate has an engine that takes no plugin any more go over to the snapshotter. Each part can be run again: what is
// done already changes nothing.
func migrate(c *cli.Context, h *policy.Host, i *installer.Installer) error {
	left, err := h.Left()
	if err != nil {
		return err
	}
	if err := h.Migrates(c.Context); err != nil {
		return err
	}
	i.TellLeft(left)
	if c.Bool("dry-run") {
		return nil
	}
	if err := h.Restarts(c.Context, i); err != nil {
		return err
	}
	if err := i.Uninstall(c.Context, h.Uninstall(false)); err != nil {
		return err
	}
	// The engine runs again, and is looked at anew.
	return onHost(c, func(h *policy.Host, i *installer.Installer) error {
		if err := h.Migrates(c.Context); err != nil {
			return err
		}
		if err := installSnapshotter(c, h, i); err != nil {
			return err
		}
		return i.Repull(c.Context, left)
	})
}
