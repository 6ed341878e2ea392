// Package policy says what an install, an upgrade, an uninstall or a look at a host asks and refuses. Where a user
// leaves something open it finds the engine, its configuration file, the plugin and the bundle that are meant; it
// refuses what contradicts itself, and what the host doesn't qualify for. It changes nothing: package installer does.
package policy

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/installer/service"
)

// ConfigDir is where the plugin reads the CernVM-FS configuration if nothing else is set.
const ConfigDir = "/etc/cvmfs"

// UsageError is the error of a request that can't be meant: it is the user's to mend, not the host's.
type UsageError struct{ error }

func usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Request is what a user asks. What is left out is found, or stays as it is.
type Request struct {
	Version string // of this program

	Host   string // the engine's socket
	Socket string // of the one node that is meant
	// of the snapshotter's node; "" is the one that its settings say
	NodeSocket string
	Name       string // of the plugin, and so of the storage driver
	File       string // the engine's configuration file
	Log        string // the file that the engine's log goes to
	Record     string // the installer's record
	Restart    string // what restarts the engine, as service.Choose takes it

	Bundle string // file or folder that the plugin is made of
	Key    string // file with the public key that must have signed the bundle
	From   string // reference in a registry that the plugin is installed from, in place of a bundle

	DataRoot    string   // the engine's data folder
	StorageOpts []string // options of the driver, "name=value"
	Settings    []string // of the plugin, "name=value"
	CVMFSConfig string   // folder with the CernVM-FS configuration
	MinioConfig string   // folder with push-back's config.json
	Debug       *bool    // the engine and the plugin log what a maintainer wants to know, or not any more
	Fix         bool     // comments and trailing commas are taken out of the engine's configuration file

	Containerd string // the socket of the containerd that is told of the snapshotter
	CRI        bool   // Kubernetes' images are unpacked by the snapshotter
	Plugin     bool   // the plugin is meant where both are installed

	Images installer.Images // that are run afterwards
}

// Host is the engine that a request is about.
type Host struct {
	Request
	Engine  *installer.Engine
	process *service.Engine // nil if it doesn't run, or can't be looked at
	file    string          // the engine's configuration file
	log     string          // the file that its log goes to, "" for none
}

// Find finds the engine that is meant, which need not run, its configuration file and its log. The host must be closed.
func Find(ctx context.Context, r Request) (*Host, error) {
	engine, err := installer.Connect(r.Host)
	if err != nil {
		return nil, err
	}
	h := &Host{Request: r, Engine: engine}
	if h.process, err = service.Find(ctx, h.Address()); err != nil {
		h.process = nil
	}
	h.file, h.log = installer.Remembered(r.Record)
	if h.process != nil {
		h.file, h.log = service.ConfigFile(service.ParseFlags(h.process.Args)), h.process.LogFile
	} else if u, err := service.LoadUnit(ctx, service.DefaultUnit); err == nil && h.file == "" {
		h.file = service.ConfigFile(service.ParseFlags(u.Args))
	}
	h.file = cmp.Or(r.File, h.file, daemonjson.DefaultPath)
	return h, nil
}

// Close lets the connection to the engine go.
func (h *Host) Close() error { return h.Engine.Close() }

// Address is the engine's, as in unix:///var/run/docker.sock.
func (h *Host) Address() string { return h.Engine.Client().DaemonHost() }

// Installer returns what changes this host, which can't restart the engine yet; see [Host.Restarts]. It calls back as
// [installer.Installer] says.
func (h *Host) Installer(tell func(installer.Event), ask func(context.Context, []string) error) (*installer.Installer,
	error,
) {
	if !strings.HasPrefix(h.Address(), "unix://") {
		return nil, usagef("the engine at %s is not this host's: run this where it runs", h.Address())
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	return &installer.Installer{
		Engine: h.Engine, Record: h.Record, Log: h.log, Hello: self, Tell: tell, Ask: ask,
	}, nil
}

// Restarts gives the installer what restarts the engine.
func (h *Host) Restarts(ctx context.Context, i *installer.Installer) (err error) {
	if i.Service, err = installer.HostService(ctx, h.Address(), h.Restart, h.log, i.Tell); err != nil {
		return UsageError{err}
	}
	return nil
}

// pluginName returns the name of the plugin that is meant.
func (h *Host) pluginName(ctx context.Context) (string, error) {
	if h.Name != "" {
		return h.Name, nil
	}
	return installer.FindName(ctx, h.Engine, h.Record, h.file)
}

// Plan returns how the host is looked at as it stands: by the rules of the snapshotter where that is what runs images.
func (h *Host) Plan(ctx context.Context) (preflight.Plan, error) {
	name, err := h.pluginName(ctx)
	p := preflight.Plan{
		Host: h.Address(), Name: name, DaemonJSON: h.file, Log: cmp.Or(h.Log, h.log),
		CVMFSConfig: h.CVMFSConfig, MinioConfig: h.MinioConfig, Agent: agent(h.Version),
		Snapshotter: cmp.Or(h.Socket, h.nodeSocket()),
	}
	if err != nil {
		return p, err
	}
	docker, readable := h.namesSnapshotter()
	if !readable || !docker && (h.HasEngine(ctx) || !h.snapshotterAlone(ctx, p.Snapshotter)) {
		return p, nil
	}
	p.Containerd = h.containerdSocket()
	p.Snapshots, p.Name, p.DataRoot = true, installer.SnapshotterName, installer.SnapshotterRoot
	if !docker {
		p.DaemonJSON = ""
	}
	if places, err := h.places(); err == nil {
		p.DataRoot = places.root
	}
	if settings, err := daemonjson.Read(installer.SnapshotterSettings); err == nil {
		p.CVMFSConfig = cmp.Or(p.CVMFSConfig, settings.String("cvmfs-config"))
		p.PushBack = settings.String(pushBackSetting)
	}
	return p, nil
}

// namesSnapshotter reports whether the engine's configuration file has the snapshotter as storage driver, and whether
// it can be read; what is wrong with it is a finding.
func (h *Host) namesSnapshotter() (named, readable bool) {
	f, err := daemonjson.Read(h.file)
	return err == nil && f.String("storage-driver") == installer.SnapshotterName, err == nil
}

// snapshotterAlone reports whether a host without an engine has the snapshotter, set up by this program or by hand.
func (h *Host) snapshotterAlone(ctx context.Context, socket string) bool {
	has, _, err := installer.HasSnapshotter(h.Record)
	return err == nil && has || preflight.Answers(ctx, control.NewClient(socket))
}

// agent is who asks, for the servers' logs.
func agent(version string) string { return "cvmfs-graphdriver/" + version }
