package installer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/docker/api/types"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/installer/daemonjson"
)

// Wishes are what an install is to bring about. What isn't wished for stays as it is.
type Wishes struct {
	Name        string         // of the plugin
	Bundle      *bundle.Bundle // what the plugin is made of
	From        string         // or the reference in a registry it is installed from
	DataRoot    string         // the engine's data folder
	StorageOpts []string       // options of the driver, "name=value"
	Settings    []string       // of the plugin, "name=value"
	Folders     []string       // that the plugin's settings name; those that are missing are made
	// the engine and the plugin log what a maintainer wants to know, or not any more; nil: as it is
	Debug *bool
	File  string // the engine's configuration file
	Fix   bool   // comments and trailing commas are taken out of it
	// Preflight judges the host, once what was left half done is undone; variable tells that the engine wants the
	// drop-in.
	Preflight func(context.Context) (variable bool, err error)
	// Validate has the engine itself judge its configuration file as it is to be.
	Validate func(context.Context, *daemonjson.File) error
	Images   Images // that are run afterwards
}

// Names of the steps.
const (
	stepRecover   = "recover"
	stepUndo      = "undo"
	stepPreflight = "preflight"
	stepPlan      = "plan"
	stepFix       = "fix"
	stepRoot      = "data-root"
	stepFolder    = "folders"
	stepPlugin    = "plugin"
	stepSettings  = "settings"
	stepModes     = "modes"
	stepEnable    = "enable"
	stepFile      = "daemon.json"
	stepDropIn    = "drop-in"
	stepRestart   = "restart"
	stepDriver    = "driver"
	stepOrdinary  = "ordinary image"
	stepThin      = "thin image"
	stepImages    = "images"
	stepDisable   = "disable"
	stepKeep      = "keep"
	stepPurge     = "purge"
	stepReport    = "report"
)

// install is an install on its way.
type install struct {
	*run
	Wishes
	state  *engineState
	plugin *types.Plugin // nil: none yet
	file   *daemonjson.File
	next   *daemonjson.File
	dead   bool // the plugin is or was away while it was the driver: it serves again from the engine's next start on

	rescued bool // the engine could not start on the plugin

	variable bool // the engine wants the drop-in
}

// Install makes the plugin the engine's storage driver. With nothing to do it changes nothing; if a step fails,
// everything is as before. Its error is a [RolledBackError], a [StuckError], or that of a run that has changed nothing.
func (i *Installer) Install(ctx context.Context, w Wishes) error {
	r, err := i.start(ctx)
	if err != nil {
		return err
	}
	n := &install{run: r, Wishes: w}
	return errors.Join(n.do(ctx), r.rec.close())
}

// Plan reports what an install would do, and does nothing of it.
func (i *Installer) Plan(ctx context.Context, w Wishes) error {
	rec, err := readRecord(i.Record)
	if err != nil {
		return err
	}
	if t := rec.Open; t != nil {
		i.Tell(Event{stepPlan, Told, t.cutOff() + ": it would be undone first"})
	}
	n := &install{run: &run{Installer: i, rec: rec}, Wishes: w}
	if err := n.prepare(ctx, true); errors.Is(err, errDead) {
		return nil
	} else if err != nil {
		return err
	}
	will := n.intentions()
	if len(will) == 0 {
		will = []string{"nothing to do: everything is as requested"}
	}
	i.Tell(Event{stepPlan, Told, strings.Join(will, "\n")})
	return nil
}

// judge is the step before all others.
func (n *install) judge(ctx context.Context) error {
	return n.step(ctx, stepPreflight, func(ctx context.Context) (outcome Outcome, said string, err error) {
		n.variable, err = n.Preflight(ctx)
		return Done, "", err
	})
}

// prepare judges wishes and host, and finds out how things are and are to be. It has an engine run again that its
// storage driver keeps from starting; with dry, that is only told, and the error is errDead.
func (n *install) prepare(ctx context.Context, dry bool) error {
	if err := n.check(nil); err != nil {
		return err
	}
	n.recallOptions()
	if err := n.rescueDead(ctx, dry); err != nil {
		return err
	}
	if err := n.judge(ctx); err != nil {
		return err
	}
	return n.look(ctx)
}

