package installer

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/docker/docker/api/types"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/internal/durable"
)

// Renewal is what an upgrade is to do.
type Renewal struct {
	Name   string         // of the plugin; "" is the one that is installed
	Bundle *bundle.Bundle // what it is to be made of
	File   string         // the engine's configuration file
	Images Images         // that are run afterwards
}

// formerBundle is the plugin of before an upgrade, beside the record, until the upgrade is through.
const formerBundle = "former-plugin.tar.gz"

// upgrade is an upgrade on its way.
type upgrade struct {
	*run
	Renewal
	state  *engineState
	plugin *types.Plugin
}

// Upgrade replaces the plugin by that of another bundle; its settings, layers and images stay. Containers stop. Errors
// are as those of [Installer.Install].
func (i *Installer) Upgrade(ctx context.Context, n Renewal) error {
	r, err := i.start(ctx)
	if err != nil {
		return err
	}
	u := &upgrade{run: r, Renewal: n}
	return errors.Join(u.do(ctx), r.rec.close())
}

func (u *upgrade) do(ctx context.Context) (err error) {
	if down, err := u.Engine.down(ctx); down || err != nil {
		return cmp.Or(err, fmt.Errorf("no engine answers at %s: if its storage driver is the reason, cvmfs-graphdriver install brings it back, and mends the plugin",
			u.Engine.api.DaemonHost()))
	}
	if u.Name == "" {
		if u.Name, err = FindName(ctx, u.Engine, u.Record, u.File); err != nil {
			return err
		}
	}
	if u.state, err = u.Engine.state(ctx); err != nil {
		return err
	}
	if u.plugin, err = u.Engine.plugin(ctx, u.Name); err != nil {
		return err
	}
	if u.plugin == nil {
		return fmt.Errorf("the engine has no plugin %s to upgrade: cvmfs-graphdriver install makes it, and --name names another", u.Name)
	}
	if u.plugin.Config.Description == u.Bundle.Config.Description {
		u.Tell(Event{stepReport, Unchanged, fmt.Sprintf("%s is of version %s already: nothing was changed", u.Name,
			u.Bundle.Build.Version)})
		return nil
	}
	if err := u.Ask(ctx, []string{
		fmt.Sprintf("upgrade the plugin %s to version %s; its settings, layers and images stay", u.Name,
			u.Bundle.Build.Version),
		u.restartIntention(u.state, sameDriver(u.state.driver, u.Name)),
	}); err != nil {
		return err
	}
	t := transaction{
		Operation: opUpgrade, Plugin: u.Name, Former: u.state.driver,
		Rescue: u.former(u.state.driver, u.Name), File: u.File,
	}
	if err := u.transact(ctx, t, u.steps, u.keepModes); err != nil {
		return err
	}
	if err := os.Remove(u.kept()); err != nil {
		u.Tell(Event{stepKeep, Told, fmt.Sprintf("the former plugin is still there: %v", err)})
	}
	u.Tell(Event{stepReport, Done, fmt.Sprintf("%s is of version %s now", u.Name, u.Bundle.Build.Version)})
	return nil
}

// keepModes has an uninstall put back what the upgrade opened.
func (u *upgrade) keepModes(t *transaction) {
	if u.rec.Installed == nil {
		return
	}
	for _, c := range t.Changes {
		if c.Kind == modeSet {
			u.rec.Installed.Changes = append(u.rec.Installed.Changes, c)
		}
	}
}

func (u *upgrade) steps(ctx context.Context) error {
	active := sameDriver(u.state.driver, u.Name)
	kept := u.kept()
	for _, s := range []struct {
		name string
		do   func(context.Context) (Outcome, string, error)
	}{
		{stepKeep, func(context.Context) (Outcome, string, error) { return Done, kept, u.keep(kept) }},
		{stepDisable, func(ctx context.Context) (Outcome, string, error) {
			if !u.plugin.Enabled {
				return Unchanged, "", nil
			}
			c := change{Kind: pluginDisabled, Plugin: u.Name}
			return Done, "", u.change(ctx, c,
				func(ctx context.Context) error { return u.Engine.disablePlugin(ctx, u.Name) })
		}},
		{stepPlugin, func(ctx context.Context) (Outcome, string, error) {
			c := change{Kind: pluginUpgraded, Plugin: u.Name, Path: kept}
			return Done, "version " + u.Bundle.Build.Version,
				u.change(ctx, c, func(ctx context.Context) error { return u.replace(ctx, u.Name, u.Bundle, allowed) })
		}},
		{stepModes, func(ctx context.Context) (Outcome, string, error) {
			if !u.state.remapped {
				return Unchanged, "", nil
			}
			return u.pass(ctx, u.state.root, u.plugin.ID)
		}},
		{stepEnable, func(ctx context.Context) (Outcome, string, error) {
			if !u.plugin.Enabled && !active { // it was not in use, as after an uninstall
				return Skipped, "it was disabled", nil
			}
			c := change{Kind: pluginEnabled, Plugin: u.Name}
			return Done, "", u.change(ctx, c,
				func(ctx context.Context) error { return u.Engine.enablePlugin(ctx, u.Name) })
		}},
	} {
		if err := u.step(ctx, s.name, s.do); err != nil {
			return err
		}
	}
	if !active {
		return nil
	}
	if err := u.step(ctx, stepRestart, u.restartStep); err != nil || u.byHand {
		return err
	}
	if err := u.step(ctx, stepImages, u.sameImages); err != nil {
		return err
	}
	return u.verify(ctx, u.Name, u.Images)
}

