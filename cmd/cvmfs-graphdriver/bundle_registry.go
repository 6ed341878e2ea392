package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/urfave/cli/v2"
	"github.com/vbauerster/mpb/v8"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/internal/program"
	"cvmfs-graphdriver/internal/registry"
)

// bundlePushCommand puts bundles into a registry.
func bundlePushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Usage:     "push plugin bundles to a registry, for `docker plugin install`",
		ArgsUsage: "FILE|DIR… REF",
		Description: "REF is [http://]HOST[:PORT]/NAME[:TAG]. One bundle becomes the plugin REF. Bundles for several architectures become REF-ARCH,\n" +
			"which engines can install, and REF is the list of them, from which `bundle pull` selects. Credentials are those of\n" +
			"`docker login`.",
		Flags: registryFlags(),
		Action: func(c *cli.Context) error {
			if c.NArg() < 2 {
				return program.Usagef(c, "want FILE or DIR, a bundle, and REF, where it goes")
			}
			files, ref := c.Args().Slice()[:c.NArg()-1], c.Args().Get(c.NArg()-1)
			var bundles []*bundle.Bundle
			for _, name := range files {
				b, err := bundle.Open(name)
				if err != nil {
					return err
				}
				bundles = append(bundles, b)
			}
			remote, finish := remoteOf(c)
			pushed, err := bundle.Push(c.Context, ref, bundles, remote)
			finish()
			for _, p := range pushed {
				what := p.Arch
				if what == "" {
					what = "list"
				}
				if _, err := fmt.Fprintf(c.App.Writer, "%s %s@%s\n", what, p.Ref, p.Digest); err != nil {
					return err
				}
			}
			return err
		},
	}
}

// bundlePullCommand gets a bundle's archive out of a registry.
func bundlePullCommand() *cli.Command {
	return &cli.Command{
		Name:        "pull",
		Usage:       "pull a plugin bundle from a registry, as an archive with the same bytes that were built",
		ArgsUsage:   "REF",
		Description: "SHA256SUMS and its signature are not in registries: copy them to the archive's folder before `bundle verify`.",
		Flags: append(registryFlags(),
			&cli.StringFlag{Name: "arch", Usage: "`ARCHITECTURE` to select from a list: amd64 or arm64 (default: this machine's)"},
			&cli.StringFlag{Name: "output", Usage: "output `FOLDER`", Value: "."},
			&cli.StringFlag{
				Name: "format", Usage: "`FORMAT` of the archive: tar.gz or tar.zst",
				Value: string(bundle.TarGz),
			},
		),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return program.Usagef(c, "want REF, a plugin in a registry")
			}
			arch, format := c.String("arch"), bundle.Format(c.String("format"))
			if arch != "" && !slices.Contains(bundle.Architectures(), arch) {
				return program.Usagef(c, "--arch %q: want %s", arch, strings.Join(bundle.Architectures(), " or "))
			}
			if format != bundle.TarGz && format != bundle.TarZst {
				return program.Usagef(c, "--format %q: want tar.gz or tar.zst", format)
			}
			remote, finish := remoteOf(c)
			b, digest, err := bundle.Pull(c.Context, c.Args().First(), arch, remote)
			finish()
			if err != nil {
				return err
			}
			file, err := b.Save(c.Context, c.String("output"), format)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s\n%s version %s for %s\n", file, digest, b.Build.Version,
				b.Build.Arch)
			return err
		},
	}
}

// registryFlags say how registries are reached.
func registryFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "plain-http", Usage: "allow plain HTTP for registries on other machines"},
		&cli.BoolFlag{Name: "insecure", Usage: "do not verify the registry's TLS certificate"},
	}
}

// remoteOf returns how registries are reached by a command, and what ends the display of its progress.
func remoteOf(c *cli.Context) (r bundle.Remote, finish func()) {
	r.Options = registry.Options{
		Keychain: authn.DefaultKeychain, PlainHTTP: c.Bool("plain-http"), Insecure: c.Bool("insecure"),
		UserAgent: c.App.Name + "/" + version,
	}
	if !program.IsTerminal(c.App.ErrWriter) {
		r.Progress = lines(c.App.ErrWriter)
		return r, func() {}
	}
	r.Progress, finish = bars(c.App.ErrWriter)
	return r, finish
}

// lines shows progress where there is no terminal: when a layer begins.
func lines(out io.Writer) func(arch string, done, total int64) {
	begun := map[string]bool{}
	return func(arch string, _, total int64) {
		if !begun[arch] {
			begun[arch] = true
			fmt.Fprintln(out, strings.TrimSpace(arch+" layer"), humanize.IBytes(uint64(total)))
		}
	}
}

// bars shows progress on a terminal, one bar a layer.
func bars(out io.Writer) (show func(arch string, done, total int64), finish func()) {
	all := program.NewBars(out)
	begun := map[string]*mpb.Bar{}
	show = func(arch string, done, total int64) {
		if begun[arch] == nil {
			begun[arch] = all.Transfer(strings.TrimSpace(arch+" layer"), total)
		}
		begun[arch].EwmaSetCurrent(done, time.Millisecond)
	}
	return show, func() { all.End(false) }
}
