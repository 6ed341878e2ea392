package preflight

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/installer/service"
)

// causeSince is how old a start that failed may be to be the reason why no engine answers.
const causeSince = 7 * 24 * time.Hour

// lookAtService finds out how the engine is run: from its process, and from the unit that starts it next time; and of
// one that doesn't answer, why it didn't start.
func lookAtService(ctx context.Context, e Engine, logFile string) Service {
	s := lookAtProcess(ctx, e)
	if e.Err == "" || e.Denied || s.PID != 0 || !strings.HasPrefix(e.Host, "unix://") {
		return s
	}
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	log, _ := service.FindLog(ctx, nil, logFile, time.Now().Add(-causeSince))
	s.Cause = service.Cause(log)
	return s
}

func lookAtProcess(ctx context.Context, e Engine) Service {
	s := Service{Flags: map[string]string{}}
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	socket, ok := strings.CutPrefix(e.Host, "unix://")
	if !ok {
		return s
	}
	found, err := service.Find(ctx, socket)
	unit := service.DefaultUnit
	if err != nil {
		s.Err = err.Error()
	} else {
		s.PID, s.LogFile = found.PID, found.LogFile
		s.take(found.Args, found.Environ)
		unit = found.Unit
	}
	restarter, err := service.Choose("auto", found)
	if err != nil {
		s.Err = strings.TrimPrefix(s.Err+"; "+err.Error(), "; ")
		return s
	}
	s.Manager, _, _ = strings.Cut(restarter.String(), ":")
	if s.Manager != "systemd" {
		return s
	}
	switch u, err := service.LoadUnit(ctx, unit); {
	case err == nil:
		s.take(u.Args, u.Environ)
	case errors.Is(err, fs.ErrNotExist): // an engine that was installed otherwise
		s.Manager = ""
	default:
		s.Err = err.Error()
	}
	return s
}

// take keeps what matters of a command line and an environment.
func (s *Service) take(args, environ []string) {
	given := map[string]string{}
	for _, f := range service.ParseFlags(args) {
		if slices.Contains(told, f.Name) {
			given[f.Name] = strings.TrimSpace(given[f.Name] + " " + f.Value)
		}
	}
	maps.Copy(s.Flags, given)
	for _, v := range environ {
		if value, ok := strings.CutPrefix(v, service.PluginVariable+"="); ok {
			s.Variable = value != "" // any value counts
		}
	}
}

// told are the flags that matter here.
var told = []string{"config-file", "data-root", "debug", "experimental", "graph", "storage-driver", "storage-opt"}
