package main

import (
	"fmt"
	"os"
	"path/filepath"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/internal/program"

	"github.com/urfave/cli/v2"
)

// bundleCommand makes the plugin bundle from the plugin's program, which by default stands beside this one.
func bundleCommand() *cli.Command {
	return &cli.Command{
		Name:  "bundle",
		Usage: "make the plugin bundle: a folder for `docker plugin create` and an archive of it",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "plugin", Usage: "the plugin's `PROGRAM` (default: cvmfs-graphdriver-plugin beside this program)"},
			&cli.StringFlag{Name: "output", Usage: "`FOLDER` that receives the bundle", Value: "."},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return program.Usagef(c, "unknown argument %q", c.Args().First())
			}
			program := c.String("plugin")
			if program == "" {
				self, err := os.Executable()
				if err != nil {
					return fmt.Errorf("bundle: find the plugin's program: %w", err)
				}
				program = filepath.Join(filepath.Dir(self), "cvmfs-graphdriver-plugin")
			}
			when, err := bundle.SourceDate()
			if err != nil {
				return fmt.Errorf("bundle: %w", err)
			}
			made, err := bundle.Write(bundle.Options{Program: program, Version: version, Output: c.String("output"), Time: when})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.App.Writer, "folder  %s\narchive %s\n", made.Folder, made.Archive)
			return err
		},
	}
}
