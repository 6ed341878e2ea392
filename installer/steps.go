package installer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types"

	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/rootfs"
)

// steps are those of an install, in their order.
func (n *install) steps(ctx context.Context) error {
	if err := n.step(ctx, stepFix, n.fix); err != nil {
		return err
	}
	if n.moves() {
		if err := n.step(ctx, stepRoot, n.move); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		name string
		do   func(context.Context) (Outcome, string, error)
	}{
		{stepFolder, n.makeFolders},
		{stepPlugin, n.makePlugin},
		{stepSettings, n.set},
		{stepModes, n.openFolders},
		{stepEnable, n.enable},
		{stepDropIn, n.writeDropIn},
		{stepFile, n.writeFile},
	} {
		if err := n.step(ctx, s.name, s.do); err != nil {
			return err
		}
	}
	if err := n.step(ctx, stepRestart, n.restartIfNeeded); err != nil {
		return err
	}
	if n.byHand {
		return nil
	}
	return n.verify(ctx, n.Name, n.Images)
}

func (n *install) makeFolders(ctx context.Context) (Outcome, string, error) {
	missing := n.missing()
	for _, folder := range missing {
		if err := n.change(ctx, change{Kind: folderMade, Path: folder},
			func(context.Context) error { return os.Mkdir(folder, 0o755) }); err != nil {
			return Failed, "", fmt.Errorf("make the folder of the configuration: %w", err)
		}
	}
	if len(missing) == 0 {
		return Unchanged, "", nil
	}
	return Done, strings.Join(missing, ", "), nil
}

// fix takes out of the configuration file what the engine would not start with.
func (n *install) fix(ctx context.Context) (Outcome, string, error) {
	fixed, err := n.fixed()
	if err != nil || !fixed.Changed() {
		return Unchanged, "", err
	}
	backup, err := fixed.Backup(time.Now())
	if err == nil {
		err = n.change(ctx, change{Kind: fileFixed, Backup: backup},
			func(context.Context) error { return fixed.Write() })
	}
	if err == nil {
		err = n.look(ctx)
	}
	if err != nil {
		return Failed, "", err
	}
	return Done, "comments and trailing commas are out of " + n.File + ", the former one is " + backup.File, nil
}

// move has the engine start with its data elsewhere, where the plugin is then made.
func (n *install) move(ctx context.Context) (Outcome, string, error) {
	// both make the engine fail
	moved, err := n.file.Edit(daemonjson.Delete("graph"), daemonjson.Set("data-root", n.DataRoot))
	if err != nil {
		return Failed, "", err
	}
	if _, err := n.write(ctx, moved); err != nil {
		return Failed, "", err
	}
	outcome, said, err := n.restartStep(ctx)
	if err == nil && n.byHand {
		err = fmt.Errorf("the plugin is created in the engine's new data-root: %s, and then run this command again, or let it restart the engine (--restart)", said)
	}
	if err == nil {
		err = n.look(ctx)
	}
	if err == nil && n.moves() {
		err = fmt.Errorf("the engine's data are in %s though %s says %s: a flag of its command line says otherwise",
			n.state.root, n.File, n.DataRoot)
	}
	return outcome, n.DataRoot, err
}

func (n *install) makePlugin(ctx context.Context) (Outcome, string, error) {
	if n.plugin != nil {
		return Unchanged, n.Name + " is there" + n.age(), nil
	}
	c := change{Kind: pluginMade, Plugin: n.Name, Stale: staleFolder(n.state.root, n.Name)}
	from := n.From
	err := n.change(ctx, c, func(ctx context.Context) error {
		// What a plugin of the name has left that was removed: images whose layers went with it.
		if err := removeStale(c.Stale); err != nil {
			return err
		}
		if n.From != "" {
			return n.Engine.installPlugin(ctx, n.Name, n.From, allowed)
		}
		from = "version " + n.Bundle.Build.Version
		archive := n.archive()
		return errors.Join(n.Engine.createPlugin(ctx, n.Name, archive), archive.Close())
	})
	if err == nil {
		n.plugin, err = n.Engine.plugin(ctx, n.Name)
	}
	if err == nil && n.plugin == nil {
		err = fmt.Errorf("the engine took the plugin %s and doesn't have it", n.Name)
	}
	return Done, fmt.Sprintf("%s, %s", n.Name, from), err
}

