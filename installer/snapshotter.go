package installer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/daemonjson"
)

// Names of what the snapshotter is on a host.
const (
	SnapshotterName     = "cvmfs" // as containerd and Docker know it
	SnapshotterUnit     = "cvmfs-snapshotter.service"
	SnapshotterSocket   = "/run/cvmfs-snapshotter/cvmfs-snapshotter.sock"
	SnapshotterRoot     = "/var/lib/cvmfs-snapshotter"
	SnapshotterSettings = "/etc/cvmfs-snapshotter/config.json"
)

// Units are the services of a host, by the names of their units.
type Units interface {
	// Restart starts a unit, anew if it is active. It returns when the unit says that it is ready, or has failed.
	Restart(ctx context.Context, unit string) error
	Stop(ctx context.Context, unit string) error
	// Enable has a unit started with the host, and Disable not any more.
	Enable(ctx context.Context, unit string) error
	Disable(ctx context.Context, unit string) error
	// Reload makes changed definitions count.
	Reload(ctx context.Context) error
	// State reports how a unit is. One that isn't there is neither.
	State(ctx context.Context, unit string) (active, enabled bool, err error)
}

// Containerd is one that runs on this host.
type Containerd interface {
	// Ready waits until it answers.
	Ready(ctx context.Context) error
	// Serves asks for an answer of a snapshotter by way of containerd; with cri also whether Kubernetes' part of that
	// works.
	Serves(ctx context.Context, snapshotter string, cri bool) error
	// Uses returns the pods and containers that have their files from a snapshotter, for people.
	Uses(ctx context.Context, snapshotter string) ([]string, error)
	// Empty removes all snapshots of a snapshotter, children before parents.
	Empty(ctx context.Context, snapshotter string) (removed int, err error)
	// Run has an image unpacked by a snapshotter, runs it to its end, or for a while, and removes it all. It returns
	// what was said and the exit code.
	Run(ctx context.Context, snapshotter string, t containerd.Trial) (said string, code int, err error)
	// Clear removes what a run of an image has left that was killed.
	Clear(ctx context.Context) error
}

// Text is a configuration file and what it is to say.
type Text struct {
	Path    string
	Content []byte
}

// SnapshotterWishes are what an install of the snapshotter is to bring about.
type SnapshotterWishes struct {
	Settings     []daemonjson.Change // of the snapshotter
	SettingsFile string              // the file that has them
	Unit         *Text               // the definition of its service; nil: a package has brought it
	Config       []Text              // containerd's files, in the order in which they are written
	ConfigUnit   string              // the unit of containerd
	CRI          bool                // Kubernetes' images are unpacked by the snapshotter, too
	File         string              // Docker's configuration file; "": no engine of Docker's is meant
	Images       Images              // that are run afterwards: by Docker, or by containerd where no engine is meant
	Renew        bool                // the service is restarted, as its program is another
	// Preflight judges the host, once what was left half done is undone.
	Preflight func(ctx context.Context) error
}

// Names of the snapshotter's steps.
const (
	stepService    = "snapshotter"
	stepContainerd = "containerd"
	stepServes     = "introspection"
	stepSnapshots  = "snapshots"
)

// edit is a file as it is and as it is to be.
type edit struct{ was, next *daemonjson.File }

func (e *edit) changed() bool { return e != nil && e.next.Changed() }

// second is an install of the snapshotter on its way.
type second struct {
	*run
	SnapshotterWishes
	state    *engineState // nil: no engine of Docker's is meant
	settings *edit
	unit     *edit // nil: a package has brought it
	config   []*edit
	file     *edit // nil: no engine of Docker's is meant
	down     bool  // the engine doesn't start, as containerd doesn't know its storage driver any more
	active   bool  // the service runs
	enabled  bool  // and is started with the host
}

// InstallSnapshotter has containerd, and Docker on top of it, unpack images with the snapshotter. Its errors are those
// of [Installer.Install].
func (i *Installer) InstallSnapshotter(ctx context.Context, w SnapshotterWishes) error {
	r, err := i.start(ctx)
	if err != nil {
		return err
	}
	s := &second{run: r, SnapshotterWishes: w}
	return errors.Join(s.do(ctx), r.rec.close())
}

// PlanSnapshotter reports what an install of the snapshotter would do, and does nothing of it.
func (i *Installer) PlanSnapshotter(ctx context.Context, w SnapshotterWishes) error {
	rec, err := readRecord(i.Record)
	if err != nil {
		return err
	}
	if t := rec.Open; t != nil {
		i.Tell(Event{stepPlan, Told, t.cutOff() + ": it would be undone first"})
	}
	s := &second{run: &run{Installer: i, rec: rec}, SnapshotterWishes: w}
	if err := s.look(ctx); err != nil {
		return err
	}
	will := s.intentions()
	if len(will) == 0 {
		will = []string{"nothing to do: everything is as requested"}
	}
	i.Tell(Event{stepPlan, Told, strings.Join(will, "\n")})
	return nil
}

