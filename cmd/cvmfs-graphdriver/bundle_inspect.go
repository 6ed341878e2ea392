package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/cvmfs/listing"
	"cvmfs-graphdriver/internal/program"
)

// bundleInspectCommand reports what a bundle is and asks for.
func bundleInspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show a plugin bundle's version, the rights it asks for and its settings",
		ArgsUsage: "FILE|DIR|REF",
		Flags:     append(registryFlags(), &cli.BoolFlag{Name: "json", Usage: "print JSON"}),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return program.Usagef(c, "want FILE, DIR or REF, a bundle")
			}
			remote, finish := remoteOf(c)
			b, err := bundle.OpenOrPull(c.Context, c.Args().First(), remote)
			finish()
			if err != nil {
				return err
			}
			return printBundle(c.App.Writer, b, c.Bool("json"))
		},
	}
}

// printBundle tells about a bundle, as lines or as JSON.
func printBundle(w io.Writer, b *bundle.Bundle, asJSON bool) error {
	r := b.Summary()
	if asJSON {
		out := json.NewEncoder(w)
		out.SetIndent("", "  ")
		return out.Encode(r)
	}
	var text strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&text, "%-13s %s\n", name, listing.Quote(fmt.Sprintf(format, args...)))
	}
	line("version", "%s", r.Version)
	line("commit", "%s", r.Commit)
	line("architecture", "%s", r.Arch)
	line("time", "%s", r.Time.Format(time.RFC3339))
	if r.SHA256 != "" {
		line("packed", "%s (%d bytes)", humanize.Bytes(uint64(r.Packed)), r.Packed)
		line("sha256", "%s", r.SHA256)
	}
	line("unpacked", "%s (%d bytes)", humanize.Bytes(uint64(r.Unpacked)), r.Unpacked)
	line("interface", "%s", strings.Join(r.Interface, " "))
	for _, name := range r.Capabilities {
		line("capability", "%s", name)
	}
	line("network", "%s", r.Network)
	for _, d := range r.Devices {
		line("device", "%s: %s", d.Path, d.Description)
	}
	for _, m := range r.Mounts {
		line("mount", "%s on %s (%s): %s", m.Source, m.Destination, strings.Join(m.Options, ","), m.Description)
	}
	line("propagated", "%s", r.Propagated)
	for _, s := range r.Settings {
		line("setting", "%s=%s: %s", s.Name, s.Default, s.Description)
	}
	_, err := io.WriteString(w, text.String())
	return err
}
