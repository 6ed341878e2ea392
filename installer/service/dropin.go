package service

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
)

// PluginVariable lets an engine of version 27 take storage-driver plugins when it is 1 in the engine's environment.
const PluginVariable = "DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS"

// dropIn is the content of the drop-in.
const dropIn = `# Written by cvmfs-graphdriver install, removed by uninstall: Docker 27 takes storage-driver plugins only with this.
[Service]
Environment=` + PluginVariable + `=1
`

// DropIn is a file of ours that adds to the definition of the engine's unit. It counts after [Restarter.Reload].
type DropIn struct {
	Root string // folder that stands for /; "" is /
	Unit string // as in docker.service
}

// Path is where the file lies.
func (d DropIn) Path() string {
	return filepath.Join("/", d.Root, "etc/systemd/system", d.Unit+".d", "cvmfs-graphdriver.conf")
}

// Exists reports whether the file is there as it should be.
func (d DropIn) Exists() bool {
	b, err := os.ReadFile(d.Path())
	return err == nil && string(b) == dropIn
}

// Write writes the file, complete or not at all.
func (d DropIn) Write() error {
	if d.Exists() {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(d.Path()), 0o755)
	if err == nil {
		if err = durable.Replace(d.Path(), 0o644, []byte(dropIn)); err != nil {
			err = errors.Join(err, d.removeFolder())
		}
	}
	if err != nil {
		return fmt.Errorf("write the drop-in %s: %w", d.Path(), err)
	}
	return nil
}

// Remove removes the file, and its folder if nothing else is in it.
func (d DropIn) Remove() error {
	err := durable.Remove(d.Path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = d.removeFolder()
	}
	if err != nil {
		return fmt.Errorf("remove the drop-in %s: %w", d.Path(), err)
	}
	return nil
}

func (d DropIn) removeFolder() error {
	err := unix.Rmdir(filepath.Dir(d.Path()))
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