// look finds out how things are and how they are to be. It changes nothing.
func (s *second) look(ctx context.Context) (err error) {
	err = s.step(ctx, stepPreflight, func(ctx context.Context) (Outcome, string, error) {
		return Done, "", s.Preflight(ctx)
	})
	if err != nil {
		return err
	}
	if was := s.rec.Installed; was != nil && was.Driver && s.File != "" {
		return fmt.Errorf("the plugin %s is this host's storage driver: give --migrate, which uninstalls it and pulls what ran, or "+
			"first run cvmfs-graphdriver uninstall", was.Plugin)
	}
	if s.active, s.enabled, err = s.Units.State(ctx, SnapshotterUnit); err != nil {
		return err
	}
	s.settings, err = read(s.SettingsFile, func(f *daemonjson.File) (*daemonjson.File, error) {
		return f.Edit(s.Settings...)
	})
	if err != nil {
		return err
	}
	if s.Unit != nil {
		if s.unit, err = s.Unit.read(); err != nil {
			return err
		}
	}
	s.config = nil
	for _, t := range s.Config {
		e, err := t.read()
		if err != nil {
			return err
		}
		s.config = append(s.config, e)
	}
	if s.File == "" {
		return nil
	}
	if s.state, s.down, err = s.stateOrDown(ctx, s.File); err != nil {
		return err
	}
	s.file, err = read(s.File, s.onSnapshotter)
	return err
}

// stateOrDown returns the engine's state. One that doesn't answer must be one that the snapshotter keeps from starting.
func (r *run) stateOrDown(ctx context.Context, path string) (s *engineState, down bool, err error) {
	if down, err = r.Engine.down(ctx); err != nil {
		return nil, false, err
	}
	if !down {
		s, err = r.Engine.state(ctx)
		return s, false, err
	}
	file, err := daemonjson.Read(path)
	if err == nil {
		err = r.checkDead(ctx, file, SnapshotterName)
	}
	return &engineState{}, true, err
}

// read reads a file and says how it is to be.
func read(path string, change func(*daemonjson.File) (*daemonjson.File, error)) (*edit, error) {
	was, err := daemonjson.Read(path)
	if err != nil {
		return nil, err
	}
	next, err := change(was)
	return &edit{was, next}, err
}

func (t *Text) read() (*edit, error) {
	return read(t.Path, func(f *daemonjson.File) (*daemonjson.File, error) { return f.With(t.Content), nil })
}

// onSnapshotter returns Docker's configuration file with containerd's image store, and the snapshotter in it.
func (s *second) onSnapshotter(f *daemonjson.File) (*daemonjson.File, error) {
	if problems := f.Problems(s.state.version); len(problems) > 0 {
		return nil, unreadable(s.File, problems)
	}
	features := map[string]json.RawMessage{}
	if value, ok := f.Get("features"); ok {
		if err := json.Unmarshal(value, &features); err != nil {
			return nil, fmt.Errorf("read features in %s: %w", s.File, err)
		}
	}
	features["containerd-snapshotter"] = json.RawMessage("true")
	value, err := json.Marshal(features)
	if err != nil {
		return nil, err
	}
	return f.Edit(daemonjson.Change{Key: "features", Value: value}, daemonjson.Set("storage-driver", SnapshotterName))
}

// changed reports whether containerd is to read something new.
func (s *second) changed() bool { return slices.ContainsFunc(s.config, (*edit).changed) }

// serviceChanged reports whether the snapshotter is to.
func (s *second) serviceChanged() bool {
	return s.Renew || !s.active || s.settings.changed() || s.unit.changed()
}

// docker reports whether Docker's engine doesn't run on the snapshotter yet.
func (s *second) docker() bool {
	return s.file != nil && (s.file.changed() || s.state.driver != SnapshotterName)
}

// intentions are what will be done, for people; none if all is as wished.
func (s *second) intentions() []string {
	var will []string
	for _, e := range slices.Concat([]*edit{s.settings, s.unit}, s.config, []*edit{s.file}) {
		if e.changed() {
			will = append(will, "write "+e.was.Path+":\n"+daemonjson.Diff(e.was, e.next))
		}
	}
	if s.serviceChanged() || !s.enabled {
		will = append(will, "enable and start "+SnapshotterUnit+" (anew, if it runs; containers go on)")
	}
	if s.changed() {
		will = append(will, "restart "+s.ConfigUnit+"; containers go on")
	}
	if s.docker() {
		if s.state.driver != SnapshotterName && !s.down {
			will = append(will, fmt.Sprintf("run the engine on %s; the images (%d) and containers of %s stay there and aren't shown",
				SnapshotterName, s.state.images, s.state.driver))
		}
		will = append(will, s.restartIntention(s.state, s.state.driver == SnapshotterName))
	}
	return will
}

