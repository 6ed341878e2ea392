package main

import (
	"fmt"
	"runtime"

	"github.com/urfave/cli/v2"
)

// Set by the linker: -X main.version=… -X main.commit=….
var (
	version = "dev"
	commit  = ""
)

// versionCommand tells which build this is.
func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "tell which build this is",
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usagef(c, "unknown argument %q", c.Args().First())
			}
			build := version
			if commit != "" {
				build += " (" + commit + ")"
			}
			_, err := fmt.Fprintf(c.App.Writer, "cvmfs-graphdriver %s %s %s/%s\n", build, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
