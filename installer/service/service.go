// Package service deals with the engine as a service of the host: what runs it and with which flags, its restart by
// whatever the host has for that, and the reason in its log when it doesn't start.
//
// The engine is the process that answers on the API's socket. A restarter is what the host starts and stops it with: a
// systemd unit, an OpenRC or System V service, a command of the administrator's, or nothing.
package service

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultUnit is the engine's unit, and its service under other init systems is named likewise.
const DefaultUnit = "docker.service"

// pidFile is where an engine keeps its process id if nothing else is said.
const pidFile = "/var/run/docker.pid"

// defaultSocket is where an engine listens if nothing else is said.
const defaultSocket = "/var/run/docker.sock"

// dialWait bounds the connection to the engine's socket.
const dialWait = 5 * time.Second

// ErrNotFound says that no process of an engine was found.
var ErrNotFound = errors.New("no engine's process was found")

// Engine is an engine's process.
type Engine struct {
	PID     int
	Program string   // path of its program, as this process can reach it
	Args    []string // arguments, without the program
	Environ []string
	Unit    string // the systemd unit whose main process it is, "" for none
	LogFile string // the file its log goes to, "" for none
}

// Find finds the engine that answers on a socket. Not found is errors.Is(err, ErrNotFound).
func Find(ctx context.Context, socket string) (*Engine, error) {
	pid, err := find(ctx, strings.TrimPrefix(socket, "unix://"))
	if err != nil {
		return nil, fmt.Errorf("find the engine behind %s: %w", socket, err)
	}
	e, err := inspect(ctx, pid)
	if err != nil {
		return nil, fmt.Errorf("look at the engine, process %d: %w", pid, err)
	}
	return e, nil
}

func find(ctx context.Context, socket string) (int, error) {
	pid, err := peer(ctx, socket)
	if err != nil {
		return 0, err
	}
	if isEngine(pid) {
		return pid, nil
	}
	// The one who listens is systemd, which hands the socket over.
	if booted() {
		if u, err := LoadUnit(ctx, DefaultUnit); err == nil && isEngine(u.PID) {
			return u.PID, nil
		}
	}
	if pid, err := readPIDFile(pidFile); err == nil {
		return pid, nil
	}
	return 0, fmt.Errorf("%w: process %d listens there and is no dockerd", ErrNotFound, pid)
}

// FindByPIDFile finds an engine by the file that has its process id; "" is the usual one. Not found is
// errors.Is(err, ErrNotFound).
func FindByPIDFile(ctx context.Context, name string) (*Engine, error) {
	pid, err := readPIDFile(cmp.Or(name, pidFile))
	if err != nil {
		return nil, err
	}
	return inspect(ctx, pid)
}

// readPIDFile returns the process that a file names, if it is an engine: the file may be older than its process.
func readPIDFile(name string) (int, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || !isEngine(pid) {
		return 0, fmt.Errorf("%w: what %s names is no dockerd", ErrNotFound, name)
	}
	return pid, nil
}

// peer returns the process that listens on a socket, 0 if it is in a PID namespace that isn't ours or below.
func peer(ctx context.Context, socket string) (int, error) {
	conn, err := (&net.Dialer{Timeout: dialWait}).DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET,
			unix.SO_PEERCRED)
	})
	if err := errors.Join(err, failed); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// isEngine reports whether it is an engine by the name of its process.
func isEngine(pid int) bool {
	if pid <= 0 {
		return false
	}
	comm, err := os.ReadFile(proc(pid, "comm"))
	return err == nil && strings.HasPrefix(string(comm), "dockerd")
}

func proc(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

func inspect(ctx context.Context, pid int) (*Engine, error) {
	cmdline, err := os.ReadFile(proc(pid, "cmdline"))
	if err != nil {
		return nil, err
	}
	environ, err := os.ReadFile(proc(pid, "environ"))
	if err != nil {
		return nil, err
	}
	args := split(cmdline)
	if len(args) == 0 {
		return nil, fmt.Errorf("%w: process %d is just ending", ErrNotFound, pid)
	}
	program, err := os.Readlink(proc(pid, "exe"))
	if err != nil {
		return nil, err
	}
	// A program that was replaced by an upgrade is "… (deleted)"; the new one is there under the old name.
	program = strings.TrimSuffix(program, " (deleted)")
	e := &Engine{PID: pid, Program: program, Args: args[1:], Environ: split(environ)}
	if cgroup, err := os.ReadFile(proc(pid, "cgroup")); err == nil && booted() {
		// An engine that somebody started by hand may run within the service they came by, which isn't to be restarted.
		if unit := unitOf(string(cgroup)); unit != "" && isMain(ctx, unit, pid) {
			e.Unit = unit
		}
	}
	if log, err := os.Readlink(proc(pid, "fd/2")); err == nil {
		if info, err := os.Stat(log); err == nil && info.Mode().IsRegular() {
			e.LogFile = log
		}
	}
	return e, nil
}

// Addresses are those that the engine listens on by its flags, or else by the list in its configuration file.
func (e *Engine) Addresses(configured []string) []string {
	var addresses []string
	for _, f := range ParseFlags(e.Args) {
		if f.Name == "host" {
			addresses = append(addresses, f.Value)
		}
	}
	if len(addresses) == 0 {
		addresses = configured
	}
	if len(addresses) == 0 {
		addresses = []string{"unix://" + defaultSocket}
	}
	return addresses
}

// Age returns for how long the process has run, to the hundredth of a second.
func (e *Engine) Age() (time.Duration, error) {
	stat, err := os.ReadFile(proc(e.PID, "stat"))
	if err != nil {
		return 0, err
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	// proc_pid_stat(5): behind the name, which may hold anything, field 22 is the start in ticks since the boot.
	const startTime, ticks = 22 - 3, 100 // ticks in a second, for all programs
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) <= startTime {
		return 0, fmt.Errorf("process %d: %q is no state of a process", e.PID, stat)
	}
	begun, err := strconv.ParseFloat(fields[startTime], 64)
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(uptime), " ")
	now, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, err
	}
	return time.Duration((now - begun/ticks) * float64(time.Second)), nil
}

// split takes apart what ends in NULs.
func split(b []byte) []string {
	if b = bytes.TrimSuffix(b, []byte{0}); len(b) == 0 {
		return nil
	}
	return strings.Split(string(b), "\x00")
}

// unitOf returns the systemd service of a process from its /proc/PID/cgroup.
func unitOf(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 || fields[1] != "" && fields[1] != "name=systemd" {
			continue
		}
		if unit := filepath.Base(fields[2]); strings.HasSuffix(unit, ".service") {
			return unit
		}
	}
	return ""
}

// lookup returns a variable's last value.
func lookup(environ []string, name string) (value string, ok bool) {
	for _, v := range environ {
		if rest, found := strings.CutPrefix(v, name+"="); found {
			value, ok = rest, true
		}
	}
	return value, ok
}

// booted reports whether systemd runs the host.
func booted() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}
