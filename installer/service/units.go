package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// unitPoll is how often a unit that is to end is looked at.
const unitPoll = 200 * time.Millisecond

// EnableUnit has systemd read its units again, start one with the host from now on, and start it now, anew if it runs.
func EnableUnit(ctx context.Context, unit string) error {
	err := withSystemd(ctx, func(conn *systemd.Conn) error {
		if err := conn.ReloadContext(ctx); err != nil {
			return err
		}
		if _, _, err := conn.EnableUnitFilesContext(ctx, []string{unit}, false, true); err != nil {
			return err
		}
		return conn.ReloadContext(ctx)
	})
	if err != nil {
		return fmt.Errorf("enable %s: %w", unit, err)
	}
	return RestartUnit(ctx, unit)
}

// RestartUnit starts a unit anew, and waits until it has started.
func RestartUnit(ctx context.Context, unit string) error { return unitRestarter{unit}.Restart(ctx) }

// DisableUnit ends a unit and has it not started any more. One that isn't there is no error.
func DisableUnit(ctx context.Context, unit string) error {
	err := withSystemd(ctx, func(conn *systemd.Conn) error {
		switch _, err := loadUnit(ctx, conn, unit); {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		}
		if err := await(ctx, func(result chan<- string) error {
			_, err := conn.StopUnitContext(ctx, unit, "replace", result)
			return err
		}); err != nil {
			return err
		}
		_, err := conn.DisableUnitFilesContext(ctx, []string{unit}, false)
		return err
	})
	if err != nil {
		return fmt.Errorf("end %s: %w", unit, err)
	}
	return nil
}

// Reload has systemd read its units again.
func Reload(ctx context.Context) error { return unitRestarter{}.Reload(ctx) }

// RunUnit has systemd run a program as a transient unit, and waits for its end; one of that name that still runs is
// waited for first. The program goes on if ctx ends.
func RunUnit(ctx context.Context, unit string, argv []string) error {
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