func (n *install) do(ctx context.Context) error {
	if err := n.prepare(ctx, false); err != nil {
		return err
	}
	will := n.intentions()
	if len(will) > 0 {
		if err := n.Ask(ctx, will); err != nil {
			return err
		}
	}
	t := transaction{
		Operation: opInstall, Plugin: n.Name, Former: n.state.driver,
		Rescue: n.former(n.state.driver, n.Name), File: n.File,
	}
	err := n.transact(ctx, t, n.steps, func(t *transaction) {
		was := n.rec.Installed
		if was == nil || was.Plugin != n.Name {
			was = &installed{Plugin: n.Name}
		}
		if !was.Driver {
			was.Former = t.Rescue
		}
		was.Root, was.Log, was.Gone = n.state.root, n.Log, false
		was.Driver, was.Time, was.Changes = true, t.Time, append(was.Changes, t.Changes...)
		n.rec.Installed, n.rec.Options = was, nil
	})
	if err != nil {
		return err
	}
	switch {
	case n.byHand:
		n.Tell(Event{
			stepReport, Done,
			"restart the engine, then look whether it runs images: cvmfs-graphdriver test --name " + n.Name,
		})
	case len(will) == 0:
		n.Tell(Event{stepReport, Unchanged, "everything is as requested: nothing was changed"})
	default:
		n.Tell(Event{stepReport, Done, "the engine runs on " + n.Name + "; cvmfs-graphdriver uninstall goes back to " +
			n.rec.Installed.Former})
	}
	return nil
}

// look finds out how things are and how they are to be. It changes nothing.
func (n *install) look(ctx context.Context) (err error) {
	if _, err := bundle.CheckName(n.Name); err != nil {
		return err
	}
	if was := n.rec.Installed; was != nil && !sameDriver(was.Plugin, n.Name) {
		return fmt.Errorf("the plugin %[1]s is installed here: give --name %[1]s, or first run cvmfs-graphdriver uninstall --purge --name %[1]s, which removes its images",
			was.Plugin)
	}
	if n.state, err = n.Engine.state(ctx); err != nil {
		return err
	}
	if n.plugin, err = n.Engine.plugin(ctx, n.Name); err != nil {
		return err
	}
	if n.moves() && (n.plugin != nil || n.active()) {
		return fmt.Errorf("the plugin %s lies in the engine's data folder %s, with its images, and can't go to another one: leave --data-root out, "+
			"or first run cvmfs-graphdriver uninstall --purge, which removes the plugin and its images", n.Name,
			n.state.root)
	}
	if was := n.rec.Installed; was != nil && was.Root != "" && !was.Gone && !absent(was.Root) && !n.comesTo(was.Root) {
		return fmt.Errorf("the plugin %s lies in the engine's data folder %s, with its images: give that as --data-root, "+
			"or first run cvmfs-graphdriver uninstall --purge, which removes the plugin and its images", n.Name,
			was.Root)
	}
	if n.plugin != nil {
		if err := n.check(n.plugin); err != nil {
			return err
		}
	}
	n.dead = n.dead || n.active() && (n.plugin == nil || !n.plugin.Enabled)
	if n.file, err = daemonjson.Read(n.File); err != nil {
		return err
	}
	if n.next, err = n.fixed(); err != nil {
		return err
	}
	if problems := n.next.Problems(n.state.version); len(problems) > 0 {
		return unreadable(n.File, problems)
	}
	n.next, err = n.next.Edit(n.next.Wanted(daemonjson.Wishes{
		Driver: driverOf(n.Name), StorageOpts: n.StorageOpts, DataRoot: n.DataRoot, Debug: n.Debug,
	})...)
	if err == nil && n.next.Changed() {
		err = n.Validate(ctx, n.next)
	}
	return err
}

// unreadable is the error of a configuration file that the engine would not start with.
func unreadable(file string, problems []daemonjson.Problem) error {
	said := make([]string, len(problems))
	fix := true
	for i, p := range problems {
		said[i] = p.String()
		fix = fix && p.Fixable
	}
	remedy := "mend it first"
	if fix {
		remedy = "--fix takes comments and trailing commas out"
	}
	return fmt.Errorf("the engine would not start with %s: %s (%s)", file, strings.Join(said, "; "), remedy)
}

// fixed is the engine's configuration file without what the engine would reject, if that is wished for.
func (n *install) fixed() (*daemonjson.File, error) {
	if !n.Fix {
		return n.file, nil
	}
	return n.file.Fixed()
}

