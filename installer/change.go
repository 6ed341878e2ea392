package installer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"

	"cvmfs-graphdriver/installer/daemonjson"
)

// kind is a kind of change.
type kind string

const (
	folderMade     kind = "folder made"
	modeSet        kind = "mode set"
	pluginMade     kind = "plugin made"
	pluginSet      kind = "plugin set"
	pluginEnabled  kind = "plugin enabled"
	pluginDisabled kind = "plugin disabled"
	pluginUpgraded kind = "plugin upgraded"
	pluginMended   kind = "plugin mended" // put anew in the place of one that can't be enabled: stays
	daemonJSON     kind = "daemon.json"
	fileFixed      kind = "daemon.json fixed" // stays: the engine would not start without
	dropInWritten  kind = "drop-in written"
	dropInRemoved  kind = "drop-in removed"

	// of the snapshotter
	settingsWritten   kind = "snapshotter settings"
	unitWritten       kind = "unit written"
	unitEnabled       kind = "unit enabled"
	unitStarted       kind = "unit started"
	unitRestarted     kind = "unit restarted"
	containerdWritten kind = "containerd configured"
)

// change is a change of the host: what is about to be done, and what undoing it takes. It says the same whether it was
// done or only intended.
type change struct {
	Kind kind `json:"kind"`
	// of a folder or a file; of an upgraded plugin, the folder with the old one
	Path   string             `json:"path,omitempty"`
	Mode   fs.FileMode        `json:"mode,omitempty"`   // of a folder
	Was    fs.FileMode        `json:"was,omitempty"`    // its mode before
	Plugin string             `json:"plugin,omitempty"` // its name
	Former []string           `json:"former,omitempty"` // its settings before, "name=value"
	Stale  string             `json:"stale,omitempty"`  // folder that the engine leaves when it has run with the plugin
	Backup *daemonjson.Backup `json:"backup,omitempty"`
}

// ofFiles tells changes that the engine reads when it starts. They are undone first of all, so that it starts.
func (c *change) ofFiles() bool {
	return c.Kind == daemonJSON || c.Kind == dropInWritten || c.Kind == dropInRemoved
}

// ofEngine tells changes that it takes a running engine to undo.
func (c *change) ofEngine() bool { return strings.HasPrefix(string(c.Kind), "plugin ") }

// undo undoes a change whether it was done, half done, undone already or never begun.
func (r *run) undo(ctx context.Context, c *change) error {
	switch c.Kind {
	case folderMade:
		if err := os.Remove(c.Path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) &&
			!errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove the folder: %w", err)
		}
		return nil
	case modeSet:
		return undoMode(c)
	case fileFixed, pluginMended:
		return nil
	case daemonJSON, containerdWritten, settingsWritten:
		return r.restore(c)
	case unitWritten:
		return errors.Join(r.restore(c), r.Units.Reload(ctx))
	case unitEnabled:
		return r.Units.Disable(ctx, SnapshotterUnit)
	case unitStarted:
		return r.Units.Stop(ctx, SnapshotterUnit)
	case unitRestarted:
		if active, _, err := r.Units.State(ctx, SnapshotterUnit); err != nil || !active {
			return err // it is stopped with the install that had started it
		}
		return r.Units.Restart(ctx, SnapshotterUnit)
	case dropInWritten:
		return r.Service.RemoveDropIn(ctx)
	case dropInRemoved:
		return r.Service.WriteDropIn(ctx)
	}
	return r.undoPlugin(ctx, c)
}

// restore puts a file back.
func (r *run) restore(c *change) error {
	restored, err := c.Backup.Restore()
	if len(restored.Kept) > 0 {
		r.Tell(Event{stepUndo, Told, fmt.Sprintf("%s: %s: changed since, and stays as it is", c.Backup.Path,
			strings.Join(restored.Kept, ", "))})
	}
	return err
}

