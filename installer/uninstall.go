package installer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/docker/docker/api/types"

	"cvmfs-graphdriver/installer/daemonjson"
)

// Leave is what an uninstall is to do.
type Leave struct {
	Name  string // of the plugin; "" is the one that is installed
	File  string // the engine's configuration file
	Purge bool   // the plugin goes, and with it its layers and images
}

// uninstall is an uninstall on its way.
type uninstall struct {
	*run
	Leave
	state *engineState
	was   *installed
	file  *daemonjson.File
	next  *daemonjson.File
	down  bool // no engine answers, and its storage driver is the plugin
}

// Uninstall has the engine run on its former storage driver again. The plugin stays, disabled, with its layers, unless
// it is purged. Errors are as those of [Installer.Install]; once the engine runs on its former driver, nothing is
// undone any more, and another uninstall goes on with what is left.
func (i *Installer) Uninstall(ctx context.Context, l Leave) error {
	r, err := i.start(ctx)
	if err != nil {
		return err
	}
	u := &uninstall{run: r, Leave: l}
	return errors.Join(u.do(ctx), r.rec.close())
}

// look finds out how things are. It changes nothing.
func (u *uninstall) look(ctx context.Context) (err error) {
	u.was = u.rec.Installed
	if u.Name == "" {
		if u.Name, err = FindName(ctx, u.Engine, u.Record, u.File); err != nil {
			return err
		}
	}
	if u.was == nil || !sameDriver(u.was.Plugin, u.Name) {
		u.was = &installed{Plugin: u.Name} // installed by hand
	}
	if u.file, err = daemonjson.Read(u.File); err != nil {
		return err
	}
	if u.down, err = u.Engine.down(ctx); err != nil {
		return err
	}
	if u.down {
		if err := u.checkDead(ctx, u.file, u.Name); err != nil {
			return err
		}
	}
	u.state = &engineState{driver: u.Name} // what it would run on
	if !u.down {
		if u.state, err = u.Engine.state(ctx); err != nil {
			return err
		}
	}
	u.next = u.file
	for _, c := range slices.Backward(u.was.Changes) {
		if c.Kind != daemonJSON || c.Backup.Path != u.File {
			continue
		}
		var kept []string
		if u.next, kept, err = u.next.Undo(c.Backup.Before, c.Backup.After); err != nil {
			return err
		}
		if len(kept) > 0 {
			u.Tell(Event{stepPlan, Told, fmt.Sprintf("%s: %v was changed since the install and stays as it is", u.File,
				kept)})
		}
	}
	// A driver that no record knows of, or that somebody has put back.
	if sameDriver(pluginIn(u.next), u.Name) {
		u.next, err = onDriver(u.next, "")
	}
	return err
}

func (u *uninstall) intentions() []string {
	var will []string
	if u.next.Changed() {
		will = append(will, "write "+u.File+":\n"+daemonjson.Diff(u.file, u.next))
	}
	if u.away() {
		will = append(will, fmt.Sprintf("restart the engine with its data in %s before, where the plugin lies, and remove it there", u.was.Root))
	}
	if u.dropIn() {
		will = append(will, "remove "+u.Service.DropIn())
	}
	if u.next.Changed() || sameDriver(u.state.driver, u.Name) {
		will = append(will, u.restartIntention(u.state, false))
	}
	return will
}

// dropIn reports whether the install has written the drop-in, and it is there.
func (u *uninstall) dropIn() bool {
	wrote := slices.ContainsFunc(u.was.Changes, func(c change) bool { return c.Kind == dropInWritten })
	return wrote && !absent(u.Service.DropIn())
}

