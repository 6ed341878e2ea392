package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotFetched says that the cache folder holds no usable tools.
var ErrNotFetched = errors.New("the engine's packages are not in the cache (fetch them: make packages)")

// Tools are the programs of an engine.
type Tools struct {
	Dockerd string   // absolute path
	Docker  string   // the command line client, absolute path
	path    []string // folders with containerd, runc and the like, searched before the machine's
	libs    []string // folders of shared libraries the machine lacks
}

// programs is what an engine needs, each with the argument that makes it print its version and end.
var programs = map[string]string{"dockerd": "--version", "docker": "--version", "containerd": "--version", "runc": "--version"}

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

// Find gives the tools to use: those beside the engine that $ENGINE names, else those in the cache folder.
// It asks nothing of the network; errors.Is(err, ErrNotFetched) when [Fetch] would help.
func Find(ctx context.Context, cache string) (*Tools, error) {
	if dockerd := os.Getenv("ENGINE"); dockerd != "" {
		return installed(ctx, dockerd)
	}
	return unpacked(ctx, filepath.Join(cache, "engine"))
}

// installed gives the tools of an engine that is installed on the machine.
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

// unpacked gives the tools below a folder of unpacked packages.
func unpacked(ctx context.Context, dir string) (*Tools, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotFetched)
	}
	t := &Tools{
		Dockerd: filepath.Join(dir, "usr/sbin/dockerd"),
		Docker:  filepath.Join(dir, "usr/bin/docker"),
		path:    []string{filepath.Join(dir, "usr/sbin"), filepath.Join(dir, "usr/bin")},
	}
	for _, pattern := range []string{"lib/*-linux-gnu*", "usr/lib/*-linux-gnu*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		t.libs = append(t.libs, found...)
	}
	if err := t.try(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotFetched, err)
	}
	return t, nil
}

// Environ is the environment in which the tools run.
func (t *Tools) Environ() []string {
	// An ordinary user's PATH, which sudo and su may keep, lacks the folders of mount, modprobe and the like.
	env := []string{"PATH=" + strings.Join(append(slices.Clone(t.path), os.Getenv("PATH"), "/usr/sbin", "/usr/bin", "/sbin", "/bin"), ":")}
	if len(t.libs) > 0 {
		env = append(env, "LD_LIBRARY_PATH="+strings.Join(t.libs, ":"))
	}
	return env
}

// try has each program print its version: one that lacks a library is found here and not in the middle of a test.
func (t *Tools) try(ctx context.Context) error {
	for name, arg := range programs {
		program := t.find(name)
		if program == "" {
			return fmt.Errorf("%s is not in %s", name, strings.Join(t.path, ", "))
		}
		cmd := exec.CommandContext(ctx, program, arg)
		cmd.Env = t.Environ()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run %s %s: %w: %s", program, arg, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// find gives the path of a program among the tools, or of the machine's where they have none, or "".
func (t *Tools) find(name string) string {
	switch name {
	case "dockerd":
		return t.Dockerd
	case "docker":
		return t.Docker
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

// aptConf makes apt work in folders of our own: its lists, its archives and its locks. Hooks of the machine's
// configuration are dropped since they act on the machine's folders. What is installed is still looked up on the machine,
// so that only what is missing comes. apt verifies the archive's signature and each package's SHA-256.
const aptConf = `#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
Dir::State "%[1]s/state/";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "%[1]s/archive/";
APT::Sandbox::User "root";
APT::Get::List-Cleanup "true";
Debug::NoLocking "true";
Acquire::Retries "3";
`

// Fetch brings Debian's engine packages, and the libraries they need that the machine lacks, into the cache folder and
// unpacks them there; nothing is installed and apt's own folders are not touched. What is there and works is kept. Two
// at once wait for each other; one that is interrupted leaves nothing that counts. Progress is written to progress.
func Fetch(ctx context.Context, cache string, progress io.Writer) (*Tools, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("create the folder for packages: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(cache, "lock"), progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if t, err := Find(ctx, cache); err == nil || !errors.Is(err, ErrNotFetched) {
		return t, err
	}
	// What an interrupted run left; nobody else works here while the lock is ours.
	work := filepath.Join(cache, "fetching")
	if err := os.RemoveAll(work); err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	if err := download(ctx, work, progress); err != nil {
		return nil, err
	}
	if err := unpack(ctx, filepath.Join(work, "archive/archives"), filepath.Join(work, "root"), progress); err != nil {
		return nil, err
	}
	if _, err := unpacked(ctx, filepath.Join(work, "root")); err != nil {
		return nil, fmt.Errorf("try the fetched engine: %w", err)
	}
	final := filepath.Join(cache, "engine")
	if err := os.RemoveAll(final); err != nil {
		return nil, err
	}
	if err := os.Rename(filepath.Join(work, "root"), final); err != nil {
		return nil, err
	}
	return unpacked(ctx, final)
}

// download fetches the packages into work/archive/archives.
func download(ctx context.Context, work string, progress io.Writer) error {
	for _, dir := range []string{"state/lists/partial", "archive/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
			return err
		}
	}
	conf := filepath.Join(work, "apt.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, aptConf, work), 0o644); err != nil {
		return err
	}
	apt := func(args ...string) error {
		return run(ctx, progress, append([]string{"apt-get", "-c", conf, "-q"}, args...)...)
	}
	if err := apt("update"); err != nil {
		return fmt.Errorf("fetch the lists of Debian's packages: %w (on a machine without apt set ENGINE to a dockerd)", err)
	}
	err := apt("install", "--yes", "--download-only", "--reinstall", "--no-install-recommends", "docker.io", "containerd", "runc")
	if err != nil {
		return fmt.Errorf("fetch Debian's engine packages: %w (with another engine at hand set ENGINE to its dockerd)", err)
	}
	return nil
}

// unpack extracts every package of a folder into one tree.
func unpack(ctx context.Context, archives, root string, progress io.Writer) error {
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return err
	}
	slices.Sort(debs)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	for _, deb := range debs {
		fmt.Fprintf(progress, "unpack %s\n", filepath.Base(deb))
		if err := run(ctx, progress, "dpkg-deb", "--extract", deb, root); err != nil {
			return fmt.Errorf("unpack %s: %w", deb, err)
		}
	}
	return nil
}

// run runs a program and shows what it says.
func run(ctx context.Context, out io.Writer, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	return cmd.Run()
}

// lock takes the lock file and gives the function that lets it go. The lock ends with the process at the latest.
func lock(ctx context.Context, path string, progress io.Writer) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the folder for packages: %w", err)
	}
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !told {
			fmt.Fprintf(progress, "wait for another run that holds %s\n", path)
		}
		if err := sleep(ctx, lockPoll); err != nil {
			f.Close()
			return nil, fmt.Errorf("wait for %s: %w", path, err)
		}
	}
}
