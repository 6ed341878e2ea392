package engine

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
)

// Userland is a set of Debian packages of one release, with all they need, of which something is made in the cache
// folder.
type Userland struct {
	Folder  string     // in the cache folder, of what is made
	Suite   string     // the Debian release, as in "bookworm"
	Stages  [][]string // packages as apt takes them; each stage adds to those before
	Without []string   // packages that are left out though others need them, with what only they need

	Works func(dir string) error // reports whether what is made is there, whole
	// Make makes it, in a new folder. It is given the files of the packages, those that a stage adds together, sorted.
	Make func(ctx context.Context, dir string, debs [][]string) error
}

// Fetch has the userland made unless it is there; the packages are fetched as [Fetch] does, and not kept.
func (u *Userland) Fetch(ctx context.Context, cache string, progress io.Writer) error {
	s := &packageSet{
		folder: u.Folder, suites: []string{u.Suite}, packages: slices.Concat(u.Stages...), depends: true,
		from: []byte(pretended(u.Without)),
		what: "the Debian packages of " + u.Folder, otherwise: "the tests that need them will skip",
	}
	s.make = func(ctx context.Context, apt *apt, root string) error {
		debs, err := u.stages(ctx, apt)
		if err != nil {
			return err
		}
		return u.Make(ctx, root, debs)
	}
	return s.fetch(ctx, cache, progress, u.Works)
}

// Unpacked is a set of Debian packages that is unpacked, and not installed, into a folder of the cache.
type Unpacked struct {
	Folder   string
	What     string   // names the set in errors
	Packages []string // as apt takes them
	Suites   []string // the Debian releases; none for the machine's own
	// Choose returns further packages, of the names of all there are; it may be nil.
	Choose func(names []string) ([]string, error)
	Needs  bool // also the packages they need that the machine lacks

	Works func(dir string) error // reports whether what was unpacked is whole
}

// Fetch has the packages fetched and unpacked unless they are there, as [Fetch] does.
func (u *Unpacked) Fetch(ctx context.Context, cache string, progress io.Writer) error {
	s := &packageSet{
		folder: u.Folder, packages: u.Packages, choose: u.Choose, suites: u.Suites, depends: u.Needs,
		what: u.What, otherwise: "the tests that need them can't run",
	}
	return s.fetch(ctx, cache, progress, u.Works)
}

// pretended is the state of a machine that has these packages, in a version newer than any that is asked for, and no
// others.
func pretended(packages []string) string {
	var b strings.Builder
	for _, p := range packages {
		fmt.Fprintf(&b, "Package: %s\nStatus: install ok installed\nArchitecture: all\nVersion: 999:0\nMaintainer: none\nDescription: none\n\n", p)
	}
	return b.String()
}

// stages sorts the files that were fetched by the stage which needs them first.
func (u *Userland) stages(ctx context.Context, apt *apt) ([][]string, error) {
	var packages []string
	var stages [][]string
	known := map[string]bool{}
	for _, stage := range u.Stages {
		packages = append(packages, stage...)
		names, err := apt.plan(ctx, packages)
		if err != nil {
			return nil, err
		}
		var debs []string
		for _, name := range names {
			if known[name] {
				continue
			}
			known[name] = true
			found, err := filepath.Glob(filepath.Join(apt.dir, name+"_*.deb"))
			if err != nil || len(found) != 1 {
				return nil, fmt.Errorf("find the package %s among those fetched: %d files", name, len(found))
			}
			debs = append(debs, found[0])
		}
		slices.Sort(debs)
		stages = append(stages, debs)
	}
	return stages, nil
}

// plan returns the names of the packages that would be installed.
func (a *apt) plan(ctx context.Context, packages []string) ([]string, error) {
	out, err := a.ask(ctx, "apt-get", append([]string{"-qq", "--simulate", "install", "--no-install-recommends"},
		packages...)...)
	if err != nil {
		return nil, fmt.Errorf("plan an installation: %w", err)
	}
	var names []string
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Inst" {
			name, _, _ := strings.Cut(fields[1], ":")
			names = append(names, name)
		}
	}
	return names, nil
}
