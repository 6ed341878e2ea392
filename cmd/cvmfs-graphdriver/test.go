package main

import (
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/policy"
	"cvmfs-graphdriver/internal/program"
)

// testCommand looks whether the engine, or a containerd alone, runs images.
func testCommand() *cli.Command {
	return &cli.Command{
		Name:  "test",
		Usage: "test whether the engine runs images with the plugin, or containerd alone with the snapshotter",
		Flags: []cli.Flag{
			nameFlag, pluginFlag, containerdFlag, hostFlag, testFlag, thinFlag, jsonFlag, recordFlag,
		},
		Action: func(c *cli.Context) error {
			return onHost(c, func(h *policy.Host, i *installer.Installer) error {
				images, err := h.Test(i)
				if err != nil {
					return err
				}
				alone, err := h.RunsAlone(c.Context)
				if err != nil {
					return err
				}
				if alone {
					return onSnapshotter(c, h, i, func(*containerd.Client) error {
						return i.TestSnapshotter(c.Context, images)
					})
				}
				return i.Test(c.Context, h.Name, images)
			})
		},
	}
}

// helloCommand is what runs in the container of an image made here.
func helloCommand() *cli.Command {
	return &cli.Command{
		Name: installer.HelloCommand, Hidden: true,
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return program.Usagef(c, "want a word")
			}
			return installer.Hello(c.App.Writer, c.Args().First())
		},
	}
}
