package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/internal/program"
)

// configuration is where the plugin reads the CernVM-FS configuration if nothing else is set.
const configuration = "/etc/cvmfs"

// installCommand makes the plugin the engine's storage driver.
func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "make the plugin the storage driver of this host's Docker engine",
		Description: "Looks whether the host qualifies, shows what will be done, asks, and does it step by step. If a step fails, all is undone\n" +
			"(exit code 4). Called again it changes what differs, or nothing. See docs/install.md.",
		Flags: []cli.Flag{
			bundleFlag, keyFlag,
			&cli.StringFlag{
				Name:  "from",
				Usage: "install the plugin from a registry's `REFERENCE` in place of a bundle",
			},
			nameFlag,
			&cli.StringFlag{Name: "data-root", Usage: "`FOLDER` for the engine's data (default: where they are)"},
			&cli.StringSliceFlag{
				Name:  "storage-opt",
				Usage: "`NAME=VALUE` option of the storage driver; NAME= takes it away",
			},
			&cli.StringFlag{Name: "cvmfs-config", Usage: "`FOLDER` with the CernVM-FS configuration (default: " +
				configuration + ")"},
			&cli.StringFlag{Name: "minio-config", Usage: "`FOLDER` with config.json of an object store"},
			&cli.StringSliceFlag{
				Name:  "set",
				Usage: "`NAME=VALUE` setting of the plugin; NAME= puts back what the plugin came with",
			},
			&cli.BoolFlag{
				Name:  "debug",
				Usage: "engine and plugin log what a maintainer wants to know; --debug=false: not any more",
			},
			fileFlag,
			&cli.BoolFlag{
				Name:  "fix",
				Usage: "take comments and trailing commas out of the configuration file, with which the engine does not start",
			},
			hostFlag, restartFlag, testFlag, thinFlag,
			&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be done"},
			yesFlag, jsonFlag, recordFlag,
		},
		Action: func(c *cli.Context) error {
			s, err := newSetup(c)
			if err != nil {
				return err
			}
			defer s.Engine.Close() // nothing is on its way any more
			w, err := s.wishes()
			if err != nil {
				return err
			}
			if err := s.restarts(); err != nil {
				return err
			}
			if c.Bool("dry-run") {
				return s.Plan(c.Context, *w)
			}
			return s.Install(c.Context, *w)
		},
	}
}

// wishes are what the flags say.
func (s *setup) wishes() (w *installer.Wishes, err error) {
	c := s.c
	w = &installer.Wishes{
		From: c.String("from"), DataRoot: c.String("data-root"), StorageOpts: c.StringSlice("storage-opt"),
		Settings: c.StringSlice("set"), File: s.file, Fix: c.Bool("fix"),
	}
	if c.IsSet("debug") {
		w.Debug = new(c.Bool("debug"))
	}
	if w.Name, err = pluginName(c, s.Engine, s.file); err != nil {
		return nil, err
	}
	if w.DataRoot != "" && !filepath.IsAbs(w.DataRoot) {
		return nil, program.Usagef(c, "--data-root %s: want an absolute path", w.DataRoot)
	}
	for _, o := range append(c.StringSlice("storage-opt"), w.Settings...) {
		if name, _, ok := strings.Cut(o, "="); !ok || name == "" {
			return nil, program.Usagef(c, "%q: want NAME=VALUE", o)
		}
	}
	if w.From != "" && (c.String(bundleFlag.Name) != "" || c.String(keyFlag.Name) != "") {
		return nil, program.Usagef(c, "--from takes the plugin from a registry: no --%s and no --%s with it",
			bundleFlag.Name, keyFlag.Name)
	}
	for setting, flag := range map[string]string{
		"cvmfs_ext_config": "cvmfs-config",
		"minio_ext_config": "minio-config",
	} {
		dir := c.String(flag)
		if dir == "" {
			continue
		}
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, err
		}
		w.Settings = append(w.Settings, setting+"="+dir)
	}
	switch {
	case w.Debug == nil:
	case *w.Debug:
		w.Settings = append(w.Settings, "DEBUG=1")
	default:
		w.Settings = append(w.Settings, "DEBUG=0")
	}
	w.Folders = folders(w.Settings)
	if w.Images, err = s.images(); err != nil {
		return nil, err
	}
	if w.From == "" {
		if w.Bundle, err = bundleToInstall(c); err != nil {
			return nil, err
		}
	}
	w.Preflight = func(ctx context.Context) (bool, error) { return s.judge(ctx, w) }
	w.Validate = s.validate
	return w, nil
}

// folders are those that must be there for the plugin to be enabled. Only the usual one is made; one that the user
// names and that is missing is a mistake.
func folders(settings []string) []string {
	if folder(settings, "cvmfs_ext_config") == "" {
		return []string{configuration}
	}
	return nil
}

// folder is what settings say of a folder, or "".
func folder(settings []string, name string) (dir string) {
	for _, s := range settings {
		if key, value, _ := strings.Cut(s, "="); key == name || key == name+".source" {
			dir = value
		}
	}
	return dir
}

// validate has the engine's own program judge its configuration file, where there is one that can: engines before 23
// can't, and one that was upgraded since it was started has gone.
func (s *setup) validate(ctx context.Context, f *daemonjson.File) error {
	if s.engine == nil {
		return nil
	}
	err := f.Validate(ctx, s.engine.Program, s.engine.Args, s.engine.Environ)
	if errors.Is(err, daemonjson.ErrCannotValidate) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// judge looks whether the host qualifies, and reports whether the engine wants a variable in its environment.
func (s *setup) judge(ctx context.Context, w *installer.Wishes) (variable bool, err error) {
	plan := preflight.Plan{
		Install: true, Host: s.Engine.Client().DaemonHost(), Name: w.Name, DaemonJSON: w.File, DataRoot: w.DataRoot,
		StorageOpts: w.StorageOpts, CVMFSConfig: folder(w.Settings, "cvmfs_ext_config"),
		MinioConfig: folder(w.Settings, "minio_ext_config"),
		Debug:       w.Debug != nil, Log: s.Log, Restart: s.c.String(restartFlag.Name), Agent: "cvmfs-graphdriver/" + version,
	}
	facts := preflight.Gather(ctx, plan)
	if w.Fix {
		facts.File.Problems = slices.DeleteFunc(facts.File.Problems,
			func(p preflight.Problem) bool { return p.Fixable })
	}
	findings := preflight.Judge(facts, plan)
	var said bytes.Buffer
	if err := preflight.Write(&said, findings, false); err != nil {
		return false, err
	}
	if text := strings.TrimSpace(said.String()); text != "" {
		s.Tell(installer.Event{Step: "preflight", Outcome: installer.Told, Text: text})
	}
	return facts.Engine.WantsVariable() && !facts.Service.Variable, preflight.Unfit(findings)
}
