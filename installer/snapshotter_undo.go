package installer

import (
	"context"
	"slices"
)

// undoSnapshotter brings the host back to where a transaction of the snapshotter began. The files of engine and
// containerd come first, then their restarts, the snapshotter last: until then its snapshots are answered for.
func (r *run) undoSnapshotter(ctx context.Context, t *transaction) error {
	if err := r.Containerd.Clear(ctx); err != nil { // while containerd knows the snapshotter, if it runs at all
		r.Tell(Event{stepUndo, Told, err.Error()})
	}
	changes := slices.Clone(t.Changes)
	read := func(c *change) bool { return c.Kind == daemonJSON || c.Kind == containerdWritten }
	if err := r.undoThose(ctx, changes, read); err != nil {
		return err
	}
	if t.Reread {
		if err := r.restartContainerd(ctx); err != nil {
			return err
		}
	}
	if t.Restarted && !t.Down {
		if err := r.restartUndoing(ctx); err != nil {
			return err
		}
	}
	again := func(c *change) bool { return c.Kind == unitRestarted } // with the definition and settings of before
	if err := r.undoThose(ctx, changes, func(c *change) bool { return !read(c) && !again(c) }); err != nil {
		return err
	}
	if err := r.undoThose(ctx, changes, again); err != nil {
		return err
	}
	if t.Down {
		return r.Containerd.Ready(ctx)
	}
	_, err := r.drives(ctx, t.Former)
	if err == nil {
		r.startAgain(ctx, t)
	}
	return err
}
