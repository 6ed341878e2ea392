package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/internal/program"
)

// config is what the snapshotter is told, by its file and by flags.
type config struct {
	Root          string   `json:"root"`
	Address       string   `json:"address"`
	Control       string   `json:"control"`
	Containerd    string   `json:"containerd"`
	Configuration string   `json:"cvmfs-config"`
	PushBack      string   `json:"push-back"`
	Options       []string `json:"storage-opts"`
	Debug         bool     `json:"debug"`

	settings node.Settings // what the options mean
}

// defaultConfig is the file that is read if it is there; one that is named must be.
const defaultConfig = "/etc/cvmfs-snapshotter/config.json"

func flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Value: defaultConfig, Usage: "read settings from `FILE`"},
		&cli.StringFlag{
			Name: "root", Value: "/var/lib/cvmfs-snapshotter",
			Usage: "keep layers, images and objects in `FOLDER`, on ext4 or xfs",
		},
		&cli.StringFlag{
			Name: "address", Value: "/run/cvmfs-snapshotter/cvmfs-snapshotter.sock", Usage: "answer at the socket `FILE`",
		},
		&cli.StringFlag{
			Name:  "control",
			Usage: "answer \"cvmfs-graphdriver status\", \"cache\" and \"reload\" at the socket `FILE` (default: control.sock beside --address)",
		},
		&cli.StringFlag{
			Name: "containerd", Value: "/run/containerd/containerd.sock",
			Usage: "put the layers of committed containers into the content store of containerd at the socket `FILE`",
		},
		&cli.StringFlag{Name: "cvmfs-config", Value: "/etc/cvmfs", Usage: "read the CernVM-FS configuration in `FOLDER`"},
		&cli.StringFlag{
			Name: "push-back", Value: "/etc/cvmfs-snapshotter/push-back/config.json",
			Usage: "have layers of commits published as the settings in `FILE` say, if it is there",
		},
		&cli.StringSliceFlag{
			Name: "storage-opt", Usage: "set a storage `OPTION`, name=value, as " + options.View + "=fuse; can be repeated",
		},
		&cli.BoolFlag{Name: "debug", Usage: "log what a maintainer wants to know"},
	}
}

// readConfig returns what file and flags say.
func readConfig(c *cli.Context) (*config, error) {
	cfg := &config{
		Root: c.String("root"), Address: c.String("address"), Control: c.String("control"),
		Containerd: c.String("containerd"), Configuration: c.String("cvmfs-config"), PushBack: c.String("push-back"),
	}
	file := c.String("config")
	if err := cfg.readFile(file); err != nil && (c.IsSet("config") || !errors.Is(err, fs.ErrNotExist)) {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	paths := []struct {
		name  string
		value *string
	}{ // address before control, whose default is made from it
		{"root", &cfg.Root},
		{"address", &cfg.Address},
		{"control", &cfg.Control},
		{"containerd", &cfg.Containerd},
		{"cvmfs-config", &cfg.Configuration},
		{"push-back", &cfg.PushBack},
	}
	for _, p := range paths {
		if c.IsSet(p.name) {
			*p.value = c.String(p.name)
		}
	}
	if cfg.Control == "" {
		cfg.Control = filepath.Join(filepath.Dir(cfg.Address), filepath.Base(control.SnapshotterSocket))
	}
	for _, p := range paths {
		if !filepath.IsAbs(*p.value) {
			return nil, program.Usagef(c, "%s: want an absolute path, not %q", p.name, *p.value)
		}
		*p.value = filepath.Clean(*p.value)
	}
	if strings.ContainsAny(cfg.Root, `\:,`) {
		return nil, program.Usagef(c, `root: want a path without any of \ : , in it, as it is part of mount options, not %q`, cfg.Root)
	}
	cfg.Options = append(cfg.Options, c.StringSlice("storage-opt")...)
	cfg.Debug = cfg.Debug || c.Bool("debug")
	o, err := options.ParseHost(cfg.Options)
	if err != nil {
		return nil, program.Usagef(c, "%v", err)
	}
	if o.Metrics.Network == "unix" && (o.Metrics.Address == cfg.Address || o.Metrics.Address == cfg.Control) {
		return nil, program.Usagef(c, "storage option %s: the socket %s is for something else", options.MetricsAt,
			o.Metrics.Address)
	}
	cfg.settings = node.SettingsOf(o)
	return cfg, nil
}

// readFile takes over what a file says.
func (cfg *config) readFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(cfg); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if d.More() {
		return fmt.Errorf("%s: there is something behind the settings", name)
	}
	return nil
}
