package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/internal/program"
	"cvmfs-graphdriver/rootfs"
)

// passwordVariable holds the password of a signing key.
const passwordVariable = "MINISIGN_PASSWORD"

// bundleBuildCommand makes bundles of the plugin's programs, which by default are found beside this one.
func bundleBuildCommand() *cli.Command {
	return &cli.Command{
		Name:  "build",
		Usage: "build plugin bundles: folders for `docker plugin create`, archives, parts lists (SPDX) and SHA256SUMS",
		Description: "Without --plugin, the program for an architecture is searched beside this program: cvmfs-graphdriver-plugin-ARCH,\n" +
			"ARCH/cvmfs-graphdriver-plugin, cvmfs-graphdriver-plugin; then, where packages install it:\n" +
			"../lib/cvmfs-graphdriver/ARCH/cvmfs-graphdriver-plugin, and the bundle of this version in ../share/cvmfs-graphdriver.\n" +
			"All files get the time of $SOURCE_DATE_EPOCH. --sign takes a key made by minisign, and its password from the terminal or\n" +
			"from $" + passwordVariable + ".",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{
				Name:  "arch",
				Usage: "`ARCHITECTURES`: amd64, arm64 or both (default: those of --plugin, else this machine's)",
			},
			&cli.StringFlag{Name: "output", Usage: "output `FOLDER`", Value: "."},
			&cli.StringSliceFlag{
				Name: "format", Usage: "`FORMATS`: dir, tar.gz, tar.zst",
				Value: cli.NewStringSlice("dir", "tar.gz"),
			},
			&cli.StringSliceFlag{
				Name:  "plugin",
				Usage: "the plugin's `PROGRAM`, or a bundle's archive that contains it, one for each architecture (default: see above)",
			},
			&cli.StringFlag{Name: "sign", Usage: "sign SHA256SUMS with the secret `KEY`"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return program.Usagef(c, "unknown argument %q", c.Args().First())
			}
			o, err := buildOptions(c)
			if err != nil {
				return err
			}
			made, err := bundle.Build(c.Context, o)
			for _, name := range made {
				if _, err := fmt.Fprintln(c.App.Writer, name); err != nil {
					return err
				}
			}
			return err
		},
	}
}

// buildOptions are what the flags say.
func buildOptions(c *cli.Context) (bundle.Options, error) {
	o := bundle.Options{Output: c.String("output"), Build: rootfs.Build{Version: version, Commit: commit}}
	for _, name := range c.StringSlice("format") {
		if !slices.Contains(bundle.Formats(), bundle.Format(name)) {
			return o, program.Usagef(c, "--format %q: want dir, tar.gz or tar.zst", name)
		}
		o.Formats = append(o.Formats, bundle.Format(name))
	}
	for _, arch := range c.StringSlice("arch") {
		if !slices.Contains(bundle.Architectures(), arch) {
			return o, program.Usagef(c, "--arch %q: want %s", arch, strings.Join(bundle.Architectures(), " or "))
		}
	}
	self, err := os.Executable()
	if err != nil {
		return o, fmt.Errorf("find the plugin's program: %w", err)
	}
	o.Programs, err = bundle.Programs(c.StringSlice("plugin"), c.StringSlice("arch"), filepath.Dir(self), version)
	if err != nil {
		return o, fmt.Errorf("bundle: %w", err)
	}
	if o.Build.Time, err = bundle.SourceDate(); err != nil {
		return o, fmt.Errorf("bundle: %w", err)
	}
	if name := c.String("sign"); name != "" {
		ask := func() (string, error) { return askPassword(c, name) }
		if o.Key, err = bundle.ReadPrivateKey(name, ask); err != nil {
			return o, fmt.Errorf("bundle: %w", err)
		}
	}
	return o, nil
}

// askPassword returns a signing key's password: that of the environment, or what is typed at the terminal.
func askPassword(c *cli.Context, key string) (string, error) {
	if password, set := os.LookupEnv(passwordVariable); set {
		return password, nil
	}
	stdin := int(os.Stdin.Fd())
	if !term.IsTerminal(stdin) {
		return "", fmt.Errorf("it has a password: set $%s, or run this on a terminal", passwordVariable)
	}
	state, err := term.GetState(stdin)
	if err != nil {
		return "", err
	}
	type answer struct {
		password []byte
		err      error
	}
	typed := make(chan answer, 1)
	fmt.Fprintf(c.App.ErrWriter, "Password of %s: ", key)
	defer fmt.Fprintln(c.App.ErrWriter)
	go func() {
		password, err := term.ReadPassword(stdin)
		typed <- answer{password, err}
	}()
	select {
	case a := <-typed:
		return string(a.password), a.err
	case <-c.Context.Done():
		// the terminal shows again what is typed
		return "", errors.Join(context.Cause(c.Context), term.Restore(stdin, state))
	}
}
