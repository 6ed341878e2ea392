package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
)

// packageSet is what is fetched and unpacked together, into a folder of the cache.
type packageSet struct {
	folder   string
	packages []string
	choose   func(names []string) ([]string, error) // further packages, of all the names there are; may be nil
	// the Debian releases the packages are taken from, each in the newest version of all; none for the machine's own
	suites  []string
	depends bool // also the packages they need that the machine lacks
	// the state of the machine that counts for depends, as dpkg writes it; nil for that of this one
	from      []byte
	what      string // names the set in errors
	otherwise string // how to do without, said in errors

	make func(ctx context.Context, apt *apt, root string) error // of the archives; nil: unpack them
}

var (
	oldest = packageSet{
		folder: "engine", packages: []string{"docker.io", "containerd", "runc"}, depends: true,
		what: "Debian's engine packages", otherwise: "with another engine at hand set ENGINE to its dockerd",
	}
	// Of the packages these need, what the programs link with is as old as bookworm.
	newer = packageSet{
		folder: "engine-trixie", packages: []string{"docker.io", "docker-cli", "containerd"},
		suites: []string{"trixie"},
		what:   "the engine packages of Debian trixie", otherwise: "the tests on that engine will skip",
	}
	besides = packageSet{
		folder: "programs",
		// A message bus, and what of its libraries a Debian may lack.
		packages: []string{
			"busybox-static", "docker-registry", "dbus-daemon", "libdbus-1-3", "libapparmor1",
			"libexpat1",
		},
		what: "Debian's busybox, registry and message bus", otherwise: "the tests that need them will skip",
	}
	squid = packageSet{
		folder: "squid", packages: []string{"squid"}, depends: true,
		what: "Debian's squid", otherwise: "the tests that need it will skip",
	}
)

// aptConf makes apt work in folders of our own: its lists, its archives and its locks. Hooks of the machine's
// configuration are dropped since they act on the machine's folders. What is installed is still looked up on the
// machine, so that only what is missing comes. apt verifies the archive's signature and each package's SHA-256.
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

// suiteConf, after aptConf, has apt use one source and not those of the machine.
const suiteConf = `Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "/dev/null";
`

// debianKeys is where Debian's package debian-archive-keyring keeps the keys that sign every release.
const debianKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Fetch brings Debian's engine packages, and the libraries they need that the machine lacks, into the cache folder and
// unpacks them there; nothing is installed and apt's own folders are not touched. What is there and works is kept. Two
// at once wait for each other; one that is interrupted leaves nothing that counts. Progress is written to progress.
func Fetch(ctx context.Context, cache string, progress io.Writer) (*Tools, error) {
	if t, err := Find(ctx, cache); err == nil || !errors.Is(err, ErrNotFetched) {
		return t, err
	}
	err := oldest.fetch(ctx, cache, progress, func(dir string) error {
		_, err := unpacked(ctx, dir)
		return err
	})
	if err != nil {
		return nil, err
	}
	return Find(ctx, cache)
}

// FetchAll brings all that tests run into the cache folder as [Fetch] does: the engine, newer ones, those with an image
// store of containerd's, and programs besides. What can't be had doesn't keep the others away.
func FetchAll(ctx context.Context, cache string, progress io.Writer) error {
	_, err := Fetch(ctx, cache, progress)
	failures := []error{err}
	for _, b := range []build{containerdBuild, dockerdBuild, crictlBuild, storeBuild} {
		failures = append(failures, b.fetch(ctx, cache, progress))
	}
	return errors.Join(append(failures,
		fetchNewer(ctx, cache, progress), fetchSid(ctx, cache, progress),
		FetchPrograms(ctx, cache, progress), FetchSquid(ctx, cache, progress))...)
}

func fetchNewer(ctx context.Context, cache string, progress io.Writer) error {
	return newer.fetch(ctx, cache, progress, func(dir string) error {
		_, err := unpacked(ctx, dir, filepath.Join(cache, oldest.folder))
		return err
	})
}

