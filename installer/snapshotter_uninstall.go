package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/installer/daemonjson"
)

// SnapshotterLeave is what an uninstall of the snapshotter is to do.
type SnapshotterLeave struct {
	Force bool   // containers that have their files from it lose them
	Purge bool   // its folder goes, with all it has fetched
	Root  string // that folder
}

// HasSnapshotter reports whether a record says that the snapshotter is installed, and whether a run that was to install
// it or to take it back was cut off.
func HasSnapshotter(record string) (has, cutOff bool, err error) {
	r, err := readRecord(record)
	if err != nil {
		return false, false, err
	}
	return r.Snapshotter != nil, r.Open != nil && r.Open.Snapshotter, nil
}

// departure is an uninstall of the snapshotter on its way.
type departure struct {
	*run
	SnapshotterLeave
	was    *installed
	docker *change // of the engine's configuration file, nil for none
	down   bool    // the engine doesn't start, as containerd doesn't know its storage driver any more
}

// UninstallSnapshotter has Docker's engine run on its former storage driver again, removes what containerd has unpacked
// with the snapshotter, while both run, and then takes it out of containerd's configuration. What can't be done fails
// before anything is removed; from then on nothing is undone any more, and another uninstall goes on with what is left.
func (i *Installer) UninstallSnapshotter(ctx context.Context, l SnapshotterLeave) error {
	r, err := i.start(ctx)
	if err != nil {
		return err
	}
	d := &departure{run: r, SnapshotterLeave: l}
	return errors.Join(d.do(ctx), r.rec.close())
}

func (d *departure) do(ctx context.Context) error {
	if d.was = d.rec.Snapshotter; d.was == nil {
		d.Tell(Event{stepReport, Unchanged, "nothing to uninstall: the snapshotter was not installed by this program"})
		return nil
	}
	for i := range d.was.Changes {
		if d.was.Changes[i].Kind == daemonJSON {
			d.docker = &d.was.Changes[i]
		}
	}
	if d.docker != nil && d.was.Driver && d.Service == nil {
		return errors.New("the engine that was told of the snapshotter isn't on this host any more, or doesn't run: start it")
	}
	if d.docker != nil && d.was.Driver {
		var err error
		if _, d.down, err = d.stateOrDown(ctx, d.docker.Backup.Path); err != nil {
			return err
		}
	}
	uses, err := d.uses(ctx)
	if err != nil {
		return err
	}
	will := []string{"remove all that is unpacked with " + SnapshotterName, "take it out of containerd's configuration, and restart " +
		d.was.Unit}
	if d.docker != nil && d.was.Driver {
		will = append([]string{"run the engine on " + d.was.Former + " again (" + d.Service.ByHand() + ")"}, will...)
	}
	if len(uses) > 0 {
		will = append(will, "these lose their files: "+strings.Join(uses, ", "))
	}
	if d.Purge {
		will = append(will, "remove "+d.Root)
	}
	if err := d.Ask(ctx, will); err != nil {
		return err
	}
	for _, do := range []func(context.Context) error{d.leaveDocker, d.empty, d.forget} {
		if err := do(ctx); err != nil {
			return err
		}
	}
	d.Tell(Event{stepReport, Done, "the snapshotter is uninstalled"})
	return nil
}

// uses returns the containers that lose their files, which takes Force.
func (d *departure) uses(ctx context.Context) ([]string, error) {
	if !slices.ContainsFunc(d.was.Changes, func(c change) bool { return c.Kind == containerdWritten }) {
		return nil, nil // containerd has forgotten it
	}
	if err := d.Containerd.Serves(ctx, SnapshotterName, false); err != nil { // as it has to, to let go of snapshots
		return nil, fmt.Errorf("%w; \"cvmfs-graphdriver install\" mends that, then uninstall", err)
	}
	if err := d.Containerd.Clear(ctx); err != nil {
		return nil, err
	}
	uses, err := d.Containerd.Uses(ctx, SnapshotterName)
	if err == nil && d.down && !d.Force {
		return nil, errors.New("no engine answers: containers that it alone knows of would lose their files: mend it (\"cvmfs-graphdriver " +
			"install\"), or give --force")
	}
	if err == nil && d.docker != nil && d.was.Driver && !d.down {
		var all []string
		all, err = d.Engine.all(ctx) // containerd knows of those that run alone
		uses = append(uses, all...)
	}
	if err == nil && len(uses) > 0 && !d.Force {
		err = fmt.Errorf("containers have their files from the snapshotter: %s: remove them, or give --force",
			strings.Join(uses, ", "))
	}
	return uses, err
}

