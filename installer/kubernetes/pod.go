package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"cvmfs-graphdriver/installer/service"
	"cvmfs-graphdriver/internal/durable"
)

// Program is the name of the program that runs in the pod, and on the host.
const Program = "cvmfs-node"

// programs are those of the image which the host gets.
var programs = []string{"cvmfs-snapshotter", "cvmfs-graphdriver", Program}

// workUnit is the transient unit that does the work.
const workUnit = "cvmfs-node.service"

// usersPoll is how often the pod looks whether the snapshotter is still in use.
const usersPoll = 15 * time.Second

// Pod is what runs in the pod of a node.
type Pod struct {
	Image    string // folder with the programs
	Settings string // file of the ConfigMap
	Shared   string // folder that is the host's, at the same path
	Out      io.Writer
}

// Run brings the node to what the settings say. For as long as the snapshotter that is to be removed is in use it
// waits.
func (p *Pod) Run(ctx context.Context) error {
	set, err := ReadSettings(p.Settings)
	if err != nil {
		return err
	}
	if err := p.bring(); err != nil {
		return fmt.Errorf("bring the programs to the host: %w", err)
	}
	for {
		said, err := p.work(ctx)
		if err == nil || set.State != Removed || !bytes.Contains(said, []byte(ErrInUse.Error())) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(usersPoll):
		}
	}
}

// bring puts programs and settings into the shared folder. The snapshotter that runs keeps its own program until it is
// started anew, which is noted before.
func (p *Pod) bring() error {
	bin := filepath.Join(p.Shared, programFolder)
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for _, name := range programs {
		content, err := os.ReadFile(filepath.Join(p.Image, name))
		if err != nil {
			return err
		}
		to := filepath.Join(bin, name)
		switch now, err := os.ReadFile(to); {
		case err == nil && bytes.Equal(now, content):
			continue
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if name == programs[0] {
			if err := durable.Replace(filepath.Join(p.Shared, restartFile), 0o600, nil); err != nil {
				return err
			}
		}
		if err := durable.Replace(to, 0o755, content); err != nil {
			return err
		}
	}
	settings, err := os.ReadFile(p.Settings)
	if err != nil {
		return err
	}
	return durable.Replace(filepath.Join(p.Shared, settingsFile), 0o600, settings)
}

// work has the host do its part, and shows and returns what it says. The log is removed from below us with all else.
func (p *Pod) work(ctx context.Context) (said []byte, err error) {
	log, err := os.OpenFile(filepath.Join(p.Shared, logFile), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	err = (service.Units{}).Run(ctx, workUnit, []string{
		filepath.Join(p.Shared, programFolder, Program), "apply", "--shared", p.Shared,
	})
	said, readErr := io.ReadAll(log)
	if _, err := p.Out.Write(said); readErr == nil {
		readErr = err
	}
	return said, errors.Join(err, readErr)
}

// Ready returns nil if the snapshotter runs on this node, or, where it was removed, doesn't.
func Ready(ctx context.Context, settings string) error {
	set, err := ReadSettings(settings)
	if err != nil {
		return err
	}
	u, err := service.LoadUnit(ctx, unit)
	switch {
	case set.State == Removed && errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case set.State == Removed:
		return fmt.Errorf("%s is there still", unit)
	case u.State != "active":
		return fmt.Errorf("%s is %s", unit, u.State)
	}
	return nil
}