func (s *second) do(ctx context.Context) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	will := s.intentions()
	if len(will) > 0 {
		if err := s.Ask(ctx, will); err != nil {
			return err
		}
	}
	t := transaction{
		Operation: opInstall, Plugin: SnapshotterName, File: s.File, Snapshotter: true, Unit: s.ConfigUnit,
		Down: s.state == nil || s.down,
	}
	if s.state != nil {
		t.Former = s.state.driver
	}
	err := s.transact(ctx, t, s.steps, func(t *transaction) {
		was := s.rec.Snapshotter
		if was == nil {
			was = &installed{Plugin: SnapshotterName, Former: t.Former, Unit: t.Unit}
		}
		was.Driver, was.Time, was.Changes = true, t.Time, append(was.Changes, t.Changes...)
		s.rec.Snapshotter = was
	})
	if err != nil {
		return err
	}
	if len(will) == 0 {
		s.Tell(Event{stepReport, Unchanged, "everything is as requested: nothing was changed"})
		return nil
	}
	s.Tell(Event{stepReport, Done, "images are unpacked with " + SnapshotterName + "; cvmfs-graphdriver uninstall goes back"})
	return nil
}

// steps bring the host to what is wished for. Docker is told last: it starts on a snapshotter that containerd doesn't
// know as well.
func (s *second) steps(ctx context.Context) error {
	type step struct {
		name string
		do   func(context.Context) (Outcome, string, error)
	}
	steps := []step{
		{stepService, s.startService},
		{stepContainerd, s.configure},
		{stepServes, func(ctx context.Context) (Outcome, string, error) {
			return Done, "", s.Containerd.Serves(ctx, SnapshotterName, s.CRI)
		}},
	}
	if s.file != nil {
		steps = append(steps, step{stepFile, s.tellDocker})
	}
	for _, step := range steps {
		if err := s.step(ctx, step.name, step.do); err != nil {
			return err
		}
	}
	if s.file == nil {
		return s.runAlone(ctx, s.Images, s.CRI)
	}
	return s.verify(ctx, SnapshotterName, s.Images)
}

// startService has the snapshotter run with its settings.
func (s *second) startService(ctx context.Context) (Outcome, string, error) {
	outcome := Unchanged
	if s.settings.changed() {
		outcome = Done
		if _, err := s.writeAs(ctx, settingsWritten, s.settings.next); err != nil {
			return Failed, "", err
		}
	}
	if s.unit.changed() {
		outcome = Done
		if _, err := s.writeAs(ctx, unitWritten, s.unit.next); err != nil {
			return Failed, "", err
		}
		if err := s.Units.Reload(ctx); err != nil {
			return Failed, "", err
		}
	}
	if !s.enabled {
		outcome = Done
		err := s.change(ctx, change{Kind: unitEnabled}, func(ctx context.Context) error {
			return s.Units.Enable(ctx, SnapshotterUnit)
		})
		if err != nil {
			return Failed, "", err
		}
	}
	if !s.serviceChanged() {
		return outcome, "", nil
	}
	kind := unitStarted
	if s.active {
		kind = unitRestarted
	}
	return Done, SnapshotterUnit + " runs", s.change(ctx, change{Kind: kind}, func(ctx context.Context) error {
		return s.Units.Restart(ctx, SnapshotterUnit)
	})
}

// configure tells containerd of the snapshotter.
func (s *second) configure(ctx context.Context) (Outcome, string, error) {
	if !s.changed() {
		return Unchanged, "", nil
	}
	var said []string
	for _, e := range s.config {
		if !e.changed() {
			continue
		}
		text, err := s.writeAs(ctx, containerdWritten, e.next)
		if err != nil {
			return Failed, "", err
		}
		said = append(said, text)
	}
	return Done, strings.Join(said, "; "), s.restartContainerd(ctx)
}

// restartContainerd restarts containerd; the record knows from then on that it may have read its new configuration.
func (r *run) restartContainerd(ctx context.Context) error {
	t := r.rec.Open
	t.Reread = true
	if err := r.rec.save(); err != nil {
		return err
	}
	if err := r.at("before: restart of containerd"); err != nil {
		return err
	}
	err := r.Units.Restart(ctx, t.Unit)
	if err == nil {
		err = r.Containerd.Ready(ctx)
	}
	if err != nil {
		return fmt.Errorf("restart containerd: %w", err)
	}
	return r.at("after: restart of containerd")
}

// tellDocker has Docker's engine run on the snapshotter.
func (s *second) tellDocker(ctx context.Context) (Outcome, string, error) {
	if !s.docker() {
		return Unchanged, s.File, nil
	}
	said := s.File
	if s.file.changed() {
		var err error
		if said, err = s.write(ctx, s.file.next); err != nil {
			return Failed, "", err
		}
	}
	began := time.Now()
	err := s.restart(ctx)
	return Done, fmt.Sprintf("%s; %s, %.0f s", said, s.Service.ByHand(), time.Since(began).Seconds()), err
}
