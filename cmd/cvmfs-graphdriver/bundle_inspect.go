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
	"cvmfs-graphdriver/internal/program"
	"cvmfs-graphdriver/rootfs"
)

// bundleInspectCommand reports what a bundle is and asks for.
func bundleInspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "tell which build a plugin bundle is, what it asks for and what can be set",
		ArgsUsage: "FILE|DIR|REF",
		Flags:     append(registryFlags(), &cli.BoolFlag{Name: "json", Usage: "as JSON"}),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return program.Usagef(c, "want FILE, DIR or REF, a bundle")
			}
			b, err := openBundle(c, c.Args().First())
			if err != nil {
				return err
			}
			return printBundle(c.App.Writer, b, c.Bool("json"))
		},
	}
}

// bundleReport is what is told of a bundle.
type bundleReport struct {
	rootfs.Build
	Packed       int64           `json:"packed,omitempty"` // bytes of the archive
	SHA256       string          `json:"sha256,omitempty"` // of the archive
	Unpacked     int64           `json:"unpacked"`         // bytes of all files
	Interface    []string        `json:"interface"`
	Capabilities []string        `json:"capabilities"`
	Network      string          `json:"network"`
	Devices      []rootfs.Device `json:"devices"`
	Mounts       []rootfs.Mount  `json:"mounts"`
	Propagated   string          `json:"propagatedMount"`
	Settings     []setting       `json:"settings"`
}

// setting is what `docker plugin set` changes.
type setting struct {
	Name        string `json:"name"`
	Default     string `json:"default"`
	Description string `json:"description"`
}

func report(b *bundle.Bundle) bundleReport {
	r := bundleReport{
		Build: b.Build, Unpacked: b.Unpacked(), Interface: b.Config.Interface.Types,
		Capabilities: b.Config.Linux.Capabilities,
		Network:      b.Config.Network.Type, Devices: b.Config.Linux.Devices, Mounts: b.Config.Mounts,
		Propagated: b.Config.PropagatedMount,
	}
	if b.Archive != nil {
		r.Packed, r.SHA256 = b.Archive.Size, b.Archive.SHA256
	}
	add := func(name, value, description string, settable []string) {
		if len(settable) > 0 {
			r.Settings = append(r.Settings, setting{name, value, description})
		}
	}
	for _, m := range r.Mounts {
		add(m.Name, m.Source, m.Description, m.Settable)
	}
	for _, d := range r.Devices {
		add(d.Name, d.Path, d.Description, d.Settable)
	}
	for _, e := range b.Config.Env {
		add(e.Name, e.Value, e.Description, e.Settable)
	}
	return r
}

// printBundle tells about a bundle, as lines or as JSON.
func printBundle(w io.Writer, b *bundle.Bundle, asJSON bool) error {
	r := report(b)
	if asJSON {
		out := json.NewEncoder(w)
		out.SetIndent("", "  ")
		return out.Encode(r)
	}
	var text strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&text, "%-13s %s\n", name, quote(fmt.Sprintf(format, args...)))
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
