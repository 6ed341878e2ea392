package main

import (
	"cmp"
	"fmt"

	"aead.dev/minisign"
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/internal/program"
)

// bundleVerifyCommand checks a bundle before it is installed.
func bundleVerifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "verify a plugin bundle: sums, signature, content and the rights it asks for",
		ArgsUsage: "FILE|DIR",
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name:  "key",
				Usage: "require SHA256SUMS beside the bundle, signed with this public `KEY`",
			},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return program.Usagef(c, "want FILE or DIR, a bundle")
			}
			var key *minisign.PublicKey
			if name := c.String("key"); name != "" {
				var err error
				if key, err = bundle.ReadPublicKey(name); err != nil {
					return fmt.Errorf("bundle: %w", err)
				}
			}
			v, err := bundle.Verify(c.Args().First(), key)
			if err != nil {
				return err
			}
			const unsigned = "not looked at: no --key"
			signature := unsigned
			if v.Signer != "" {
				signature = "by key " + v.Signer
			}
			_, err = fmt.Fprintf(c.App.Writer,
				"%s is a plugin bundle of version %s for %s\nsums       %s\nsignature  %s\nstructure  in order\nrights     those of docs/plugin-rights.md\n",
				c.Args().First(), v.Build.Version, v.Build.Arch,
				cmp.Or(v.Sums, "not compared: no SHA256SUMS beside it lists it"), signature)
			return err
		},
	}
}