// FetchPrograms brings what [FindProgram] gives into the cache folder, as [Fetch] does.
func FetchPrograms(ctx context.Context, cache string, progress io.Writer) error {
	return besides.fetch(ctx, cache, progress, func(dir string) error {
		_, busybox := program(dir, "busybox")
		_, registry := program(dir, "docker-registry")
		_, bus := program(dir, "dbus-daemon")
		return errors.Join(busybox, registry, bus)
	})
}

// FetchSquid brings what [FindSquid] gives into the cache folder, as [Fetch] does.
func FetchSquid(ctx context.Context, cache string, progress io.Writer) error {
	return squid.fetch(ctx, cache, progress, func(dir string) error {
		_, err := findSquid(ctx, dir)
		return err
	})
}

// fetch brings the set into the cache folder unless it is there; works says what is wrong with a folder.
func (s *packageSet) fetch(ctx context.Context, cache string, progress io.Writer, works func(dir string) error) error {
	return bring(ctx, cache, s.folder, progress, works, func(work, root string) error {
		apt, err := s.download(ctx, work, progress)
		if err != nil {
			return err
		}
		if s.make != nil {
			err = s.make(ctx, apt, root)
		} else {
			err = unpack(ctx, apt.dir, root, progress)
		}
		if err != nil {
			return err
		}
		if err := works(root); err != nil {
			return fmt.Errorf("try %s: %w", s.what, err)
		}
		return nil
	})
}

// bring has a folder of the cache filled unless it works: in root, an empty folder of the same file system. It is there
// whole, on disk, or not at all. What is in the folder work, which holds root, is gone afterwards.
func bring(ctx context.Context, cache, folder string, progress io.Writer, works func(dir string) error,
	fill func(work, root string) error,
) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("create the folder for packages: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(cache, "lock"), progress)
	if err != nil {
		return err
	}
	defer unlock()
	final := filepath.Join(cache, folder)
	if works(final) == nil {
		return nil
	}
	// What an interrupted run left; nobody else works here while the lock is ours.
	work := filepath.Join(cache, "fetching")
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := fill(work, root); err != nil {
		return err
	}
	if err := errors.Join(durable.SyncFS(root), os.RemoveAll(final)); err != nil {
		return err
	}
	if err := os.Rename(root, final); err != nil {
		return err
	}
	return durable.SyncDir(cache)
}

// archives is the folder, below a work folder, that packages come to.
func archives(work string) string { return filepath.Join(work, "archive/archives") }

