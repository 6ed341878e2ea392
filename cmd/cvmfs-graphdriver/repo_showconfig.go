package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/internal/program"
)

// repoShowconfigCommand shows what the configuration says of a repository.
func repoShowconfigCommand() *cli.Command {
	return &cli.Command{
		Name:      "showconfig",
		Usage:     "show a repository's parameters, and where each was set",
		ArgsUsage: "FQRN",
		Description: `Prints a line NAME=VALUE # FILE:LINE for each parameter, then lines of the files that have
no effect, parameters that are not supported, and names that are no parameters. User names and passwords in URLs
are left out. The exit code is 1 if the repository cannot be used.

With --json, prints one object: fqrn, parameters (name, value, place, status, doubt), findings (kind, place,
parameter, text), error.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config-dir", Usage: "`FOLDER` with the CernVM-FS configuration", Value: config.HostDir},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: repoShowconfig,
	}
}

func repoShowconfig(c *cli.Context) (err error) {
	if c.NArg() != 1 {
		return program.Usagef(c, "want one argument, FQRN")
	}
	dir, err := os.MkdirTemp("", "cvmfs-graphdriver-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r, err := configFolder(c, dir).Report(c.Args().First())
	if err != nil {
		return err
	}
	if c.Bool("json") {
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else {
		_, err = fmt.Fprint(c.App.Writer, r)
	}
	if err == nil && r.Err != "" {
		err = errors.New(r.Err)
	}
	return err
}
