package installer

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
}

// Uninstall has the engine run on its former storage driver again. The plugin stays, disabled, with its layers, unless it is
// purged. Errors are as those of [Installer.Install]; once the engine runs on its former driver, nothing is undone any more, and
// another uninstall goes on with what is left.
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
		u.Name = u.rec.name()
	}
	if u.was == nil || !sameDriver(u.was.Plugin, u.Name) {
		u.was = &installed{Plugin: u.Name} // installed by hand
	}
	if u.state, err = u.Engine.state(ctx); err != nil {
		return err
	}
	if u.file, err = daemonjson.Read(u.File); err != nil {
		return err
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
			u.Tell(Event{stepPlan, Told, fmt.Sprintf("%s: %v was changed since the install and stays as it is", u.File, kept)})
		}
	}
	// A driver that no record knows of, or that somebody has put back.
	if driver, ok := u.next.Get("storage-driver"); ok && sameDriver(string(driver), `"`+u.Name+`"`) {
		u.next, err = u.next.Edit(daemonjson.Delete("storage-driver"), daemonjson.Delete("storage-opts"))
	}
	return err
}

func (u *uninstall) intentions() []string {
	var will []string
	if u.next.Changed() {
		will = append(will, "write "+u.File+":\n"+daemonjson.Diff(u.file, u.next))
	}
	if u.dropIn() {
		will = append(will, "remove "+u.Service.DropIn())
	}
	if u.next.Changed() || sameDriver(u.state.driver, u.Name) {
		will = append(will, u.restartIntention(u.state))
	}
	return will
}

// dropIn tells whether the install has written the drop-in, and it is there.
func (u *uninstall) dropIn() bool {
	wrote := slices.ContainsFunc(u.was.Changes, func(c change) bool { return c.Kind == dropInWritten })
	return wrote && !absent(u.Service.DropIn())
}

func (u *uninstall) do(ctx context.Context) error {
	if err := u.look(ctx); err != nil {
		return err
	}
	p, err := u.Engine.plugin(ctx, u.Name)
	if err != nil {
		return err
	}
	will := u.intentions()
	switch {
	case p != nil && u.Purge:
		will = append(will, fmt.Sprintf("remove the plugin %s with ALL its images, containers and layers", u.Name))
	case p != nil && p.Enabled:
		will = append(will, fmt.Sprintf("disable the plugin %s; its images and layers are kept (--purge removes them)", u.Name))
	}
	if len(will) == 0 {
		u.Tell(Event{stepReport, Unchanged, "nothing to uninstall: the engine runs on " + u.state.driver})
		return nil
	}
	if err := u.Ask(ctx, will); err != nil {
		return err
	}
	t := transaction{Operation: "uninstall", Plugin: u.Name, Former: u.state.driver, Rescue: u.was.Former, File: u.File}
	err = u.transact(ctx, t, u.back, func(t *transaction) {
		u.discard(t)
		u.was.Driver = false
		u.was.Changes = slices.DeleteFunc(u.was.Changes, func(c change) bool { return c.ofFiles() })
		u.rec.Installed = u.was
	})
	if err != nil || u.byHand {
		return err
	}
	return u.leave(ctx)
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
		u.Tell(Event{stepReport, Done, "restart the engine, then call this again: the plugin is still in use"})
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
		return Done, "the engine runs on " + s.driver, nil
	})
}

// discard removes the copies of the configuration file that were kept for going back, if it is as before the install: an edited one
// keeps them.
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
	p, err := u.Engine.plugin(ctx, u.Name)
	if err != nil {
		return err
	}
	err = u.step(ctx, stepDisable, func(ctx context.Context) (Outcome, string, error) {
		if p == nil || !p.Enabled {
			return Unchanged, "", nil
		}
		return Done, "", u.Engine.disablePlugin(ctx, u.Name)
	})
	if err != nil {
		return fmt.Errorf("%w (the engine runs on its former driver; call this again)", err)
	}
	if !u.Purge {
		u.Tell(Event{stepReport, Done, "the plugin " + u.Name + " and its images are kept: cvmfs-graphdriver install shows them again, uninstall --purge removes them"})
		return nil
	}
	err = u.step(ctx, stepPurge, func(ctx context.Context) (Outcome, string, error) { return u.purge(ctx, p != nil) })
	if err != nil {
		return fmt.Errorf("%w (the engine runs on its former driver; call this again)", err)
	}
	u.rec.Installed = nil
	if err := u.rec.save(); err != nil {
		return err
	}
	u.Tell(Event{stepReport, Done, "the plugin " + u.Name + " is gone"})
	return nil
}

// purge removes the plugin, and undoes what the install has changed besides.
func (u *uninstall) purge(ctx context.Context, there bool) (Outcome, string, error) {
	if there {
		if err := u.Engine.removePlugin(ctx, u.Name); err != nil {
			return Failed, "", err
		}
	}
	if err := removeStale(staleFolder(u.state.root, u.Name)); err != nil {
		return Failed, "", err
	}
	rest := func(c *change) bool { return c.Kind == folderMade || c.Kind == modeSet }
	return Done, "", u.undoThose(ctx, u.was.Changes, rest)
}