func (u *uninstall) do(ctx context.Context) error {
	if err := u.look(ctx); err != nil {
		return err
	}
	var p *types.Plugin
	if !u.down && u.here() {
		var err error
		if p, err = u.Engine.plugin(ctx, u.Name); err != nil {
			return err
		}
	}
	will := u.intentions()
	switch {
	case u.down && u.Purge:
		will = append(will, fmt.Sprintf("remove the plugin %s, if it is there, with ALL its images, containers and layers", u.Name))
	case p != nil && u.Purge:
		will = append(will, fmt.Sprintf("remove the plugin %s with ALL its images, containers and layers", u.Name))
	case p != nil && p.Enabled:
		will = append(will, fmt.Sprintf("disable the plugin %s; its images and layers are kept (--purge removes them)",
			u.Name))
	}
	if len(will) == 0 {
		u.Tell(Event{stepReport, Unchanged, "nothing to uninstall: the engine runs on " + u.state.driver})
		return nil
	}
	if err := u.Ask(ctx, will); err != nil {
		return err
	}
	if u.away() {
		if err := u.purgeAway(ctx); err != nil {
			return err
		}
	}
	err := u.transact(ctx, u.transaction(), u.back, func(t *transaction) {
		u.discard(t)
		u.was.Driver = false
		u.was.Changes = slices.DeleteFunc(u.was.Changes, func(c change) bool { return c.ofFiles() })
		u.rec.Installed, u.rec.Options = u.was, nil
	})
	if err != nil || u.byHand {
		return err
	}
	return u.leave(ctx)
}

func (u *uninstall) transaction() transaction {
	return transaction{
		Operation: opUninstall, Plugin: u.Name, Former: u.state.driver, Rescue: u.was.Former,
		File: u.File, Down: u.down,
	}
}

// here reports whether the engine's data are where the plugin lies. One of its name that lies elsewhere is another.
func (u *uninstall) here() bool { return u.was.Root == "" || u.was.Root == u.state.root }

// away reports whether the plugin is to be removed, and lies in another data folder than the engine's when all is as
// before the install: only an engine that has its data there can remove it.
func (u *uninstall) away() bool {
	if !u.Purge || u.was.Root == "" || u.was.Gone || absent(u.was.Root) {
		return false
	}
	there, err := u.inPlace()
	return err == nil && daemonjson.Diff(there, u.next) != ""
}

// inPlace returns the engine's configuration file as before the install, but with its data where the plugin lies.
func (u *uninstall) inPlace() (*daemonjson.File, error) {
	if u.here() || u.down { // as they are now
		var edits []daemonjson.Change
		for _, key := range []string{"graph", "data-root"} {
			value, _ := u.file.Get(key)
			edits = append(edits, daemonjson.Change{Key: key, Value: value})
		}
		return u.next.Edit(edits...)
	}
	root := u.was.Root
	if remapped.MatchString(filepath.Base(root)) {
		root = filepath.Dir(root)
	}
	return u.next.Edit(daemonjson.Delete("graph"), daemonjson.Set("data-root", root))
}

// remapped is the name of the folder that the engine makes for the data of a remapped user: uid and gid.
var remapped = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)

// purgeAway removes the plugin where it lies. The engine's data are there afterwards, too.
func (u *uninstall) purgeAway(ctx context.Context) (err error) {
	if u.next, err = u.inPlace(); err != nil {
		return err
	}
	former := u.was.Former
	u.was.Former = "" // in another data folder the engine may choose another driver
	err = u.transact(ctx, u.transaction(), u.back, func(t *transaction) {
		u.was.Driver, u.was.Former = false, former
		u.was.Changes = append(u.was.Changes, t.Changes...)
	})
	u.was.Former = former
	if err == nil && u.byHand {
		err = errors.New("the plugin can only be removed in its data-root after the engine is restarted there: restart the engine, then run this command again")
	}
	if err == nil {
		err = u.purgePlugin(ctx)
	}
	if err != nil {
		return err
	}
	u.was.Gone = true
	if err := u.rec.save(); err != nil {
		return err
	}
	return u.look(ctx)
}