// age says whether the plugin that is there is made of another bundle.
func (n *install) age() string {
	if n.Bundle == nil || n.plugin.Config.Description == n.Bundle.Config.Description {
		return ""
	}
	return fmt.Sprintf(", made of another bundle than version %s: cvmfs-graphdriver upgrade brings that",
		n.Bundle.Build.Version)
}

func (n *install) set(ctx context.Context) (Outcome, string, error) {
	different := n.different()
	if len(different) == 0 {
		return Unchanged, "", nil
	}
	if err := n.disable(ctx); err != nil {
		return Failed, "", err
	}
	c := change{Kind: pluginSet, Plugin: n.Name}
	for _, s := range different {
		key, _, _ := strings.Cut(s, "=")
		if value, ok := setting(n.plugin, key); ok {
			c.Former = append(c.Former, key+"="+value)
		}
	}
	err := n.change(ctx, c, func(ctx context.Context) error { return n.Engine.setPlugin(ctx, n.Name, different) })
	return Done, strings.Join(different, " "), err
}

// disable disables the plugin if it is enabled. As the storage driver it then serves again only after a restart of the
// engine.
func (n *install) disable(ctx context.Context) error {
	if !n.plugin.Enabled {
		return nil
	}
	n.dead = n.dead || n.active()
	n.plugin.Enabled = false
	return n.change(ctx, change{Kind: pluginDisabled, Plugin: n.Name},
		func(ctx context.Context) error { return n.Engine.disablePlugin(ctx, n.Name) })
}

// openFolders lets the root of containers, who with userns-remap is another user, pass through to the plugin's folders.
func (n *install) openFolders(ctx context.Context) (Outcome, string, error) {
	if !n.state.remapped {
		return Unchanged, "", nil
	}
	return n.pass(ctx, n.state.root, n.plugin.ID)
}

// passable is the mode of a folder that others may pass through.
const passable fs.FileMode = 0o711

// barred are the folders on the way to a plugin's, its own among them, that others can't pass through.
func (r *run) barred(root, id string) []string {
	var barred []string
	plugins := filepath.Join(root, "plugins")
	for _, folder := range []string{plugins, filepath.Join(plugins, id)} {
		if info, err := os.Stat(folder); err != nil || info.Mode()&0o011 != 0o011 {
			barred = append(barred, folder)
		}
	}
	return barred
}

// pass opens the folders on the way to a plugin's.
func (r *run) pass(ctx context.Context, root, id string) (Outcome, string, error) {
	barred := r.barred(root, id)
	for _, folder := range barred {
		info, err := os.Stat(folder)
		if err == nil {
			c := change{Kind: modeSet, Path: folder, Mode: passable, Was: info.Mode().Perm()}
			err = r.change(ctx, c, func(context.Context) error { return os.Chmod(folder, passable) })
		}
		if err != nil {
			return Failed, "", fmt.Errorf("open the plugin's folder to containers: %w", err)
		}
	}
	if len(barred) == 0 {
		return Unchanged, "", nil
	}
	return Done, strings.Join(barred, ", "), nil
}

func (n *install) enable(ctx context.Context) (Outcome, string, error) {
	if n.rescued && n.plugin.Enabled { // the engine may take it for enabled though its process has gone
		if err := n.disable(ctx); err != nil {
			return Failed, "", err
		}
	}
	if n.plugin.Enabled {
		return Unchanged, "", nil
	}
	err := n.change(ctx, change{Kind: pluginEnabled, Plugin: n.Name}, func(ctx context.Context) error {
		err := n.Engine.enablePlugin(ctx, n.Name)
		if err != nil && (n.rescued || n.dead) {
			err = n.mend(ctx, err)
		}
		return err
	})
	return Done, "", err
}

func (n *install) writeDropIn(ctx context.Context) (Outcome, string, error) {
	if !n.needsDropIn() {
		return Unchanged, "", nil
	}
	err := n.change(ctx, change{Kind: dropInWritten, Path: n.Service.DropIn()}, n.Service.WriteDropIn)
	return Done, n.Service.DropIn(), err
}

func (n *install) writeFile(ctx context.Context) (Outcome, string, error) {
	if !n.next.Changed() {
		return Unchanged, n.File, nil
	}
	backup, err := n.write(ctx, n.next)
	return Done, backup, err
}

// write writes the engine's configuration file and says so.
func (r *run) write(ctx context.Context, file *daemonjson.File) (string, error) {
	return r.writeAs(ctx, daemonJSON, file)
}

