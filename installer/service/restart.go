package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxLogLines = 5000
	maxLog      = 1 << 20 // bytes of a log file that are looked at, from its end
	maxOutput   = 4 << 10 // bytes of a command's output that an error tells, from its end
)

// ErrByHand says that the engine is the administrator's to restart.
var ErrByHand = errors.New("the engine must be restarted by hand")

// Restarter restarts the engine by what the host has for it.
type Restarter interface {
	// String is how Choose makes the same restarter.
	String() string
	// Restart stops the engine if it runs, and starts it. It returns when that is done or has failed as far as the host
	// can tell; see Await.
	Restart(ctx context.Context) error
	// Reload makes changes to the service's definition count, as a drop-in.
	Reload(ctx context.Context) error
	// Log returns the newest part of the engine's log since a time; "" if nobody knows where it is.
	Log(ctx context.Context, since time.Time) (string, error)
}

// Choose makes the restarter that a word names: auto, systemd, systemd:UNIT, openrc, sysv, command:SHELL-COMMAND or
// none. The engine is the one that runs, nil for none.
func Choose(word string, e *Engine) (Restarter, error) {
	kind, rest, given := strings.Cut(word, ":")
	logFile := ""
	if e != nil {
		logFile = e.LogFile
	}
	switch {
	case word == "auto":
		word, err := thisHost().choose(e)
		if err != nil {
			return nil, err
		}
		return Choose(word, e)
	case kind == "systemd" && given && rest != "":
		return unitRestarter{rest}, nil
	case word == "systemd":
		if e != nil && e.Unit != "" {
			return unitRestarter{e.Unit}, nil
		}
		return unitRestarter{DefaultUnit}, nil
	case word == "openrc":
		return commandRestarter{word, "rc-service docker restart", logOf(logFile)}, nil
	case word == "sysv":
		return commandRestarter{word, "service docker restart", logOf(logFile)}, nil
	case kind == "command" && strings.TrimSpace(rest) != "":
		return commandRestarter{word, rest, logFile}, nil
	case word == "none":
		return byHand{logFile}, nil
	}
	return nil, fmt.Errorf("restart the engine by %q: one of auto, systemd, systemd:UNIT, openrc, sysv, command:COMMAND and none", word)
}

// host is what a host has to run services with.
type host struct{ systemd, openrc, script bool }

func thisHost() host {
	return host{booted(), isFile("/run/openrc/softlevel"), isFile("/etc/init.d/docker")}
}