// back brings the engine back to its former storage driver.
func (u *uninstall) back(ctx context.Context) error {
	err := u.step(ctx, stepFile, func(ctx context.Context) (Outcome, string, error) {
		if !u.next.Changed() {
			return Unchanged, "", nil
		}
		said, err := u.write(ctx, u.next)
		return Done, said, err
	})
	if err != nil {
		return err
	}
	err = u.step(ctx, stepDropIn, func(ctx context.Context) (Outcome, string, error) {
		if !u.dropIn() {
			return Unchanged, "", nil
		}
		err := u.change(ctx, change{Kind: dropInRemoved, Path: u.Service.DropIn()}, u.Service.RemoveDropIn)
		return Done, "", err
	})
	if err != nil {
		return err
	}
	err = u.step(ctx, stepRestart, func(ctx context.Context) (Outcome, string, error) {
		if len(u.rec.Open.Changes) == 0 && !sameDriver(u.state.driver, u.Name) {
			return Unchanged, "", nil
		}
		return u.restartStep(ctx)
	})
	if err != nil {
		return err
	}
	if u.byHand {
		u.Tell(Event{stepReport, Done, "restart the engine, then run this command again: the plugin is still in use"})
		return nil
	}
	return u.step(ctx, stepDriver, func(ctx context.Context) (Outcome, string, error) {
		s, err := u.Engine.state(ctx)
		if err == nil && u.was.Former != "" {
			s, err = u.drives(ctx, u.was.Former)
		}
		if err == nil && sameDriver(s.driver, u.Name) {
			err = fmt.Errorf("the engine still runs on %s: a flag of its command line, or another configuration file, says so", s.driver)
		}
		if err != nil {
			return Failed, "", err
		}
		u.state = s
		return Done, "the engine runs on " + s.driver, nil
	})
}

// discard removes the copies of the configuration file that were kept for going back, if it is as before the install:
// an edited one keeps them.
func (u *uninstall) discard(t *transaction) {
	for _, c := range append(slices.Clone(u.was.Changes), t.Changes...) {
		if c.Kind != daemonJSON {
			continue
		}
		if err := c.Backup.Discard(); err != nil {
			u.Tell(Event{stepFile, Told, err.Error()})
		}
	}
}

// leave does what doesn't bear on the engine any more, and takes it out of the record.
func (u *uninstall) leave(ctx context.Context) error {
	if !u.Purge {
		return u.keep(ctx)
	}
	if u.here() && !u.was.Gone {
		if err := u.purgePlugin(ctx); err != nil {
			return err
		}
	}
	rest := func(c *change) bool { return c.Kind == folderMade || c.Kind == modeSet }
	if err := u.undoThose(ctx, u.was.Changes, rest); err != nil {
		return again(err)
	}
	u.rec.Installed, u.rec.Options = nil, nil
	if err := u.rec.save(); err != nil {
		return err
	}
	u.Tell(Event{stepReport, Done, "the plugin " + u.Name + " is gone"})
	return nil
}

func again(err error) error {
	return fmt.Errorf("%w (the engine runs on its former driver; run this command again)", err)
}

// keep leaves the plugin, disabled.
func (u *uninstall) keep(ctx context.Context) error {
	where := ""
	if u.here() {
		if err := u.disable(ctx); err != nil {
			return err
		}
	} else {
		where = " in " + u.was.Root
	}
	u.Tell(Event{stepReport, Done, "the plugin " + u.Name + " and its images are kept" + where +
		": cvmfs-graphdriver install shows them again, uninstall --purge removes them"})
	return nil
}

// disable ends the plugin's process.
func (u *uninstall) disable(ctx context.Context) error {
	err := u.step(ctx, stepDisable, func(ctx context.Context) (Outcome, string, error) {
		p, err := u.Engine.plugin(ctx, u.Name)
		if err != nil {
			return Failed, "", err
		}
		if p == nil || !p.Enabled {
			return Unchanged, "", nil
		}
		return Done, "", u.Engine.disablePlugin(ctx, u.Name)
	})
	if err != nil {
		return again(err)
	}
	return nil
}

// purgePlugin removes the plugin, and the engine's list of its images, from the engine's present data folder.
func (u *uninstall) purgePlugin(ctx context.Context) error {
	if err := u.disable(ctx); err != nil {
		return err
	}
	err := u.step(ctx, stepPurge, func(ctx context.Context) (Outcome, string, error) {
		if err := u.Engine.removePlugin(ctx, u.Name); err != nil { // its images are there, and so is the list of them
			return Failed, "", err
		}
		return Done, "", removeStale(staleFolder(u.state.root, u.Name))
	})
	if err != nil {
		return again(err)
	}
	return nil
}
