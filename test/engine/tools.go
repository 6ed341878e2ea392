package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// ErrNotFetched says that the cache folder holds no usable tools.
var ErrNotFetched = errors.New("the engine's packages are not in the cache (fetch them: make packages)")

// Tools are the programs of an engine.
type Tools struct {
	Dockerd string   // absolute path
	Docker  string   // the command line client, absolute path
	path    []string // folders with containerd, runc and the like, searched before the machine's
	libs    []string // folders of shared libraries the machine lacks

	containerd string // absolute path of one that the engine doesn't start itself, or ""
	crictl     string // absolute path of a client of Kubernetes' runtime interface, or ""
	plugins    string // folder of the client's plugins, or ""
}

// programs is what an engine needs; each prints its version when asked with --version.
var programs = []string{"dockerd", "docker", "containerd", "runc"}

// CacheDir is where unpacked packages are kept: $CVMFS_TEST_CACHE, or cvmfs-graphdriver in the user's cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv("CVMFS_TEST_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the folder for packages: %w (set CVMFS_TEST_CACHE)", err)
	}
	return filepath.Join(dir, "cvmfs-graphdriver"), nil
}

// Find returns the tools to use: those beside the engine that $ENGINE names, else those in the cache folder.
// It asks nothing of the network; errors.Is(err, ErrNotFetched) when [Fetch] would help.
func Find(ctx context.Context, cache string) (*Tools, error) {
	if dockerd := os.Getenv("ENGINE"); dockerd != "" {
		return installed(ctx, dockerd)
	}
	return unpacked(ctx, filepath.Join(cache, oldest.folder))
}

// FindNewer returns the tools of the newest engine that takes storage-driver plugins without more ado, that of Debian
// trixie, from the cache folder; errors.Is(err, ErrNotFetched) when [FetchAll] would help. Its runc is the one that
// [Find] gives: a newer one wants a newer libc than the machine may have.
func FindNewer(ctx context.Context, cache string) (*Tools, error) {
	return unpacked(ctx, filepath.Join(cache, newer.folder), filepath.Join(cache, oldest.folder))
}

// FindProgram returns the path of a program that tests run beside an engine: "busybox" or "docker-registry", which need
// no libraries, or "dbus-daemon", which wants those of [ProgramLibraries]; errors.Is(err, ErrNotFetched) when
// [FetchAll] would help.
func FindProgram(cache, name string) (string, error) {
	return program(filepath.Join(cache, besides.folder), name)
}

// ProgramLibraries returns the value of LD_LIBRARY_PATH for programs of [FindProgram].
func ProgramLibraries(cache string) (string, error) {
	libs, err := Libraries(filepath.Join(cache, besides.folder))
	return strings.Join(libs, ":"), err
}

// Squid is the caching proxy that most sites have.
type Squid struct {
	Program   string // absolute path
	Share     string // folder with what it reads besides its configuration: mime.conf, errors
	Libraries string // value of LD_LIBRARY_PATH
}

// FindSquid returns Debian's squid; errors.Is(err, ErrNotFetched) when [FetchAll] would help.
func FindSquid(ctx context.Context, cache string) (Squid, error) {
	return findSquid(ctx, filepath.Join(cache, squid.folder))
}

func findSquid(ctx context.Context, dir string) (Squid, error) {
	libs, err := Libraries(dir)
	if err != nil {
		return Squid{}, err
	}
	s := Squid{
		Program: filepath.Join(dir, "usr/sbin/squid"), Share: filepath.Join(dir, "usr/share/squid"),
		Libraries: strings.Join(libs, ":"),
	}
	if !executable(s.Program) {
		return Squid{}, fmt.Errorf("find squid below %s: %w", dir, ErrNotFetched)
	}
	cmd := exec.CommandContext(ctx, s.Program, "-v")
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+s.Libraries)
	if out, err := cmd.CombinedOutput(); err != nil {
		return Squid{}, fmt.Errorf("%w: %s doesn't run: %w: %.300s", ErrNotFetched, s.Program, err, out)
	}
	return s, nil
}

// Libraries returns the folders of libraries below a folder of unpacked packages.
func Libraries(dir string) (libs []string, err error) {
	for _, pattern := range []string{"lib/*-linux-gnu*", "usr/lib/*-linux-gnu*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		libs = append(libs, found...)
	}
	return libs, nil
}

func program(dir, name string) (string, error) {
	for _, sub := range []string{"bin", "usr/bin"} {
		if path := filepath.Join(dir, sub, name); executable(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s below %s: %w", name, dir, ErrNotFetched)
}

// installed returns the tools of an engine that is installed on the machine.
func installed(ctx context.Context, dockerd string) (*Tools, error) {
	dockerd, err := filepath.Abs(dockerd)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(dockerd)
	t := &Tools{Dockerd: dockerd, Docker: filepath.Join(dir, "docker"), path: []string{dir}}
	if _, err := os.Stat(t.Docker); err != nil {
		if t.Docker, err = exec.LookPath("docker"); err != nil {
			return nil, fmt.Errorf("find the client of the engine %s: %w", dockerd, err)
		}
	}
	return t, t.try(ctx)
}

// unpacked returns the tools below a folder of unpacked packages, and what these lack from the others.
func unpacked(ctx context.Context, dir string, others ...string) (*Tools, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotFetched)
	}
	t := &Tools{Dockerd: filepath.Join(dir, "usr/sbin/dockerd"), Docker: filepath.Join(dir, "usr/bin/docker")}
	for _, dir := range append([]string{dir}, others...) {
		t.path = append(t.path, filepath.Join(dir, "usr/sbin"), filepath.Join(dir, "usr/bin"))
		libs, err := Libraries(dir)
		if err != nil {
			return nil, err
		}
		t.libs = append(t.libs, libs...)
	}
	if err := t.try(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotFetched, err)
	}
	return t, nil
}

// Containerd is the absolute path of containerd.
func (t *Tools) Containerd() string { return t.find("containerd") }

// Environ is the environment in which the tools run.
func (t *Tools) Environ() []string {
	// An ordinary user's PATH, which sudo and su may keep, lacks the folders of mount, modprobe and the like.
	env := []string{"PATH=" + strings.Join(append(slices.Clone(t.path), os.Getenv("PATH"), "/usr/sbin", "/usr/bin",
		"/sbin", "/bin"), ":")}
	if len(t.libs) > 0 {
		env = append(env, "LD_LIBRARY_PATH="+strings.Join(t.libs, ":"))
	}
	return env
}

// try has each program print its version: one that lacks a library is found here and not in the middle of a test.
func (t *Tools) try(ctx context.Context) error {
	for _, name := range programs {
		program := t.find(name)
		if program == "" {
			return fmt.Errorf("%s is not in %s", name, strings.Join(t.path, ", "))
		}
		cmd := exec.CommandContext(ctx, program, "--version")
		cmd.Env = t.Environ()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run %s --version: %w: %s", program, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// find returns the path of a program among the tools, or of the machine's where they have none, or "".
func (t *Tools) find(name string) string {
	switch name {
	case "dockerd":
		return t.Dockerd
	case "docker":
		return t.Docker
	case "crictl":
		return t.crictl
	}
	for _, dir := range t.path {
		if path := filepath.Join(dir, name); executable(path) {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
