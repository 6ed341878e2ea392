package stand

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"cvmfs-graphdriver/test/engine"
)

// The snapshotters' names: ours, and the one that containerd has built in.
const (
	Snapshotter = "cvmfs"
	BuiltIn     = "overlayfs"
)

// contained are the steps to a stand with a snapshotter.
var contained = []step{
	plain[0],
	{"make the machine of a private engine", (*Stand).makeEngine},
	{"start the snapshotter", (*Stand).startSnapshotter},
	{"start containerd with the snapshotter", (*Stand).startContainerd},
	{
		"start the engine with the snapshotter as its storage driver",
		func(s *Stand, ctx context.Context, _ Options) error { return s.Start(ctx) },
	},
}

// NewSnapshotter makes a stand as [New] does, with the snapshotter in the place of the plugin. The tools are those of
// an [engine.Stack].
func NewSnapshotter(ctx context.Context, o Options) (*Stand, error) { return build(ctx, o, contained) }

// startSnapshotter starts the program, if there is one, with folders on the stand's file system.
func (s *Stand) startSnapshotter(ctx context.Context, o Options) error {
	if o.Snapshotter == "" || s.Engine.Containerd == nil { // which startContainerd refuses
		return nil
	}
	config, err := json.Marshal(map[string]any{
		"root": s.Snapshots(), "address": s.snapshotterSocket(), "cvmfs-config": s.Config, "storage-opts": o.Driver,
		"containerd": s.Engine.Containerd.Socket(), "debug": !o.Quiet, "push-back": filepath.Join(s.Config, "config.json"),
	})
	file := filepath.Join(s.dir, "snapshotter.json")
	if err == nil {
		err = os.WriteFile(file, config, 0o644)
	}
	if err != nil {
		return err
	}
	program, err := filepath.Abs(o.Snapshotter) // a service runs elsewhere
	if err != nil {
		return err
	}
	s.Snapshotter = s.Engine.Service("snapshotter", program, "--config", file)
	return s.StartSnapshotter(ctx)
}

// StartSnapshotter starts the snapshotter, which must have ended.
func (s *Stand) StartSnapshotter(ctx context.Context) error {
	return s.Snapshotter.Start(ctx, func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", s.snapshotterSocket())
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// startContainerd configures and starts containerd.
func (s *Stand) startContainerd(ctx context.Context, o Options) error {
	snapshotter := engine.Snapshotter{Name: BuiltIn}
	if s.Snapshotter != nil {
		snapshotter = engine.Snapshotter{
			Name: Snapshotter, Socket: s.snapshotterSocket(), Root: s.Snapshots(), Diff: true,
			Capabilities: []string{"remap-ids"},
		}
	}
	s.storage = map[string]any{
		"storage-driver": snapshotter.Name, "features": map[string]bool{"containerd-snapshotter": true},
	}
	if s.Engine.Containerd == nil {
		return fmt.Errorf("%s starts a containerd by itself, and takes no snapshotter", o.Tools.Dockerd)
	}
	if err := s.Engine.Containerd.Configure(ctx, snapshotter, o.Pause); err != nil {
		return err
	}
	return s.Engine.Containerd.Start(ctx)
}

// Snapshots is the folder of the snapshotter.
func (s *Stand) Snapshots() string { return filepath.Join(s.dir, "snapshots") }

// ControlSocket is where the snapshotter's node answers.
func (s *Stand) ControlSocket() string { return filepath.Join(s.dir, "control.sock") }

func (s *Stand) snapshotterSocket() string { return filepath.Join(s.dir, "snapshots.sock") }
