package installer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/internal/program"
)

// DefaultName is the plugin's name, and the storage driver's, if no other is wished for.
const DefaultName = "cvmfs-graphdriver"

// Service restarts the engine and keeps the drop-in with the variable that engine 27 wants in its environment.
type Service interface {
	// Restart returns when the engine answers again. The error of one that does not has the cause the engine's log
	// tells.
	Restart(ctx context.Context, ping func(context.Context) error) error
	// Running returns the engine that runs by what the host says, nil where none does, or the host doesn't say.
	Running(ctx context.Context, file *daemonjson.File) *Running
	// ByHand is the shell command that restarts the engine.
	ByHand() string
	// DropIn is the drop-in's path, "" where there can be none.
	DropIn() string
	WriteDropIn(ctx context.Context) error
	RemoveDropIn(ctx context.Context) error
}

// Running is an engine that runs, for people.
type Running struct {
	What string // as in "docker.service"
	Stop string // the shell command that stops it
}

// ErrNoRestart is the error of a [Service] that leaves restarting the engine to the user.
var ErrNoRestart = errors.New("the engine is to be restarted by hand")

// Installer works on one host.
type Installer struct {
	Engine     *Engine
	Service    Service
	Units      Units       // of the snapshotter and containerd
	Containerd Containerd  // nil: there is none, and nothing of the snapshotter is to be done
	Record     string      // path of the record
	Log        string      // file that the engine's log goes to, "" for none
	Hello      string      // path of a static program that calls [Hello] when called with [HelloCommand] and a word
	Tell       func(Event) // is told of each step
	// Ask has the user confirm what is about to be done: lines that say what, for people.
	Ask func(ctx context.Context, what []string) error

	inject func(point string) error // tests fail or end a run here
}

// Outcome is how a step stands.
type Outcome string

// The outcomes. A step begins, may wait, and ends with one of the others.
const (
	Begins    Outcome = "begins"
	Waits     Outcome = "waits" // told now and then
	Done      Outcome = "done"
	Unchanged Outcome = "unchanged" // all was as it should be
	Skipped   Outcome = "skipped"
	Failed    Outcome = "failed"
	Told      Outcome = "note" // no step: something worth knowing
)

// Event is news of a run.
type Event struct {
	Step    string  `json:"step"`
	Outcome Outcome `json:"outcome"`
	Text    string  `json:"text,omitempty"`
}

// RolledBackError is the error of a run that failed and has undone its changes: the host is as before.
type RolledBackError struct {
	Cause error
	Where string // what the host has been brought back to
}

func (e *RolledBackError) Error() string {
	return fmt.Sprintf("%v; rolled back: %s", e.Cause, e.Where)
}

// ExitCode is that of a program which ends with this error.
func (e *RolledBackError) ExitCode() int { return program.RolledBack }

func (e *RolledBackError) Unwrap() error { return e.Cause }

// StuckError is the error of a run that failed and could not undo its changes.
type StuckError struct {
	Cause  error // why the run failed
	Undo   error // why undoing did
	ByHand []string
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("%v; ROLLING BACK FAILED, the host is between before and after: %v\n"+
		"the next run tries again to undo it; to do it by hand:\n  %s", e.Cause, e.Undo, strings.Join(e.ByHand, "\n  "))
}

func (e *StuckError) Unwrap() []error { return []error{e.Cause, e.Undo} }

// run is one install, upgrade or uninstall.
type run struct {
	*Installer
	rec    *record
	byHand bool // the engine is restarted by the user, later
}

// start takes the record and undoes what an earlier run has left half done.
func (i *Installer) start(ctx context.Context) (*run, error) {
	rec, err := openRecord(i.Record)
	if err != nil {
		return nil, err
	}
	r := &run{Installer: i, rec: rec}
	if t := rec.Open; t != nil {
		cause := errors.New(t.cutOff())
		r.Tell(Event{stepRecover, Told, cause.Error() + ": its changes are undone first"})
		if err := r.undoOpen(ctx, cause); err != nil {
			return nil, errors.Join(err, rec.close())
		}
	}
	return r, nil
}

