package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/source"
)

// pullCommand downloads an image into a folder.
func pullCommand() *cli.Command {
	return &cli.Command{
		Name:      "pull",
		Usage:     "download an image's layers, manifest and configuration into a folder",
		ArgsUsage: "IMAGE DIR",
		Description: "Each layer becomes a file DIGEST.tar.gz, byte for byte as in the registry. Layers with another\n" +
			"compression or none are named DIGEST.tar.zst, .tar.xz, .tar.bz2 or .tar. Complete files are not\n" +
			"downloaded again.",
		Flags:  append(imageFlags(), progressFlags()...),
		Action: pull,
	}
}

func pull(c *cli.Context) error {
	if err := needArgs(c, "IMAGE", "DIR"); err != nil {
		return err
	}
	return withImage(c, func(ctx context.Context, image *source.Image) error {
		p := newProgress(c)
		names, err := convert.Pull(ctx, image, c.Args().Get(1), c.Int("parallel"), p.event)
		p.close()
		if err != nil {
			return err
		}
		for _, name := range names {
			if _, err := fmt.Fprintln(p.results, name); err != nil {
				return err
			}
		}
		return nil
	})
}