// leaveDocker has Docker's engine run on its former storage driver. If it doesn't, all is as before.
func (d *departure) leaveDocker(ctx context.Context) error {
	if d.docker == nil || !d.was.Driver {
		return nil
	}
	s, down, err := d.stateOrDown(ctx, d.docker.Backup.Path)
	if err != nil {
		return err
	}
	b := d.docker.Backup
	now, err := daemonjson.Read(b.Path)
	if err != nil {
		return err
	}
	next, kept, err := now.Undo(b.Before, b.After)
	if err != nil {
		return err
	}
	if len(kept) > 0 {
		d.Tell(Event{stepFile, Told, fmt.Sprintf("%s: %v was changed since the install and stays as it is", b.Path, kept)})
	}
	t := transaction{
		Operation: opUninstall, Plugin: SnapshotterName, Former: s.driver, File: b.Path, Snapshotter: true,
		Unit: d.was.Unit, Down: down,
	}
	back := func(ctx context.Context) error {
		if !next.Changed() {
			return nil
		}
		err := d.step(ctx, stepFile, func(ctx context.Context) (Outcome, string, error) {
			said, err := d.write(ctx, next)
			return Done, said, err
		})
		if err != nil {
			return err
		}
		if err := d.step(ctx, stepRestart, d.restartStep); err != nil {
			return err
		}
		return d.step(ctx, stepDriver, func(ctx context.Context) (Outcome, string, error) {
			s, err := d.drives(ctx, d.was.Former)
			if err != nil {
				return Failed, "", err
			}
			return Done, "the engine " + s.version + " runs on " + s.driver, nil
		})
	}
	return d.transact(ctx, t, back, func(t *transaction) {
		d.was.Driver = false
		d.discard(t, b)
		d.was.Changes = slices.DeleteFunc(d.was.Changes, func(c change) bool { return c.Kind == daemonJSON })
	})
}

// discard removes the backups of a file that is as before.
func (d *departure) discard(t *transaction, install *daemonjson.Backup) {
	err := install.Discard()
	for _, c := range t.Changes {
		if c.Backup != nil {
			err = errors.Join(err, c.Backup.Discard())
		}
	}
	if err != nil {
		d.Tell(Event{stepFile, Told, err.Error()})
	}
}

// empty removes what containerd has of the snapshotter, as long as both know of it.
func (d *departure) empty(ctx context.Context) error {
	if !slices.ContainsFunc(d.was.Changes, func(c change) bool { return c.Kind == containerdWritten }) {
		return nil
	}
	return d.step(ctx, stepSnapshots, func(ctx context.Context) (Outcome, string, error) {
		n, err := d.Containerd.Empty(ctx, SnapshotterName)
		return Done, fmt.Sprintf("%d removed", n), err
	})
}

// forget undoes what is left, and notes each change that is: containerd's files with its restart first.
func (d *departure) forget(ctx context.Context) error {
	d.rec.Open = &transaction{
		Operation: opUninstall, Plugin: SnapshotterName, Snapshotter: true, Unit: d.was.Unit, Down: true,
		Time: time.Now().UTC().Truncate(time.Second), Changes: d.was.Changes, Reread: true,
	}
	d.rec.Snapshotter = nil
	if err := d.rec.save(); err != nil {
		return err
	}
	err := d.step(ctx, stepContainerd, func(ctx context.Context) (Outcome, string, error) {
		return Done, "as before", d.undoSnapshotter(ctx, d.rec.Open)
	})
	if err == nil && d.Purge {
		err = d.step(ctx, stepPurge, func(context.Context) (Outcome, string, error) {
			return Done, d.Root, removeTree(d.Root)
		})
	}
	if err != nil {
		return err
	}
	d.rec.Open = nil
	return d.rec.save()
}

// removeTree removes a folder in which a service that has ended may have left mounts. One that is the administrator's
// mount itself is emptied.
func removeTree(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("look for mounts below %s: %w", dir, err)
	}
	own := false
	for _, m := range slices.Backward(mounts) { // the last one is mounted on others
		if m.Mountpoint == dir {
			own = true
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil && (!own || !errors.Is(err, unix.EBUSY)) {
		return err
	}
	return nil
}
