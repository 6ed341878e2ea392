package installer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/installer/service"
)

// startWait bounds the wait for an engine that was restarted; loading its plugins and layers is part of its start.
const startWait = 3 * time.Minute

// host is the engine as a service of this host.
type host struct {
	by       service.Restarter
	engine   *service.Engine // nil: it didn't run
	logFile  string          // the file that the engine's log goes to; "" is where it is found
	dropIn   *service.DropIn // nil: none has an effect
	progress func(waited time.Duration)

	startWait time.Duration // bounds the wait for an engine that starts
}

// HostService is the [Service] for the engine behind a socket; how says what restarts it, as [service.Choose] takes it.
// The engine need not run; logFile is where its log goes if it is a file that can't be found otherwise. tell is told of
// the wait for a restarted engine.
func HostService(ctx context.Context, socket, how, logFile string, tell func(Event)) (Service, error) {
	engine, err := service.Find(ctx, socket)
	if err != nil {
		engine = nil // it doesn't run, or as another user can't be looked at: what the host has tells
	}
	restarter, err := service.Choose(how, engine)
	if err != nil {
		return nil, err
	}
	h := &host{
		by:        restarter,
		engine:    engine,
		logFile:   logFile,
		startWait: startWait,
		progress: func(waited time.Duration) {
			tell(Event{stepRestart, Waits, fmt.Sprintf("for the engine to answer, %.0f s of %.0f", waited.Seconds(),
				startWait.Seconds())})
		},
	}
	if unit, ok := strings.CutPrefix(restarter.String(), "systemd:"); ok {
		h.dropIn = &service.DropIn{Unit: unit}
	}
	return h, nil
}

func (h *host) Restart(ctx context.Context, ping func(context.Context) error) error {
	since := time.Now()
	err := h.by.Restart(ctx)
	if errors.Is(err, service.ErrByHand) {
		return ErrNoRestart
	}
	if err == nil {
		err = service.Await(ctx, h.by, since, h.startWait, ping, h.progress)
	}
	if err == nil {
		return nil
	}
	log, logErr := h.by.Log(ctx, since)
	if logErr != nil || service.Cause(log) == "" {
		log, _ = service.FindLog(ctx, h.engine, h.logFile, since)
	}
	if cause := service.Cause(log); cause != "" && !strings.Contains(err.Error(), cause) {
		err = fmt.Errorf("%w: the engine's log says: %s", err, cause)
	}
	return err
}

// Running asks systemd, where it runs the engine: the unit is active once the engine has said that it is ready.
// Elsewhere the file with the engine's process id tells. One that doesn't answer may be about to start, or to fail: it
// counts once it has run for longer than a start takes.
func (h *host) Running(ctx context.Context, file *daemonjson.File) *Running {
	if h.dropIn != nil {
		u, err := service.LoadUnit(ctx, h.dropIn.Unit)
		if err != nil || u.State != "active" {
			return nil
		}
		return &Running{u.Name, "systemctl stop " + u.Name}
	}
	engine, err := service.FindByPIDFile(ctx, file.String("pidfile"))
	if err != nil {
		return nil
	}
	running := &Running{fmt.Sprintf("an engine (process %d)", engine.PID), h.stop(engine)}
	for _, address := range engine.Addresses(file.Strings("hosts")) {
		if answers(ctx, address) {
			running.What = fmt.Sprintf("an engine (process %d, at %s)", engine.PID, address)
			return running
		}
	}
	if age, err := engine.Age(); err != nil || age < h.startWait {
		return nil
	}
	return running
}

// answers reports whether an engine answers at an address of this host's.
func answers(ctx context.Context, address string) bool {
	engine, err := Connect(address)
	if err != nil {
		return false
	}
	defer engine.Close() // nothing is on its way any more
	ctx, cancel := context.WithTimeout(ctx, downWait)
	defer cancel()
	return engine.Ping(ctx) == nil
}

// stop is the shell command that stops an engine which systemd doesn't run.
func (h *host) stop(e *service.Engine) string {
	switch h.by.String() {
	case "openrc":
		return "rc-service docker stop"
	case "sysv":
		return "service docker stop"
	}
	return fmt.Sprintf("kill %d", e.PID)
}

func (h *host) ByHand() string {
	how := h.by.String()
	kind, rest, _ := strings.Cut(how, ":")
	switch kind {
	case "systemd":
		return "systemctl restart " + rest
	case "openrc":
		return "rc-service docker restart"
	case "sysv":
		return "service docker restart"
	case "command":
		return rest
	}
	return "restart the engine as you do it here"
}

func (h *host) DropIn() string {
	if h.dropIn == nil {
		return ""
	}
	return h.dropIn.Path()
}

func (h *host) WriteDropIn(ctx context.Context) error {
	return errors.Join(h.dropIn.Write(), h.by.Reload(ctx))
}

func (h *host) RemoveDropIn(ctx context.Context) error {
	if h.dropIn == nil {
		return nil
	}
	return errors.Join(h.dropIn.Remove(), h.by.Reload(ctx))
}