// choose returns the word for auto.
func (h host) choose(e *Engine) (string, error) {
	switch {
	case h.systemd && e == nil:
		return "systemd", nil
	case h.systemd && e.Unit != "":
		return "systemd:" + e.Unit, nil
	case h.systemd:
		// The script, if there is one, would have systemd restart another engine.
		return "", fmt.Errorf("the engine, process %d, runs in no systemd unit (say how to restart it: --restart command:…)", e.PID)
	case h.script && h.openrc:
		return "openrc", nil
	case h.script:
		return "sysv", nil
	}
	return "", errors.New("what starts and stops the engine is not known (say how to restart it: --restart command:…)")
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// logOf returns the log file that the packages' init scripts use where the engine doesn't tell its own.
func logOf(file string) string {
	if file == "" {
		return "/var/log/docker.log"
	}
	return file
}

// commandRestarter restarts the engine by a shell command.
type commandRestarter struct{ word, command, logFile string }

func (r commandRestarter) String() string { return r.word }

func (r commandRestarter) Restart(ctx context.Context) error {
	if out, err := shell(ctx, r.command); err != nil {
		return fmt.Errorf("restart the engine: %s: %w%s", r.command, err, indent(out))
	}
	return nil
}

func (r commandRestarter) Reload(context.Context) error { return nil }

func (r commandRestarter) Log(_ context.Context, since time.Time) (string, error) {
	return logSince(r.logFile, since)
}

// byHand leaves the restart to the administrator.
type byHand struct{ logFile string }

func (byHand) String() string { return "none" }

func (byHand) Restart(context.Context) error { return ErrByHand }

func (byHand) Reload(context.Context) error { return nil }

func (r byHand) Log(_ context.Context, since time.Time) (string, error) {
	return logSince(r.logFile, since)
}

// usualLogs are the files that an engine's log goes to where there is no journal: those of init scripts, and the
// system's.
var usualLogs = []string{
	"/var/log/docker.log", "/var/log/upstart/docker.log", "/var/log/docker", "/var/log/daemon.log",
	"/var/log/syslog", "/var/log/messages",
}

// FindLog returns the newest part of the log of an engine, which may not run (nil), since a time, and where it is: in
// the named file if one is named, in that of the process, where this host's service has it, or in one of the usual
// files. One that tells why a start failed is preferred.
func FindLog(ctx context.Context, e *Engine, file string, since time.Time) (log, where string) {
	take := func(text, from string) (found bool) {
		if text != "" && (log == "" || Cause(text) != "") {
			log, where = text, from
		}
		return Cause(text) != ""
	}
	files := []string{file}
	if e != nil {
		files = append(files, e.LogFile)
	}
	for _, f := range files {
		// What can't be read tells nothing.
		if text, err := logSince(f, since); err == nil && take(text, f) {
			return log, where
		}
	}
	if r, err := Choose("auto", e); err == nil {
		if text, err := r.Log(ctx, since); err == nil && take(text, r.String()) {
			return log, where
		}
	}
	for _, f := range usualLogs {
		if text, err := logSince(f, since); err == nil && take(ofEngine(text), f) {
			return log, where
		}
	}
	return log, where
}

// another tells a line of the system's log that is another program's, by its "NAME[PID]: ".
var another = regexp.MustCompile(`^[^"=]* ([\w./-]+)\[\d+\]: `)

// ofEngine leaves in a log the engine's lines.
func ofEngine(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		if m := another.FindStringSubmatch(line); m == nil || strings.HasPrefix(m[1], "docker") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// shell runs a command and gives the end of its output. The output goes to a file: an engine that the command leaves in
// the background may keep it open as long as it lives.
func shell(ctx context.Context, command string) (string, error) {
	out, err := os.CreateTemp("", "restart-")
	if err != nil {
		return "", err
	}
	defer out.Close() // it is only read from here on
	if err := os.Remove(out.Name()); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err = cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	said, readErr := tail(out, maxOutput)
	return said, errors.Join(err, readErr)
}

// tail returns the last bytes of a file.
func tail(f *os.File, most int64) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	start := max(0, info.Size()-most)
	b := make([]byte, info.Size()-start)
	n, err := f.ReadAt(b, start)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return string(b[:n]), nil
}

// indent puts lines below a message.
func indent(text string) string {
	if text = strings.TrimSpace(text); text == "" {
		return ""
	}
	return "\n  " + strings.ReplaceAll(text, "\n", "\n  ")
}

// logSince returns the end of a log file from a time on, by the times in its lines. A line without a time belongs to
// the one before it; those at the end, which an engine writes that can't read its configuration, are as old as the
// file's last change.
func logSince(path string, since time.Time) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the engine's log: %w", err)
	}
	defer f.Close() // only read from
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("read the engine's log: %w", err)
	}
	all, err := tail(f, maxLog)
	if err != nil {
		return "", fmt.Errorf("read the engine's log: %w", err)
	}
	var b, untimed strings.Builder
	newer := false
	for line := range strings.Lines(all) {
		at, ok := timeOf(line)
		if !ok {
			untimed.WriteString(line)
			continue
		}
		if newer {
			b.WriteString(untimed.String())
		}
		untimed.Reset()
		if newer = !at.Before(since); newer {
			b.WriteString(line)
		}
	}
	if newer || !info.ModTime().Before(since) {
		b.WriteString(untimed.String())
	}
	return b.String(), nil
}

// Await waits until the engine answers, at most for limit, and calls progress, which may be nil, now and then. ping
// asks the engine once. An engine whose log says that it has given up isn't waited for.
func Await(ctx context.Context, r Restarter, since time.Time, limit time.Duration, ping func(context.Context) error,
	progress func(waited time.Duration),
) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		err := ping(ctx)
		if err == nil {
			return nil
		}
		if n%looksEvery == 0 {
			if log, logErr := r.Log(ctx, since); logErr == nil && gaveUp(log) {
				return fmt.Errorf("the engine doesn't start: %s", Cause(log))
			}
			if progress != nil {
				progress(time.Since(start))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait %s for the engine: %w", time.Since(start).Round(time.Second), err)
		}
	}
}

const (
	pingEvery  = 200 * time.Millisecond
	looksEvery = 10 // pings, before the log is looked at
)