// undoPlugin undoes a change of the plugin.
func (r *run) undoPlugin(ctx context.Context, c *change) error {
	p, err := r.Engine.plugin(ctx, c.Plugin)
	if err != nil {
		return err
	}
	made := func(other change) bool { return other.Kind == pluginMade && other.Plugin == c.Plugin }
	switch {
	case p == nil && c.Kind == pluginMade:
		return removeStale(c.Stale)
	case p == nil && slices.ContainsFunc(r.rec.Open.Changes,
		made): // it was not made yet, is removed already, or is in another data folder
		return nil
	case p == nil:
		return fmt.Errorf("the plugin %s is gone", c.Plugin)
	}
	switch c.Kind {
	case pluginMade:
		if p.Enabled {
			err = r.Engine.disablePlugin(ctx, c.Plugin)
		}
		return errors.Join(err, r.Engine.removePlugin(ctx, c.Plugin), removeStale(c.Stale))
	case pluginSet:
		if p.Enabled { // the run was cut off before it had disabled the plugin: nothing was set
			return nil
		}
		return r.Engine.setPlugin(ctx, c.Plugin, c.Former)
	case pluginUpgraded:
		return r.downgrade(ctx, p, c)
	case pluginEnabled:
		if p.Enabled {
			return r.Engine.disablePlugin(ctx, c.Plugin)
		}
	case pluginDisabled:
		if !p.Enabled {
			return r.Engine.enablePlugin(ctx, c.Plugin)
		}
	}
	return nil
}

func undoMode(c *change) error {
	info, err := os.Lstat(c.Path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Perm() != c.Mode {
		return nil // it is gone, or is as somebody else wants it
	}
	if err == nil {
		err = os.Chmod(c.Path, c.Was)
	}
	if err != nil {
		return fmt.Errorf("set the mode back: %w", err)
	}
	return nil
}

// removeStale removes the engine's list of the images of a storage driver that is gone.
func removeStale(folder string) error {
	if folder == "" {
		return nil
	}
	if err := os.RemoveAll(folder); err != nil {
		return fmt.Errorf("remove the list of images that are gone: %w", err)
	}
	return nil
}

// staleFolder is where the engine keeps the list of the images of a plugin as storage driver.
func staleFolder(root, plugin string) string { return filepath.Join(root, "image", driverOf(plugin)) }

// command is the shell command that undoes the change.
func (r *run) command(c *change) string {
	switch c.Kind {
	case folderMade:
		return "rmdir " + quote(c.Path)
	case modeSet:
		return fmt.Sprintf("chmod %04o %s", c.Was, quote(c.Path))
	case daemonJSON, containerdWritten, settingsWritten, unitWritten:
		if c.Backup.File == "" {
			return "rm " + quote(c.Backup.Target)
		}
		return "mv " + quote(c.Backup.File, c.Backup.Target)
	case unitEnabled:
		return "systemctl disable " + SnapshotterUnit
	case unitStarted:
		return "systemctl stop " + SnapshotterUnit
	case unitRestarted:
		return "systemctl restart " + SnapshotterUnit
	case dropInWritten:
		return "rm " + quote(r.Service.DropIn())
	case pluginMade:
		return fmt.Sprintf("docker plugin disable --force %[1]s; docker plugin rm --force %[1]s", quote(c.Plugin))
	case pluginSet:
		return fmt.Sprintf("docker plugin set %s %s", quote(c.Plugin), quote(c.Former...))
	case pluginUpgraded:
		return fmt.Sprintf("cvmfs-graphdriver upgrade --name %s --bundle %s", quote(c.Plugin), quote(c.Path))
	case pluginEnabled:
		return "docker plugin disable --force " + quote(c.Plugin)
	case pluginDisabled:
		return "docker plugin enable " + quote(c.Plugin)
	}
	return ""
}

// quote makes words of a shell command, for people who use bash or a shell like it.
func quote(words ...string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		var err error
		if quoted[i], err = syntax.Quote(word, syntax.LangBash); err != nil { // a NUL: no name has one
			quoted[i] = strconv.Quote(word)
		}
	}
	return strings.Join(quoted, " ")
}
