package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Unit is what systemd knows of an engine's unit, and how it will start it next time.
type Unit struct {
	Name     string
	PID      int      // of the main process, 0 for none
	State    string   // ActiveState, as in "active" or "failed"
	Args     []string // the engine's arguments, without the program, variables expanded
	Environ  []string // of Environment= and EnvironmentFile=
	Triggers []string // units that start it, as docker.socket
}

// LoadUnit asks systemd for a unit. One that doesn't exist is errors.Is(err, fs.ErrNotExist).
func LoadUnit(ctx context.Context, name string) (*Unit, error) {
	var u *Unit
	err := withSystemd(ctx, func(conn *systemd.Conn) (err error) {
		u, err = loadUnit(ctx, conn, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask systemd for %s: %w", name, err)
	}
	return u, nil
}

// isMain reports whether a process is the main one of a unit.
func isMain(ctx context.Context, unit string, pid int) bool {
	u, err := LoadUnit(ctx, unit)
	return err == nil && u.PID == pid
}

// withSystemd calls f with a connection to systemd: over the system bus, or, where that is down, systemd's own socket.
func withSystemd(ctx context.Context, f func(*systemd.Conn) error) error {
	conn, err := systemd.NewSystemConnectionContext(ctx)
	if err != nil {
		own, ownErr := systemd.NewSystemdConnectionContext(ctx)
		if ownErr != nil {
			return fmt.Errorf("connect to systemd: %w", errors.Join(err, ownErr))
		}
		conn = own
	}
	defer conn.Close()
	return f(conn)
}

func loadUnit(ctx context.Context, conn *systemd.Conn, name string) (*Unit, error) {
	all, err := conn.GetAllPropertiesContext(ctx, name)
	if err != nil {
		return nil, err
	}
	if all["LoadState"] != "loaded" {
		return nil, fmt.Errorf("unit %s (%v): %w", name, all["LoadState"], fs.ErrNotExist)
	}
	u := &Unit{Name: name}
	u.State, _ = all["ActiveState"].(string)
	u.Triggers, _ = all["TriggeredBy"].([]string)
	pid, _ := all["MainPID"].(uint32)
	u.PID = int(pid)
	u.Environ, _ = all["Environment"].([]string)
	files, _ := all["EnvironmentFiles"].([][]any)
	for _, file := range files {
		path, _ := file[0].(string)
		// One that can't be read has been told by systemd, if it isn't optional.
		if b, err := os.ReadFile(path); err == nil {
			u.Environ = append(u.Environ, parseEnvironment(string(b))...)
		}
	}
	// Of several commands the engine is the last.
	if commands, _ := all["ExecStart"].([][]any); len(commands) > 0 {
		argv, _ := commands[len(commands)-1][1].([]string)
		if len(argv) > 0 {
			u.Args = expand(argv[1:], u.Environ)
		}
	}
	return u, nil
}

// parseEnvironment reads the variables of an EnvironmentFile.
func parseEnvironment(text string) []string {
	text = strings.ReplaceAll(text, "\\\n", "")
	var environ []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		if value = strings.TrimSpace(value); len(value) > 1 && (value[0] == '"' || value[0] == '\'') &&
			value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		environ = append(environ, strings.TrimSpace(name)+"="+value)
	}
	return environ
}

// variable is one inside an argument.
var variable = regexp.MustCompile(`\$\$|\$\{[A-Za-z_][A-Za-z0-9_]*\}`)

// expand puts variables in as systemd does: $NAME that is a whole argument becomes as many as it has words, ${NAME} is
// replaced in place.
func expand(args, environ []string) []string {
	var expanded []string
	for _, arg := range args {
		if name, ok := strings.CutPrefix(arg, "$"); ok && name != "" && !strings.ContainsAny(name, "${}") {
			value, _ := lookup(environ, name)
			expanded = append(expanded, strings.Fields(value)...)
			continue
		}
		expanded = append(expanded, variable.ReplaceAllStringFunc(arg, func(v string) string {
			if v == "$$" {
				return "$"
			}
			value, _ := lookup(environ, v[2:len(v)-1])
			return value
		}))
	}
	return expanded
}

// unitRestarter restarts the engine by systemd.
type unitRestarter struct{ unit string }

func (r unitRestarter) String() string { return "systemd:" + r.unit }

func (r unitRestarter) Restart(ctx context.Context) error {
	err := withSystemd(ctx, func(conn *systemd.Conn) error {
		u, err := loadUnit(ctx, conn, r.unit)
		if err != nil {
			return err
		}
		// A unit that failed too often, and the socket that would start it, stay down till this.
		for _, unit := range append([]string{r.unit}, u.Triggers...) {
			if err := conn.ResetFailedUnitContext(ctx, unit); err != nil && !noSuchUnit(err) {
				return err
			}
		}
		err = await(ctx, func(result chan<- string) error {
			_, err := conn.RestartUnitContext(ctx, r.unit, "replace", result)
			return err
		})
		if err != nil {
			return fmt.Errorf("%w (see journalctl --unit %s)", err, r.unit)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("restart %s: %w", r.unit, err)
	}
	return nil
}

func (r unitRestarter) Reload(ctx context.Context) error {
	if err := withSystemd(ctx, func(conn *systemd.Conn) error { return conn.ReloadContext(ctx) }); err != nil {
		return fmt.Errorf("have systemd read its units again: %w", err)
	}
	return nil
}

func (r unitRestarter) Log(ctx context.Context, since time.Time) (string, error) {
	cmd := exec.CommandContext(ctx, "journalctl", "--unit", r.unit, "--since", fmt.Sprintf("@%d", since.Unix()),
		"--output", "cat",
		"--no-pager", "--quiet", "--lines", fmt.Sprint(maxLogLines))
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("read the log of %s: journalctl: %w", r.unit, err)
	}
	return string(out), nil
}

// noSuchUnit tells the answer about a unit that isn't loaded, and so hasn't failed.
func noSuchUnit(err error) bool {
	var told dbus.Error
	return errors.As(err, &told) && told.Name == "org.freedesktop.systemd1.NoSuchUnit"
}
