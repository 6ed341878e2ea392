package main

import (
	"context"
	"strings"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/cvmfs/fqrn"
	"cvmfs-graphdriver/internal/program"
)

// thinCommand prints an image's descriptor.
func thinCommand() *cli.Command {
	return &cli.Command{
		Name:      "thin",
		Usage:     "print the descriptor (thin.json) of an image whose layers are in a folder of a repository",
		ArgsUsage: "IMAGE FQRN/PATH",
		Flags:     imageFlags(),
		Action:    printThin,
	}
}

func printThin(c *cli.Context) error {
	if err := needArgs(c, "IMAGE", "FQRN/PATH"); err != nil {
		return err
	}
	repository, path, _ := strings.Cut(c.Args().Get(1), "/")
	layout, err := convert.ParseLayout("", path)
	if err == nil {
		err = fqrn.Check(repository)
	}
	if err != nil {
		return program.Usagef(c, "%v", err)
	}
	return withImage(c, func(ctx context.Context, image *source.Image) error {
		d, err := convert.Describe(ctx, image, repository, layout)
		if err != nil {
			return err
		}
		b, err := d.Encode()
		if err != nil {
			return err
		}
		_, err = c.App.Writer.Write(b)
		return err
	})
}
