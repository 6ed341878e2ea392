// Package stand sets up what the demonstration and the end-to-end tests look at: a site, which serves a reference
// repository on loopback, and a private engine whose storage driver is the plugin, configured for that repository.
// Everything lies in one folder and is gone after Close.
package stand

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"cvmfs-graphdriver/test/engine"
)

// What the reference data is called.
const (
	Repository = "images.example.org"
	Ordinary   = "example/tiny:1"      // testdata/images/tiny.tar
	Thin       = "example/thin_tiny:1" // testdata/images/thin_tiny.tar, the same as a thin image
	Plugin     = "cvmfs-graphdriver"
)

// closeWait bounds the orderly end of an engine.
const closeWait = time.Minute

// Options say of what to make a stand.
type Options struct {
	Tools    *engine.Tools
	Bundle   string            // folder of the plugin bundle
	Testdata string            // the module's testdata folder
	Step     func(what string) // told of each step before it begins; may be nil
	Driver   []string          // storage options of the driver, "name=value"
	Quiet    bool              // plugin or snapshotter log no debug messages, which take time
	Settings map[string]any    // of the engine, besides those every stand has
	// shell script run before the engine's first start; what it writes to /etc is the engine's own
	Prepare string
	// the program of the snapshotter, for NewSnapshotter; "" for the one that containerd has built in
	Snapshotter string
	Pause       string // image for the namespaces of pods
	Dir         string // folder to make the stand in, with a short path; "" for the one of temporary files
	Own         string // storage driver that the engine has of its own; "" for vfs
}

// Stand is a site and an engine.
type Stand struct {
	Site        *Site
	Engine      *engine.Engine
	Snapshotter *engine.Service // of NewSnapshotter, where containerd's own isn't used
	Config      string          // the folder that is the plugin's, or the snapshotter's, /etc/cvmfs
	dir         string
	engine      map[string]any // its settings
	storage     map[string]any // those of its storage, once it is set up
}

// step is a part of making a stand.
type step struct {
	what string
	do   func(*Stand, context.Context, Options) error
}

// plain are the steps to a stand without the plugin, added those that bring it in.
var (
	plain = []step{
		{"serve the repository " + Repository + " on loopback", (*Stand).serve},
		{"start a private engine", (*Stand).startPlain},
	}
	added = []step{
		{"create and enable the plugin", (*Stand).enable},
		{
			"restart the engine with the plugin as its storage driver",
			func(s *Stand, ctx context.Context, _ Options) error { return s.Restart(ctx) },
		},
	}
)

// New makes a stand: its engine runs with the plugin as its storage driver and has no image yet. The error of one that
// fails names the step; Close it all the same, for its logs are there until then.
func New(ctx context.Context, o Options) (*Stand, error) {
	return build(ctx, o, slices.Concat(plain, added))
}

// NewPlain makes a stand as [New] does, but for the plugin: its engine runs with a driver of its own.
func NewPlain(ctx context.Context, o Options) (*Stand, error) { return build(ctx, o, plain) }

