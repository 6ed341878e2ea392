package installer

import (
	"context"
	"errors"
	"fmt"

	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/installer/daemonjson"
)

// notOurs is the error of an engine that doesn't answer, and whose storage driver isn't the reason as far as can be
// told.
func (i *Installer) notOurs(file, name string) error {
	return fmt.Errorf("no engine answers at %s, and %s doesn't name %s as storage driver: start the engine first",
		i.Engine.api.DaemonHost(), file, name)
}

// checkDead makes sure that an engine that doesn't answer is one that its storage driver keeps from starting, as far as
// can be told: another one's files are left alone, and it is not restarted.
func (i *Installer) checkDead(ctx context.Context, file *daemonjson.File, name string) error {
	if !sameDriver(pluginIn(file), name) {
		return i.notOurs(file.Path, name)
	}
	if running := i.Service.Running(ctx, file); running != nil {
		return fmt.Errorf("no engine answers at %s, and %s runs: name its socket with --host; if the engine hangs, stop it first: %s",
			i.Engine.api.DaemonHost(), running.What, running.Stop)
	}
	return nil
}

// rescueDead has an engine run again that doesn't, with the plugin as storage driver that it can't start on: on the
// former storage driver. The install then goes on as on any host. With dry it only tells so.
func (n *install) rescueDead(ctx context.Context, dry bool) error {
	down, err := n.Engine.down(ctx)
	if err != nil || !down {
		return err
	}
	file, err := daemonjson.Read(n.File)
	if err != nil {
		return err
	}
	if err := n.checkDead(ctx, file, n.Name); err != nil {
		return err
	}
	former := n.former(n.Name, n.Name)
	next, err := onDriver(file, former)
	if err != nil {
		return err
	}
	n.keepOptions(file)
	will := []string{
		fmt.Sprintf("the engine doesn't answer, and its storage driver is the plugin %s: it is started on %s first",
			n.Name, orItsChoice(former)),
		"write " + n.File + ":\n" + daemonjson.Diff(file, next),
	}
	if dry {
		n.Tell(Event{stepPlan, Told, will[0] + "\n" + will[1]})
		return errDead
	}
	if err := n.Ask(ctx, will); err != nil {
		return err
	}
	t := transaction{Operation: opInstall, Plugin: n.Name, Former: n.Name, Rescue: former, File: n.File, Down: true}
	err = n.transact(ctx, t, func(ctx context.Context) error { return n.startElsewhere(ctx, next) },
		func(t *transaction) {
			n.rec.Options = n.StorageOpts
			if was := n.rec.Installed; was != nil && sameDriver(was.Plugin, n.Name) {
				was.Changes = append(was.Changes, t.Changes...)
			}
		})
	if err == nil && n.byHand {
		err = fmt.Errorf("the engine must be started: %s, and then run this command again", n.Service.ByHand())
	}
	n.rescued = err == nil
	return err
}

// errDead ends a plan for an engine that doesn't answer: more can't be told of it.
var errDead = errors.New("the engine doesn't answer")

func orItsChoice(driver string) string {
	if driver == "" {
		return "the storage driver it chooses"
	}
	return "the storage driver " + driver
}

// startElsewhere writes the configuration file and has the engine start with it.
func (n *install) startElsewhere(ctx context.Context, file *daemonjson.File) error {
	err := n.step(ctx, stepFile, func(ctx context.Context) (Outcome, string, error) {
		said, err := n.write(ctx, file)
		return Done, said, err
	})
	if err != nil {
		return err
	}
	return n.step(ctx, stepRestart, n.restartStep)
}

// keepOptions makes wishes of the driver's options in a file, which it loses for a while. Those that keep the engine
// from starting go.
func (n *install) keepOptions(file *daemonjson.File) {
	var kept []string
	for _, o := range daemonjson.DriverOptions(file.Strings("storage-opts"), n.StorageOpts) {
		if options.Check(o) == nil {
			kept = append(kept, o)
		}
	}
	n.StorageOpts = kept
}

// recallOptions makes wishes of the options that a run which was given up after it had an engine run again has left.
func (n *install) recallOptions() {
	if len(n.rec.Options) > 0 {
		n.StorageOpts = daemonjson.DriverOptions(n.rec.Options, n.StorageOpts)
	}
}

// mend puts the bundle in the place of the plugin that can't be enabled; its layers and settings stay.
func (n *install) mend(ctx context.Context, cause error) error {
	if n.Bundle == nil {
		return cause
	}
	n.Tell(Event{stepEnable, Told, cause.Error() + ": it is replaced with version " + n.Bundle.Build.Version +
		"; its images stay"})
	c := change{Kind: pluginMended, Plugin: n.Name}
	err := n.change(ctx, c, func(ctx context.Context) error { return n.replace(ctx, n.Name, n.Bundle, allowed) })
	if err == nil {
		err = n.Engine.enablePlugin(ctx, n.Name)
	}
	return err
}