// kept is where the former plugin is kept.
func (u *upgrade) kept() string { return filepath.Join(filepath.Dir(u.Record), formerBundle) }

// sameImages makes sure that no image has gone.
func (u *upgrade) sameImages(ctx context.Context) (Outcome, string, error) {
	s, err := u.Engine.state(ctx)
	if err == nil && s.images < u.state.images {
		err = fmt.Errorf("the engine had %d images before the upgrade and has %d now", u.state.images, s.images)
	}
	if err != nil {
		return Failed, "", err
	}
	return Done, fmt.Sprintf("all %d are there", s.images), nil
}

// keep packs the plugin as it is, to go back to it. The engine has unpacked it on this host.
func (u *upgrade) keep(file string) error {
	was, err := u.present(u.plugin)
	if err != nil {
		return fmt.Errorf("keep the present plugin, to go back to it: %w", err)
	}
	if err := durable.ReplaceBy(file, 0o600,
		func(w io.Writer) error { return was.WriteArchive(w, bundle.TarGz) }); err != nil {
		return fmt.Errorf("keep the present plugin, to go back to it: %w", err)
	}
	return nil
}

// present makes the bundle of the plugin that the engine has: of its config.json, which the engine keeps as it came
// (what it tells of it has settings in it), and of the root file system that it has unpacked (what that came as isn't
// always kept).
func (u *upgrade) present(p *types.Plugin) (*bundle.Bundle, error) {
	plugins := filepath.Join(u.state.root, "plugins")
	b, err := os.ReadFile(filepath.Join(plugins, p.ID, "config.json"))
	if err != nil {
		return nil, err
	}
	var kept struct{ Config v1.Hash }
	if err := json.Unmarshal(b, &kept); err != nil {
		return nil, err
	}
	config, err := os.ReadFile(filepath.Join(plugins, "storage/blobs", kept.Config.Algorithm, kept.Config.Hex))
	if err != nil {
		return nil, err
	}
	root := piped(func(w io.Writer) error { return packRoot(w, filepath.Join(plugins, p.ID, "rootfs")) })
	was, err := bundle.Read(config, root)
	return was, errors.Join(err, root.Close())
}

// packRoot writes the folders and files of a plugin's root file system as an archive. What a plugin's process was given
// at its start, mount points that are empty files, devices and links, is not the plugin's.
func packRoot(w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() // only read from
	t := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: int64(info.Mode().Perm())}
		switch {
		case d.IsDir():
			return t.WriteHeader(h)
		case !d.Type().IsRegular() || info.Size() == 0:
			return nil
		}
		content, err := root.ReadFile(name)
		if err != nil {
			return err
		}
		h.Typeflag, h.Name, h.Size = tar.TypeReg, name, int64(len(content))
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err = t.Write(content)
		return err
	})
	return errors.Join(err, t.Close())
}

// replace puts a bundle in the place of a plugin that is disabled. The engine takes one from a registry only: this
// process is that registry, on loopback, for as long as it takes.
func (r *run) replace(ctx context.Context, name string, b *bundle.Bundle, rights rightsFunc) error {
	ref, stop, err := serve(ctx, b)
	if err != nil {
		return fmt.Errorf("serve the bundle to the engine: %w", err)
	}
	return errors.Join(r.Engine.upgradePlugin(ctx, name, ref, rights), stop())
}

// downgrade undoes an upgrade.
func (r *run) downgrade(ctx context.Context, p *types.Plugin, c *change) error {
	was, err := bundle.Open(c.Path)
	if err != nil {
		return err
	}
	if p.Config.Description == was.Config.Description {
		return nil
	}
	if p.Enabled { // when undoing was cut off
		if err := r.Engine.disablePlugin(ctx, c.Plugin); err != nil {
			return err
		}
	}
	had := func(types.PluginPrivileges) error { return nil } // it gets what it had before
	return r.replace(ctx, c.Plugin, was, had)
}