// step does a step and tells of it.
func (i *Installer) step(ctx context.Context, name string, do func(context.Context) (Outcome, string, error)) error {
	i.Tell(Event{name, Begins, ""})
	outcome, text, err := do(ctx)
	if err != nil {
		i.Tell(Event{name, Failed, err.Error()})
		return err
	}
	i.Tell(Event{name, outcome, text})
	return nil
}

// change makes a change, which is in the record before it is begun.
func (r *run) change(ctx context.Context, c change, do func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.rec.Open.Changes = append(r.rec.Open.Changes, c)
	if err := r.rec.save(); err != nil {
		return err
	}
	if err := r.at("before: " + string(c.Kind)); err != nil {
		return err
	}
	if err := do(ctx); err != nil {
		return err
	}
	return r.at("after: " + string(c.Kind))
}

// at is a point where a test may fail or end the run.
func (r *run) at(point string) error {
	if r.inject == nil {
		return nil
	}
	return r.inject(point)
}

// restart restarts the engine; the record knows from then on that it may have read its new configuration.
func (r *run) restart(ctx context.Context) error {
	r.rec.Open.Restarted = true
	if err := r.rec.save(); err != nil {
		return err
	}
	if err := r.at("before: restart"); err != nil {
		return err
	}
	if err := r.Service.Restart(ctx, r.Engine.Ping); err != nil {
		return err
	}
	return r.at("after: restart")
}

// drives makes sure that the engine runs on a storage driver.
func (i *Installer) drives(ctx context.Context, driver string) (*engineState, error) {
	s, err := i.Engine.state(ctx)
	if err == nil && !sameDriver(s.driver, driver) {
		err = fmt.Errorf("the engine runs on the storage driver %s, not on %s: a flag of its command line, or another configuration file, says otherwise", s.driver, driver)
	}
	return s, err
}

// driverOf is what the engine calls the storage driver that a plugin of a name is.
func driverOf(name string) string {
	if driver, err := bundle.CheckName(name); err == nil {
		return driver
	}
	return name // a driver of the engine's own
}

// sameDriver compares storage drivers, which may be plugins' names; those have a tag that goes without saying.
func sameDriver(a, b string) bool {
	return strings.TrimSuffix(driverOf(a), ":latest") == strings.TrimSuffix(driverOf(b), ":latest")
}

// transact runs steps that change the host. If one fails, all changes are undone. commit brings the record to what is
// then true.
func (r *run) transact(ctx context.Context, t transaction, steps func(context.Context) error,
	commit func(*transaction),
) error {
	t.Time = time.Now().UTC().Truncate(time.Second)
	if !t.Down {
		var err error
		if t.Running, err = r.Engine.running(ctx); err != nil {
			return err
		}
	}
	r.rec.Open = &t
	if err := steps(ctx); err != nil {
		if len(t.Changes) == 0 && !t.Restarted {
			r.rec.Open = nil
			return err
		}
		r.Tell(Event{stepUndo, Told, "undoing the changes"})
		// Also when the user has interrupted the run.
		if stuck := r.undoOpen(context.WithoutCancel(ctx), err); stuck != nil {
			return stuck
		}
		return &RolledBackError{err, r.describe(&t)}
	}
	if len(t.Changes) == 0 && !t.Restarted {
		r.rec.Open = nil
		return nil
	}
	if t.stays() && !r.byHand {
		r.startAgain(ctx, &t)
	}
	commit(&t)
	r.rec.Open = nil
	if err := r.at("before: commit"); err != nil {
		return err
	}
	return r.rec.save()
}

// describe says where a transaction's undoing has led.
func (r *run) describe(t *transaction) string {
	said := "the engine runs on the storage driver " + t.Former + " as before"
	switch {
	case t.Down && t.Snapshotter:
		said = "containerd runs as before"
	case t.Down:
		said = "the engine does not answer, as before"
	}
	if slices.ContainsFunc(t.Changes, func(c change) bool { return c.Kind == daemonJSON }) {
		said += ", its configuration file is the former one"
	}
	if slices.ContainsFunc(t.Changes, func(c change) bool { return c.Kind == pluginMade }) {
		said += ", the plugin is removed"
	}
	return said
}