// writeAs writes a file by a kind of change and says so.
func (r *run) writeAs(ctx context.Context, k kind, file *daemonjson.File) (string, error) {
	backup, err := file.Backup(time.Now())
	if err != nil {
		return "", err
	}
	said := file.Path
	if backup.File != "" {
		said += ", the former one is " + backup.File
	}
	return said, r.change(ctx, change{Kind: k, Backup: backup}, func(context.Context) error { return file.Write() })
}

func (n *install) restartIfNeeded(ctx context.Context) (Outcome, string, error) {
	read := slices.ContainsFunc(n.rec.Open.Changes, func(c change) bool { return c.ofFiles() })
	if n.active() && !read && !n.dead {
		return Unchanged, "", nil
	}
	return n.restartStep(ctx)
}

// restartStep restarts the engine, or leaves that to the user.
func (r *run) restartStep(ctx context.Context) (Outcome, string, error) {
	began := time.Now()
	err := r.restart(ctx)
	if errors.Is(err, ErrNoRestart) {
		r.byHand = true
		return Skipped, "restart the engine yourself: " + r.Service.ByHand(), nil
	}
	return Done, fmt.Sprintf("%s, %.0f s", r.Service.ByHand(), time.Since(began).Seconds()), err
}

// Images are those that are run to see whether the engine runs images.
type Images struct {
	Ordinary string // "": one that is made here
	Thin     string // "": none
}

// Test runs the verification alone: the plugin is the engine's storage driver, and images run. "" is the installed
// plugin.
func (i *Installer) Test(ctx context.Context, name string, images Images) error {
	if name == "" {
		var err error
		if name, err = FindName(ctx, i.Engine, i.Record, ""); err != nil {
			return err
		}
	}
	return i.verify(ctx, name, images)
}

// verify removes what a run that was cut off has left, and looks whether images run.
func (r *run) verify(ctx context.Context, name string, images Images) error {
	if err := r.Engine.clean(ctx); err != nil {
		r.Tell(Event{stepOrdinary, Told, err.Error()})
	}
	return r.Installer.verify(ctx, name, images)
}

func (i *Installer) verify(ctx context.Context, name string, images Images) error {
	err := i.step(ctx, stepDriver, func(ctx context.Context) (Outcome, string, error) {
		s, err := i.drives(ctx, name)
		if err != nil {
			return Failed, "", err
		}
		return Done, "the engine " + s.version + " runs on " + s.driver, nil
	})
	if err != nil {
		return err
	}
	return i.runImages(ctx, i.Engine, images, "")
}

// runner runs images to see whether they run.
type runner interface {
	// runOwn runs an image made here, whose only file is a program.
	runOwn(ctx context.Context, program string) error
	// runImage runs one that is pulled, and says how it went. One that should be thin is an error if it isn't.
	runImage(ctx context.Context, ref string, thin bool) (outcome string, err error)
}

// runImages runs an ordinary image, and a thin one if one is named. What is told of the first ends with a note.
func (i *Installer) runImages(ctx context.Context, r runner, images Images, note string) error {
	err := i.step(ctx, stepOrdinary, func(ctx context.Context) (Outcome, string, error) {
		if images.Ordinary == "" {
			return Done, "an image made here runs" + note, r.runOwn(ctx, i.Hello)
		}
		said, err := r.runImage(ctx, images.Ordinary, false)
		return Done, said + note, err
	})
	if err != nil {
		return err
	}
	return i.step(ctx, stepThin, func(ctx context.Context) (Outcome, string, error) {
		if images.Thin == "" {
			return Skipped, "no thin image was named: cvmfs-graphdriver test --thin-image IMAGE runs one", nil
		}
		said, err := r.runImage(ctx, images.Thin, true)
		return Done, said, err
	})
}

// allowed refuses a plugin that wants more of the host than this project's does.
func allowed(wanted types.PluginPrivileges) error {
	ours := rootfs.PluginConfig(rootfs.Build{})
	may := map[string][]string{"network": {ours.Network.Type}, "capabilities": ours.Linux.Capabilities}
	for _, m := range ours.Mounts {
		may["mount"] = append(may["mount"], m.Source)
	}
	for _, d := range ours.Linux.Devices {
		may["device"] = append(may["device"], d.Path)
	}
	for _, p := range wanted {
		for _, value := range p.Value {
			if !slices.Contains(may[p.Name], value) {
				return fmt.Errorf("refused: the plugin wants %s %s, which this project's does not", p.Name, value)
			}
		}
	}
	return nil
}
