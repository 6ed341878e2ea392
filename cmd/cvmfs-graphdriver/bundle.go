package main

import (
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/internal/program"
)

// bundleCommand is about plugin bundles.
func bundleCommand() *cli.Command {
	return &cli.Command{
		Name:  "bundle",
		Usage: "build, inspect, verify, push and pull plugin bundles",
		Subcommands: []*cli.Command{
			bundleBuildCommand(), bundleInspectCommand(), bundleVerifyCommand(),
			bundlePushCommand(), bundlePullCommand(),
		},
		Action: program.OnlyCommands,
	}
}
