package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/internal/program"
)

// imageFlags say how images are read. They may stand before the command too.
func imageFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name:  "registry",
			Usage: "`URL` of the registry for image names without a scheme, for example https://registry-1.docker.io/v2",
		},
		&cli.StringFlag{
			Name: "platform", Usage: "`OS/ARCH[/VARIANT]` to select from a multi-platform image",
			DefaultText: "linux/amd64",
		},
		&cli.StringSliceFlag{
			Name:  "mirror",
			Usage: "`URL` of a registry to try before Docker Hub, or REGISTRY=URL to try before another; can be repeated",
		},
		&cli.BoolFlag{Name: "plain-http", Usage: "allow plain HTTP for registries that have no TLS"},
		&cli.BoolFlag{Name: "insecure", Usage: "do not verify the TLS certificates of registries"},
	}
}

// given finds the nearest context in which a flag was set: that of the command, or the program's.
func given(c *cli.Context, name string) *cli.Context {
	for _, at := range c.Lineage() {
		if slices.Contains(at.LocalFlagNames(), name) {
			return at
		}
	}
	return c
}

// imageOptions are what imageFlags say, with the credentials of the user's docker login.
func imageOptions(c *cli.Context) source.Options {
	return source.Options{
		Platform:  given(c, "platform").String("platform"),
		Keychain:  authn.DefaultKeychain,
		Mirrors:   given(c, "mirror").StringSlice("mirror"),
		PlainHTTP: given(c, "plain-http").Bool("plain-http"),
		Insecure:  given(c, "insecure").Bool("insecure"),
		UserAgent: "docker2cvmfs/" + version,
	}
}

// reference reads an argument that names an image.
func reference(c *cli.Context, text string) (source.Reference, error) {
	ref, err := source.Parse(text, given(c, "registry").String("registry"))
	if err != nil {
		return ref, program.Usagef(c, "%v", err)
	}
	return ref, nil
}

// withImage opens the image of the first argument for fn.
func withImage(c *cli.Context, fn func(ctx context.Context, image *source.Image) error) error {
	ref, err := reference(c, c.Args().First())
	if err != nil {
		return err
	}
	image, err := source.Open(c.Context, ref, imageOptions(c))
	if err != nil {
		return err
	}
	return errors.Join(fn(c.Context, image), image.Close())
}

// needArgs refuses another number of arguments.
func needArgs(c *cli.Context, names ...string) error {
	if c.NArg() != len(names) {
		return program.Usagef(c, "want %s; %d were given", strings.Join(names, " "), c.NArg())
	}
	return nil
}

// manifestCommand prints an image's manifest.
func manifestCommand() *cli.Command {
	return &cli.Command{
		Name: "manifest", Usage: "print the manifest of an image, as stored in the registry", ArgsUsage: "IMAGE",
		Flags: imageFlags(),
		Action: func(c *cli.Context) error {
			return printOf(c, func(image *source.Image) []byte { return image.Raw })
		},
	}
}

// configCommand prints an image's configuration.
func configCommand() *cli.Command {
	return &cli.Command{
		Name: "config", Usage: "print the configuration of an image, as stored in the registry", ArgsUsage: "IMAGE",
		Flags: imageFlags(),
		Action: func(c *cli.Context) error {
			return printOf(c, func(image *source.Image) []byte { return image.RawConfig })
		},
	}
}

// printOf prints something of an image, byte for byte.
func printOf(c *cli.Context, what func(*source.Image) []byte) error {
	if err := needArgs(c, "IMAGE"); err != nil {
		return err
	}
	return withImage(c, func(_ context.Context, image *source.Image) error {
		_, err := c.App.Writer.Write(what(image))
		return err
	})
}