// download fetches the set's packages.
func (s *packageSet) download(ctx context.Context, work string, progress io.Writer) (*apt, error) {
	for _, dir := range []string{filepath.Join(work, "state/lists/partial"), filepath.Join(archives(work), "partial")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	apt := &apt{conf: filepath.Join(work, "apt.conf"), dir: archives(work), progress: progress}
	conf := fmt.Sprintf(aptConf, work)
	if s.from != nil {
		status := filepath.Join(work, "status")
		if err := os.WriteFile(status, s.from, 0o644); err != nil {
			return nil, err
		}
		conf += fmt.Sprintf("Dir::State::status %q;\n", status)
	}
	if err := os.WriteFile(apt.conf, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	if err := apt.update(ctx); err != nil {
		return nil, err
	}
	if len(s.suites) > 0 {
		sources, err := apt.sources(ctx, s.suites)
		if err != nil {
			return nil, fmt.Errorf("fetch %s: %w (%s)", s.what, err, s.otherwise)
		}
		conf += fmt.Sprintf(suiteConf, work)
		err = errors.Join(os.WriteFile(filepath.Join(work, "sources.list"), []byte(sources), 0o644),
			os.WriteFile(apt.conf, []byte(conf), 0o644))
		if err != nil {
			return nil, err
		}
		if err := apt.update(ctx); err != nil {
			return nil, err
		}
	}
	packages := s.packages
	if s.choose != nil {
		names, err := apt.names(ctx)
		if err != nil {
			return nil, err
		}
		chosen, err := s.choose(names)
		if err != nil {
			return nil, fmt.Errorf("fetch %s: %w (%s)", s.what, err, s.otherwise)
		}
		packages = slices.Concat(packages, chosen)
	}
	args := []string{"download"}
	if s.depends {
		args = []string{"install", "--yes", "--download-only", "--reinstall", "--no-install-recommends"}
	}
	if err := apt.get(ctx, append(args, packages...)...); err != nil {
		return nil, fmt.Errorf("fetch %s: %w (%s)", s.what, err, s.otherwise)
	}
	return apt, nil
}

// apt is apt-get with a configuration of our own.
type apt struct {
	conf     string // the configuration, a file
	dir      string // the working folder, which "download" writes to
	progress io.Writer
}

func (a *apt) get(ctx context.Context, args ...string) error {
	return run(ctx, a.dir, a.progress, append([]string{"apt-get", "-c", a.conf, "-q"}, args...)...)
}

func (a *apt) update(ctx context.Context) error {
	if err := a.get(ctx, "update"); err != nil {
		return fmt.Errorf("fetch the lists of Debian's packages: %w (on a machine without apt set ENGINE to a dockerd)",
			err)
	}
	return nil
}

// sources returns the lines of a sources.list for releases. A release whose name ends with -security is of the archive
// for those.
func (a *apt) sources(ctx context.Context, suites []string) (string, error) {
	var lines strings.Builder
	for _, suite := range suites {
		label := "Debian"
		if strings.HasSuffix(suite, "-security") {
			label = "Debian-Security"
		}
		mirror, err := a.mirror(ctx, label)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&lines, "deb [signed-by=%s] %s %s main\n", debianKeys, mirror, suite)
	}
	return lines.String(), nil
}

// mirror returns the address of the Debian archive with a label that the machine's own sources name. The archive of
// security updates that they don't name is looked for where Debian's mirrors have it, beside the other.
func (a *apt) mirror(ctx context.Context, label string) (string, error) {
	out, err := a.ask(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
		"Created-By: Packages")
	if err != nil {
		return "", fmt.Errorf("list the sources of packages: %w", err)
	}
	found := map[string]string{}
	for line := range strings.Lines(out) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "Debian|")
		if label, uri, cut := strings.Cut(rest, "|"); ok && cut && found[label] == "" {
			found[label] = uri
		}
	}
	switch {
	case found[label] != "":
		return found[label], nil
	case found["Debian"] != "":
		return strings.TrimSuffix(found["Debian"], "/") + "-security/", nil
	}
	return "", errors.New("none of the machine's sources of packages is a Debian archive")
}

// names returns the names of all packages, sorted.
func (a *apt) names(ctx context.Context) ([]string, error) {
	out, err := a.ask(ctx, "apt-cache", "pkgnames")
	if err != nil {
		return nil, fmt.Errorf("list the packages: %w", err)
	}
	names := strings.Fields(out)
	slices.Sort(names)
	return names, nil
}

// ask runs one of apt's programs, which changes nothing, and gives its output.
func (a *apt) ask(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, append([]string{"-c", a.conf}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	return string(out), err
}

// unpack extracts every package of a folder into one tree.
func unpack(ctx context.Context, archives, root string, progress io.Writer) error {
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return err
	}
	slices.Sort(debs)
	for _, deb := range debs {
		fmt.Fprintf(progress, "unpack %s\n", filepath.Base(deb))
		if err := run(ctx, root, progress, "dpkg-deb", "--extract", deb, root); err != nil {
			return fmt.Errorf("unpack %s: %w", deb, err)
		}
	}
	return nil
}

// run runs a program in a folder and shows what it says.
func run(ctx context.Context, dir string, out io.Writer, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
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
