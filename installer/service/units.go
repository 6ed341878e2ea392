package service

import (
	"context"
	_ "embed" // the unit
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// unitPoll is how often a unit that is to end is looked at.
const unitPoll = 200 * time.Millisecond

// packaged is the program that the unit of packages starts.
const packaged = "/usr/bin/cvmfs-snapshotter"

//go:embed cvmfs-snapshotter.service
var snapshotterUnit string

// SnapshotterUnit is the definition of the snapshotter's service for a program.
func SnapshotterUnit(program string) []byte {
	return []byte(strings.Replace(snapshotterUnit, packaged, strings.ReplaceAll(program, "%", "%%"), 1))
}

// Units are the services that systemd runs.
type Units struct{}

// ErrNoSystemd says that a host's services aren't systemd's.
var ErrNoSystemd = errors.New("systemd doesn't run this host")

// FindUnits returns the host's services.
func FindUnits() (Units, error) {
	if !booted() {
		return Units{}, ErrNoSystemd
	}
	return Units{}, nil
}

// Restart starts a unit, anew if it is active, and waits until it is ready.
func (Units) Restart(ctx context.Context, unit string) error { return unitRestarter{unit}.Restart(ctx) }

// Stop stops a unit, if there is one.
func (Units) Stop(ctx context.Context, unit string) error {
	err := withSystemd(ctx, func(conn *systemd.Conn) error {
		err := await(ctx, func(result chan<- string) error {
			_, err := conn.StopUnitContext(ctx, unit, "replace", result)
			return err
		})
		if noSuchUnit(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("stop %s: %w (see journalctl --unit %[1]s)", unit, err)
	}
	return nil
}

// Enable has a unit started with the host from now on, whatever unit of the name was before.
func (u Units) Enable(ctx context.Context, unit string) error {
	err := withSystemd(ctx, func(conn *systemd.Conn) error {
		_, _, err := conn.EnableUnitFilesContext(ctx, []string{unit}, false, true)
		return err
	})
	if err != nil {
		return fmt.Errorf("enable %s: %w", unit, err)
	}
	return u.Reload(ctx)
}

// Disable has a unit not started with the host any more. One that isn't there is no error.
func (u Units) Disable(ctx context.Context, unit string) error {
	err := withSystemd(ctx, func(conn *systemd.Conn) error {
		if _, err := loadUnit(ctx, conn, unit); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		_, err := conn.DisableUnitFilesContext(ctx, []string{unit}, false)
		return err
	})
	if err != nil {
		return fmt.Errorf("disable %s: %w", unit, err)
	}
	return u.Reload(ctx)
}

// Reload has systemd read its units again.
func (Units) Reload(ctx context.Context) error { return unitRestarter{}.Reload(ctx) }

// State reports whether a unit is active, and whether it is started with the host. One that isn't there is neither.
func (Units) State(ctx context.Context, unit string) (active, enabled bool, err error) {
	err = withSystemd(ctx, func(conn *systemd.Conn) error {
		all, err := conn.GetAllPropertiesContext(ctx, unit)
		if err != nil {
			return err
		}
		active, enabled = all["ActiveState"] == "active", all["UnitFileState"] == "enabled"
		return nil
	})
	if err != nil {
		return false, false, fmt.Errorf("ask systemd for %s: %w", unit, err)
	}
	return active, enabled, nil
}

// Run has systemd run a program as a transient unit, and waits for its end; one of that name that still runs is
// waited for first. The program goes on if ctx ends.
func (Units) Run(ctx context.Context, unit string, argv []string) error {
	err := withSystemd(ctx, func(conn *systemd.Conn) error {
		if err := awaitEnd(ctx, conn, unit); err != nil {
			return err
		}
		return await(ctx, func(result chan<- string) error {
			_, err := conn.StartTransientUnitContext(ctx, unit, "fail", []systemd.Property{
				systemd.PropExecStart(argv, false), systemd.PropType("oneshot"),
				systemd.PropDescription("what a pod has this node do"),
				// One that failed is forgotten, too, so that the next can have its name.
				{Name: "CollectMode", Value: dbus.MakeVariant("inactive-or-failed")},
			}, result)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("run %s on the host, as %s: %w", argv[0], unit, err)
	}
	return nil
}

// awaitEnd waits until systemd knows no unit of that name.
func awaitEnd(ctx context.Context, conn *systemd.Conn, unit string) error {
	for {
		_, err := loadUnit(ctx, conn, unit)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of another: %w", ctx.Err())
		case <-time.After(unitPoll):
		}
	}
}

// await begins a job of systemd's and waits for its end.
func await(ctx context.Context, begin func(result chan<- string) error) error {
	result := make(chan string, 1)
	if err := begin(result); err != nil {
		return err
	}
	select {
	case said := <-result:
		if said != "done" {
			return fmt.Errorf("the job's result is %q", said)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until it is done: %w", ctx.Err())
	}
}

// unitFolders are where packages put units.
var unitFolders = []string{"/usr/lib/systemd/system", "/lib/systemd/system"}

// Packaged reports whether a package has brought a unit.
func Packaged(unit string) bool {
	for _, dir := range unitFolders {
		if _, err := os.Stat(filepath.Join(dir, unit)); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// FindContainerd finds the containerd that answers on a socket. Not found is errors.Is(err, ErrNotFound).
func FindContainerd(ctx context.Context, socket string) (*Engine, error) {
	pid, err := peer(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("find the containerd behind %s: %w: %w", socket, ErrNotFound, err)
	}
	comm, err := os.ReadFile(proc(pid, "comm"))
	if err != nil || strings.TrimSpace(string(comm)) != "containerd" {
		return nil, fmt.Errorf("find the containerd behind %s: %w: process %d listens there and is no containerd", socket, ErrNotFound,
			pid)
	}
	return inspect(ctx, pid)
}