// intentions are what will be done, for people; none if all is as wished.
func (n *install) intentions() []string {
	var will []string
	if n.moves() {
		will = append(will, fmt.Sprintf("restart the engine with its data in %s; what is in %s stays there and isn't shown", n.DataRoot, n.state.root))
	}
	for _, folder := range n.missing() {
		will = append(will, "make the folder "+folder)
	}
	if n.plugin == nil {
		will = append(will, "create and enable the plugin "+n.Name)
	} else {
		if different := n.different(); len(different) > 0 {
			will = append(will, "set "+strings.Join(different, " ")+" of the plugin "+n.Name)
		}
		if !n.plugin.Enabled {
			will = append(will, "enable the plugin "+n.Name)
		}
		if n.state.remapped && len(n.barred(n.state.root, n.plugin.ID)) > 0 {
			will = append(will, "open the plugin's folders to the root of containers")
		}
	}
	if n.needsDropIn() {
		will = append(will, "write "+n.Service.DropIn())
	}
	if n.next.Changed() {
		will = append(will, "write "+n.File+":\n"+daemonjson.Diff(n.file, n.next))
	}
	if n.needsDropIn() || n.next.Changed() || !n.active() || n.dead || n.plugin != nil &&
		(!n.plugin.Enabled || len(n.different()) > 0) {
		will = append(will, n.restartIntention(n.state, n.active()))
	}
	return will
}

// restartIntention says that the engine is restarted, and what becomes of containers; again tells that they can be run
// afterwards.
func (r *run) restartIntention(s *engineState, again bool) string {
	stop := ""
	if s.containers > 0 {
		stop = fmt.Sprintf("; running containers stop: %d, which are started again if this fails", s.containers)
		if again {
			stop = fmt.Sprintf("; running containers stop and are started again: %d", s.containers)
		}
		stop += "; those that were run with --rm are gone then"
	}
	return "restart the engine (" + r.Service.ByHand() + ")" + stop
}

func (n *install) active() bool { return sameDriver(n.state.driver, n.Name) }

// moves reports whether the engine's data are to lie elsewhere. A remapped user's lie one folder below.
func (n *install) moves() bool {
	root := n.state.root
	if n.state.remapped {
		root = filepath.Dir(root)
	}
	return n.DataRoot != "" && filepath.Clean(n.DataRoot) != root
}

// comesTo reports whether the engine's data are in a folder when the install is through.
func (n *install) comesTo(root string) bool {
	if n.moves() {
		return filepath.Clean(n.DataRoot) == root || remapped.MatchString(filepath.Base(root)) &&
			filepath.Clean(n.DataRoot) == filepath.Dir(root)
	}
	return n.state.root == root
}

func (n *install) needsDropIn() bool {
	return n.variable && n.Service.DropIn() != "" && absent(n.Service.DropIn())
}

// missing are the folders that the plugin's settings name and that aren't there.
func (n *install) missing() []string {
	var missing []string
	for _, folder := range n.Folders {
		if absent(folder) && !slices.Contains(missing, folder) {
			missing = append(missing, folder)
		}
	}
	return missing
}

func absent(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// different are the settings the plugin doesn't have yet.
func (n *install) different() []string {
	var different []string
	for _, s := range n.Settings {
		key, value, _ := strings.Cut(s, "=")
		if has, ok := setting(n.plugin, key); !ok || has != value {
			different = append(different, s)
		}
	}
	return different
}

// setting returns a setting of a plugin, by name or by "name.field" as the engine has it.
func setting(p *types.Plugin, key string) (string, bool) {
	name, _, _ := strings.Cut(key, ".")
	for _, m := range p.Settings.Mounts {
		if m.Name == name && m.Source != nil {
			return *m.Source, true
		}
	}
	for _, d := range p.Settings.Devices {
		if d.Name == name && d.Path != nil {
			return *d.Path, true
		}
	}
	for _, e := range p.Settings.Env {
		if k, v, _ := strings.Cut(e, "="); k == name {
			return v, true
		}
	}
	return "", false
}

// former is the storage driver that an uninstall goes back to, "" if it isn't known.
func (r *run) former(now, name string) string {
	if !sameDriver(now, name) {
		return now
	}
	if was := r.rec.Installed; was != nil {
		return was.Former
	}
	return ""
}

// archive is what the engine makes the plugin of.
func (n *install) archive() io.ReadCloser { return piped(n.Bundle.WriteContext) }