func build(ctx context.Context, o Options, steps []step) (*Stand, error) {
	s := &Stand{engine: map[string]any{"experimental": true}}
	maps.Copy(s.engine, o.Settings)
	for _, step := range steps {
		if o.Step != nil {
			o.Step(step.what)
		}
		if err := step.do(s, ctx, o); err != nil {
			return s, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return s, nil
}

func (s *Stand) serve(_ context.Context, o Options) (err error) {
	// A short name: a unix socket lies below.
	if s.dir, err = os.MkdirTemp(o.Dir, "cvmfs-stand-"); err != nil {
		return err
	}
	// The root of a user namespace passes through it to its files.
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return err
	}
	if s.Site, err = NewSite(filepath.Join(s.dir, "site"), filepath.Join(o.Testdata, "repositories",
		Repository+".tar.gz")); err != nil {
		return err
	}
	s.Config = filepath.Join(s.dir, "config")
	return s.Site.Configure(s.Config, Repository, filepath.Join(o.Testdata, "keys", Repository+".pub"))
}

// Serve serves another repository, a folder as a web server has it, and configures the plugin for it.
func (s *Stand) Serve(fqrn, folder, key string) error {
	if err := os.Symlink(folder, filepath.Join(s.Site.Dir, fqrn)); err != nil {
		return err
	}
	return s.Site.Configure(s.Config, fqrn, key)
}

// startPlain starts an engine with a driver of its own, which is what a plugin can be created on.
func (s *Stand) startPlain(ctx context.Context, o Options) error {
	if err := s.makeEngine(ctx, o); err != nil {
		return err
	}
	return s.startWith(ctx, map[string]any{"storage-driver": cmp.Or(o.Own, "vfs")})
}

// makeEngine makes the engine and its machine.
func (s *Stand) makeEngine(ctx context.Context, o Options) (err error) {
	dir := filepath.Join(s.dir, "engine")
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	if s.Engine, err = engine.New(o.Tools, dir); err != nil {
		return err
	}
	if o.Prepare != "" {
		if out, err := s.Engine.Inside(ctx, "/", o.Prepare).CombinedOutput(); err != nil {
			return fmt.Errorf("prepare its machine: %w: %s", err, out)
		}
	}
	return nil
}

func (s *Stand) enable(ctx context.Context, o Options) error {
	debug := "1"
	if o.Quiet {
		debug = "0"
	}
	for _, args := range [][]string{
		{"plugin", "create", Plugin, o.Bundle},
		{"plugin", "set", Plugin, "cvmfs_ext_config=" + s.Config, "minio_ext_config=" + s.Config, "DEBUG=" + debug},
		{"plugin", "enable", Plugin},
	} {
		if _, err := s.Engine.Docker(ctx, args...); err != nil {
			return err
		}
	}
	// Never nil, which the engine would refuse.
	s.storage = map[string]any{"storage-driver": Plugin, "storage-opts": append([]string{}, o.Driver...)}
	return nil
}

// Restart ends the engine in order and starts it with the plugin, or the snapshotter, as its storage driver.
func (s *Stand) Restart(ctx context.Context) error {
	if err := s.Engine.Stop(ctx); err != nil {
		return err
	}
	return s.Start(ctx)
}

// Upgrade ends the engine and puts another one, on a containerd with its own snapshotter, in its place: the data folder
// and daemon.json stay. It isn't started.
func (s *Stand) Upgrade(ctx context.Context, tools *engine.Tools) error {
	dir := filepath.Dir(s.Engine.ConfigFile())
	err := errors.Join(s.Engine.Stop(ctx), s.Engine.Close())
	if err != nil {
		return err
	}
	if s.Engine, err = engine.New(tools, dir); err != nil {
		return err
	}
	return s.startContainerd(ctx, Options{Tools: tools})
}

// Driver is the storage driver that the engine is started with.
func (s *Stand) Driver() string { return fmt.Sprint(s.storage["storage-driver"]) }

// Start starts the engine, which must have ended, as Restart does.
func (s *Stand) Start(ctx context.Context) error { return s.startWith(ctx, s.storage) }

// startWith starts the engine with the stand's settings and those of a storage driver.
func (s *Stand) startWith(ctx context.Context, storage map[string]any) error {
	settings := maps.Clone(s.engine)
	maps.Copy(settings, storage)
	return s.Engine.Start(ctx, settings)
}

// Dir is the folder in which everything of the stand lies.
func (s *Stand) Dir() string { return s.dir }

// Close ends and removes everything. It may be called on a stand that was not made to the end.
func (s *Stand) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	var failures []error
	if s.Engine != nil {
		// Close ends what does not end by itself, so that a failure to stop is not one to clean up.
		s.Engine.Stop(ctx)
		failures = append(failures, s.Engine.Close())
	}
	if s.Site != nil {
		failures = append(failures, s.Site.Stop())
	}
	if s.dir != "" {
		failures = append(failures, os.RemoveAll(s.dir))
	}
	return errors.Join(failures...)
}
