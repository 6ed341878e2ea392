package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Archives finds the archives of bundles for an architecture in a folder: those of a version, and all of them.
func Archives(dir, version, arch string) (ours, all []string, err error) {
	for _, format := range []Format{TarGz, TarZst} {
		pattern := filepath.Join(globQuote(dir), namePrefix+"*-"+arch+"."+string(format))
		some, err := filepath.Glob(pattern)
		if err != nil {
			return nil, nil, fmt.Errorf("find the bundle in %s: %w", dir, err)
		}
		all = append(all, some...)
	}
	for _, name := range all {
		if strings.HasPrefix(filepath.Base(name), namePrefix+version+"-"+arch+".") {
			ours = append(ours, name)
		}
	}
	return ours, all, nil
}

// globQuote makes a name stand for itself in a pattern.
func globQuote(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

// Programs returns the plugin's programs for the architectures wanted: those given, or else those found for dir. None
// wanted means all that are given, or else this machine's.
func Programs(given, archs []string, dir, version string) ([]string, error) {
	if len(given) == 0 {
		if len(archs) == 0 {
			archs = []string{runtime.GOARCH}
		}
		for _, arch := range archs {
			name, err := findProgram(dir, version, arch)
			if err != nil {
				return nil, err
			}
			given = append(given, name)
		}
	}
	return given, checkPrograms(given, archs)
}

// findProgram finds the plugin's program of a version for an architecture: in the folder dir, where it was built, or
// where packages put it if dir is where they put the program that asks.
func findProgram(dir, version, arch string) (string, error) {
	const name = "cvmfs-graphdriver-plugin"
	places := []string{
		filepath.Join(dir, name+"-"+arch),
		filepath.Join(dir, arch, name),
		filepath.Join(dir, name),
		filepath.Join(dir, "..", "lib", "cvmfs-graphdriver", arch, name),
		filepath.Join(dir, "..", "share", "cvmfs-graphdriver", namePrefix+version+"-"+arch+"."+string(TarGz)),
	}
	for _, place := range places {
		if _, err := os.Stat(place); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return place, err
		}
	}
	return "", fmt.Errorf("the plugin's program for %s is missing: none of %s is there: build it (make build), or name it by --plugin",
		arch, strings.Join(places, ", "))
}

// checkPrograms checks that programs are for the architectures wanted, and that none is missing; with no architecture
// any will do.
func checkPrograms(programs, archs []string) error {
	var have []string
	for _, name := range programs {
		arch, err := ProgramArch(name)
		if err != nil {
			return err
		}
		if len(archs) > 0 && !slices.Contains(archs, arch) {
			return fmt.Errorf("the plugin's program %s is for %s, and %s was asked for: build it with GOARCH=%s, or name one by --plugin",
				name, arch, strings.Join(archs, ","), archs[0])
		}
		have = append(have, arch)
	}
	for _, arch := range archs {
		if !slices.Contains(have, arch) {
			return fmt.Errorf("no program given by --plugin is for %s", arch)
		}
	}
	return nil
}

// OpenOrPull opens what a user named: a bundle on disk, or, if there is no such file and none can be meant, one in a
// registry.
func OpenOrPull(ctx context.Context, name string, remote Remote) (*Bundle, error) {
	_, err := os.Stat(name)
	path := strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".") || strings.Contains(name, ".tar.")
	if path || !errors.Is(err, fs.ErrNotExist) {
		return Open(name)
	}
	b, _, err := Pull(ctx, name, "", remote)
	return b, err
}
