package policy

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/installer/preflight"
)

// The plugin's settings that have flags of their own.
const (
	cvmfsSetting = "cvmfs_ext_config"
	minioSetting = "minio_ext_config"
	debugSetting = "DEBUG"
)

// Install returns what an install is to bring about. The installer, i, is told what the preflight found.
func (h *Host) Install(ctx context.Context, i *installer.Installer) (w installer.Wishes, err error) {
	w = installer.Wishes{
		From: h.From, DataRoot: h.DataRoot, StorageOpts: h.StorageOpts, Debug: h.Debug, File: h.file, Fix: h.Fix,
	}
	if w.Name, err = h.pluginName(ctx); err != nil {
		return w, err
	}
	if err := h.consistent(); err != nil {
		return w, err
	}
	if w.Settings, err = h.settings(); err != nil {
		return w, err
	}
	// Only the usual folder is made; one that the user names and that is missing is a mistake.
	if sourceOf(w.Settings, cvmfsSetting) == "" {
		w.Folders = []string{ConfigDir}
	}
	if w.Images, err = h.images(i.Hello); err != nil {
		return w, err
	}
	if w.From == "" {
		if w.Bundle, err = h.bundle(); err != nil {
			return w, err
		}
	}
	w.Preflight = func(ctx context.Context) (bool, error) { return h.judge(ctx, i, w) }
	w.Validate = h.validate
	return w, nil
}

// consistent refuses a request for an install that contradicts itself.
func (h *Host) consistent() error {
	if h.DataRoot != "" && !filepath.IsAbs(h.DataRoot) {
		return usagef("--data-root %s: want an absolute path", h.DataRoot)
	}
	for _, o := range slices.Concat(h.StorageOpts, h.Settings) {
		if name, _, ok := strings.Cut(o, "="); !ok || name == "" {
			return usagef("%q: want NAME=VALUE", o)
		}
	}
	if h.From != "" && (h.Bundle != "" || h.Key != "") {
		return usagef("--from takes the plugin from a registry: no --bundle and no --key with it")
	}
	return nil
}

// settings returns those of the plugin, with those that have flags of their own.
func (h *Host) settings() ([]string, error) {
	settings := slices.Clone(h.Settings)
	for _, folder := range []struct{ setting, path string }{
		{cvmfsSetting, h.CVMFSConfig}, {minioSetting, h.MinioConfig},
	} {
		if folder.path == "" {
			continue
		}
		path, err := filepath.Abs(folder.path)
		if err != nil {
			return nil, err
		}
		settings = append(settings, folder.setting+"="+path)
	}
	if h.Debug != nil {
		settings = append(settings, debugSetting+"="+map[bool]string{true: "1", false: "0"}[*h.Debug])
	}
	return settings, nil
}

// sourceOf returns the folder that settings name, or "".
func sourceOf(settings []string, name string) (folder string) {
	for _, s := range settings {
		if key, value, _ := strings.Cut(s, "="); key == name || key == name+".source" {
			folder = value
		}
	}
	return folder
}

// judge looks whether the host qualifies, and reports whether the engine wants a variable in its environment.
func (h *Host) judge(ctx context.Context, i *installer.Installer, w installer.Wishes) (variable bool, err error) {
	plan := preflight.Plan{
		Install: true, Host: h.Address(), Name: w.Name, DaemonJSON: w.File, DataRoot: w.DataRoot,
		StorageOpts: w.StorageOpts, CVMFSConfig: sourceOf(w.Settings, cvmfsSetting),
		MinioConfig: sourceOf(w.Settings, minioSetting), Debug: w.Debug != nil, Log: h.log, Restart: h.Restart,
		Agent: agent(h.Version),
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
		i.Tell(installer.Event{Step: "preflight", Outcome: installer.Told, Text: text})
	}
	return facts.Engine.WantsVariable() && !facts.Service.Variable, preflight.Unfit(findings)
}

// validate has the engine's own program judge its configuration file, where there is one that can: engines before 23
// can't, and one that was upgraded since it was started has gone.
func (h *Host) validate(ctx context.Context, f *daemonjson.File) error {
	if h.process == nil {
		return nil
	}
	err := f.Validate(ctx, h.process.Program, h.process.Args, h.process.Environ)
	if errors.Is(err, daemonjson.ErrCannotValidate) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Upgrade returns what an upgrade is to do.
func (h *Host) Upgrade(i *installer.Installer) (r installer.Renewal, err error) {
	r = installer.Renewal{Name: h.Name, File: h.file}
	if r.Images, err = h.images(i.Hello); err != nil {
		return r, err
	}
	r.Bundle, err = h.bundle()
	return r, err
}

// Uninstall returns what an uninstall is to do.
func (h *Host) Uninstall(purge bool) installer.Leave {
	return installer.Leave{Name: h.Name, File: h.file, Purge: purge}
}

// Test returns the images that are run to see whether the engine runs images.
func (h *Host) Test(i *installer.Installer) (installer.Images, error) { return h.images(i.Hello) }
