package preflight

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/hostfs"
)

// Bounds of what is waited for.
const (
	askWait = 10 * time.Second // an answer of the engine or the plugin
	// what the engine runs on: it asks its storage driver, and gives one that has gone half a minute
	infoWait       = 45 * time.Second
	lookWait       = 5 * time.Second  // a file system's answer; that of a network may never come
	repositoryWait = 15 * time.Second // a repository's newest revision, over all its servers and proxies
	countWait      = 3 * time.Second  // counting what was fetched
)

// Gather looks at a host. It changes nothing, and what it can't find out it says in the facts.
func Gather(ctx context.Context, p Plan) Facts {
	f := Facts{Time: time.Now(), Root: os.Geteuid() == 0}
	f.Engine, f.Plugin = askEngine(ctx, p)
	f.Service = lookAtService(ctx, f.Engine, p.Log)
	f.File = readFile(p, f.Service, f.Engine.Version)
	f.Engine.Elsewhere = elsewhere(f.Engine, f.Service.PID)
	local := f.Engine.Elsewhere == ""

	var g errgroup.Group
	g.Go(func() error {
		f.Data = lookAtData(p, f.Engine, local)
		f.Kernel = try(f.Data.Dir)
		return nil
	})
	g.Go(func() error {
		f.Configuration = lookAtConfiguration(ctx, p, f.Plugin.Settings["cvmfs_ext_config"])
		return nil
	})
	if local && f.Plugin.Present {
		g.Go(func() error {
			f.Plugin.look(ctx, f.Engine, f.Service.PID)
			return nil
		})
	}
	if p.Snapshotter != "" {
		g.Go(func() error {
			f.Snapshotter = askSnapshotter(ctx, p)
			return nil
		})
	}
	f.Minio = lookAtMinio(ctx, p, f.pushBackFile(p))
	f.Missing = missing(hostsFile, resolvConf)
	f.Security = lookAtSecurity()
	f.Clock = askClock()
	g.Wait() // none fails
	f.Plugin.compare(ctx, f.Configuration, p.Agent)
	return f
}

// within does what may hang, and gives up on it after a time: it then goes on by itself, and its result is dropped.
func within[T any](d time.Duration, do func() T) (result T, ok bool) {
	done := make(chan T, 1)
	go func() { done <- do() }()
	select {
	case result = <-done:
		return result, true
	case <-time.After(d):
		return result, false
	}
}

// lookAtData examines the file system that holds the engine's data, or is to.
func lookAtData(p Plan, e Engine, local bool) Data {
	dir := p.DataRoot
	if dir == "" {
		dir = e.Root
	}
	if dir == "" || !local {
		return Data{}
	}
	d, ok := within(lookWait, func() Data { return examine(dir) })
	if !ok {
		return Data{Dir: dir, Err: "its file system doesn't answer"}
	}
	return d
}

func examine(dir string) (d Data) {
	for d.Dir = dir; ; d.Dir = filepath.Dir(d.Dir) {
		if _, err := os.Stat(d.Dir); !errors.Is(err, fs.ErrNotExist) || d.Dir == filepath.Dir(d.Dir) {
			break
		}
	}
	var st unix.Statfs_t
	err := unix.Statfs(d.Dir, &st)
	if err == nil {
		d.FileSystem, err = hostfs.Kind(d.Dir)
	}
	if err == nil {
		d.Typed, err = hostfs.Typed(d.Dir)
	}
	if err != nil {
		d.Err = err.Error()
		return d
	}
	d.ReadOnly = errors.Is(unix.Access(d.Dir, unix.W_OK), unix.EROFS)
	d.Free, d.Size = st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	d.FreeInodes, d.Inodes = st.Ffree, st.Files
	return d
}

// The host's files that the engine mounts into every plugin with the host's network, beside what its config.json names.
const (
	hostsFile  = "/etc/hosts"
	resolvConf = "/etc/resolv.conf"
)

// missing returns those of files that aren't there, or are links to nothing.
func missing(files ...string) (gone []string) {
	for _, file := range files {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			gone = append(gone, file)
		}
	}
	return gone
}

// firstWord reads a small file of the kernel's; "" if there is none.
func firstWord(path string) string {
	b, err := os.ReadFile(path)
	if words := strings.Fields(string(b)); err == nil && len(words) > 0 {
		return words[0]
	}
	return ""
}

func lookAtSecurity() (s Security) {
	switch firstWord("/sys/fs/selinux/enforce") {
	case "1":
		s.SELinux = "enforcing"
	case "0":
		s.SELinux = "permissive"
	}
	s.AppArmor = firstWord("/sys/module/apparmor/parameters/enabled") == "Y"
	return s
}

// askClock asks the kernel whether a time service keeps its clock, adjtimex(2).
func askClock() Clock {
	const unsynchronised = 5 // TIME_ERROR
	state, err := unix.Adjtimex(new(unix.Timex))
	if err != nil {
		return Clock{Err: err.Error()}
	}
	return Clock{Synchronised: state != unsynchronised}
}
