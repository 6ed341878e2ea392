package installer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cvmfs-graphdriver/installer/daemonjson"
)

// undoOpen undoes the open transaction and closes it. Its error says what is left to be done by hand.
func (r *run) undoOpen(ctx context.Context, cause error) error {
	t := r.rec.Open
	err := r.step(ctx, stepUndo, func(ctx context.Context) (Outcome, string, error) {
		if err := r.undoAll(ctx, t); err != nil {
			return Failed, "", err
		}
		return Done, r.describe(t), nil
	})
	if err == nil {
		r.rec.Open = nil
		err = r.rec.save()
	}
	if err != nil {
		return &StuckError{Cause: cause, Undo: err, ByHand: r.manual(t)}
	}
	return nil
}

// undoAll brings the host back to where the transaction began. It may be cut off and repeated.
func (r *run) undoAll(ctx context.Context, t *transaction) error {
	if t.Snapshotter {
		return r.undoSnapshotter(ctx, t)
	}
	changes := slices.Clone(t.Changes) // a rescue adds one, which is undone here
	if err := r.undoThose(ctx, changes, (*change).ofFiles); err != nil {
		return err
	}
	if t.Down { // nothing but files was changed, and the engine can't run with those of before
		return nil
	}
	rescued, err := r.revive(ctx, t, changes)
	if err != nil {
		return err
	}
	rest := func(c *change) bool { return !c.ofFiles() }
	if err := r.undoThose(ctx, changes, rest); err != nil {
		return err
	}
	if rescued {
		if err := r.undoThose(ctx, t.Changes[len(changes):], (*change).ofFiles); err != nil {
			return err
		}
	}
	// A plugin that was away while it was the storage driver serves again only from the engine's next start on.
	if rescued || t.cut() {
		if err := r.restartUndoing(ctx); err != nil {
			return err
		}
	}
	if _, err = r.drives(ctx, t.Former); err == nil {
		r.startAgain(ctx, t)
	}
	return err
}

// startAgain starts the containers that ran before a restart, where the engine has the storage driver of then. Those
// that run, as with live-restore or by a restart policy, are left alone; those that were run with --rm have gone.
func (r *run) startAgain(ctx context.Context, t *transaction) {
	if !t.Restarted {
		return
	}
	for _, id := range t.Running {
		if err := r.Engine.startContainer(ctx, id); err != nil {
			r.Tell(Event{stepRestart, Told, err.Error()})
		}
	}
}

// undoThose undoes some of the changes, the last one first.
func (r *run) undoThose(ctx context.Context, changes []change, those func(*change) bool) error {
	for _, c := range slices.Backward(changes) {
		if !those(&c) {
			continue
		}
		if err := r.undo(ctx, &c); err != nil {
			return fmt.Errorf("undo %q: %w", c.Kind, err)
		}
		if err := r.at("undone: " + string(c.Kind)); err != nil {
			return err
		}
	}
	return nil
}

// revive brings an engine up that runs on what it ran on before, with its files as they were then. If it doesn't start
// so, since the plugin it ran on isn't as before yet, it is rescued.
func (r *run) revive(ctx context.Context, t *transaction, changes []change) (rescued bool, err error) {
	s, err := r.Engine.state(ctx)
	read := t.Restarted && slices.ContainsFunc(changes, func(c change) bool { return c.ofFiles() })
	if err == nil && sameDriver(s.driver, t.Former) && !read {
		return false, nil
	}
	err = r.restartUndoing(ctx)
	if err == nil {
		return false, nil
	}
	if !slices.ContainsFunc(changes, func(c change) bool { return c.ofEngine() }) || t.File == "" {
		return false, err
	}
	return true, r.rescue(ctx, t, err)
}

// restartUndoing restarts the engine, or tells the user to, who does that here.
func (r *run) restartUndoing(ctx context.Context) error {
	err := r.restart(ctx)
	if errors.Is(err, ErrNoRestart) {
		r.Tell(Event{stepUndo, Told, "restart the engine yourself: " + r.Service.ByHand()})
		return nil
	}
	return err
}

// rescue starts the engine with another storage driver: one that is known, or whatever it chooses.
func (r *run) rescue(ctx context.Context, t *transaction, cause error) error {
	r.Tell(Event{
		stepUndo, Told,
		fmt.Sprintf("the engine doesn't start on %s (%v): it is started on another storage driver for the time being",
			t.Former, cause),
	})
	file, err := daemonjson.Read(t.File)
	if err == nil {
		file, err = onDriver(file, t.Rescue)
	}
	if err == nil {
		_, err = r.write(ctx, file)
	}
	if err == nil {
		err = r.restart(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w; start it on another storage driver: %w", cause, err)
	}
	return nil
}

// onDriver returns the engine's configuration file with a storage driver of the engine's own, or, with "", with that
// which it chooses.
func onDriver(file *daemonjson.File, driver string) (*daemonjson.File, error) {
	edits := []daemonjson.Change{daemonjson.Delete("storage-opts"), daemonjson.Delete("storage-driver")}
	if driver != "" {
		edits[1] = daemonjson.Set("storage-driver", driver)
	}
	return file.Edit(edits...)
}

// manual says how the changes of a transaction are undone by hand, as shell commands in the order of undoing.
func (r *run) manual(t *transaction) []string {
	var files, rest []string
	for _, c := range slices.Backward(t.Changes) {
		switch command := r.command(&c); {
		case command == "":
		case c.ofFiles():
			files = append(files, command)
		default:
			rest = append(rest, command)
		}
	}
	if t.Reread {
		files = append(files, "systemctl restart "+quote(t.Unit))
	}
	if r.Service != nil { // containerd alone has none
		restart := r.Service.ByHand()
		if len(files) > 0 {
			files = append(files, restart)
		}
		if t.cut() {
			rest = append(rest, restart)
		}
	}
	if t.Restarted && len(t.Running) > 0 {
		rest = append(rest, "docker start "+strings.Join(t.Running, " "))
	}
	return append(files, rest...)
}
