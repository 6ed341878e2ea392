package engine

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Machine lists what engines with folders below dir have on the machine or may change on it, sorted: their mounts,
// their processes, their control groups, the names in the folders engines write to, and the state of the installed
// packages. The list before an engine's life is to be that after it. What others mount or run at the same time is not
// in it.
func Machine(dir string) ([]string, error) {
	var seen []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			seen = append(seen, "mount "+strings.TrimSpace(line))
		}
	}
	for _, pattern := range []string{
		"/etc/*", "/etc/docker/*", "/etc/cvmfs/*", "/opt/*", "/run/*", "/run/docker/*",
		"/run/docker/plugins/*", "/var/lib/*", "/var/lib/docker/*",
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		seen = append(seen, names...)
	}
	packages, err := os.ReadFile("/var/lib/dpkg/status")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	seen = append(seen, fmt.Sprintf("packages %x", sha256.Sum256(packages)))
	groups, err := controlGroups(func(name string) bool { return strings.Contains(name, groupName(dir)) })
	if err != nil {
		return nil, err
	}
	processes, err := processes(dir)
	seen = slices.Concat(seen, groups, processes)
	slices.Sort(seen)
	return seen, err
}

// processes lists the processes, other than this one, that were called with the folder or have a mount that names it.
func processes(dir string) ([]string, error) {
	ids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var seen []string
	for _, id := range ids {
		if filepath.Base(id) == fmt.Sprint(os.Getpid()) {
			continue
		}
		for _, file := range []string{"cmdline", "mountinfo"} {
			// A process may end while it is looked at.
			content, err := os.ReadFile(filepath.Join(id, file))
			if err == nil && strings.Contains(string(content), dir) {
				name, _ := os.ReadFile(filepath.Join(id, "comm"))
				seen = append(seen, fmt.Sprintf("process %s %s", filepath.Base(id), strings.TrimSpace(string(name))))
				break
			}
		}
	}
	return seen, nil
}

// groupName makes a folder's path usable in the name of a control group.
func groupName(dir string) string { return strings.ReplaceAll(dir, "/", "-") }

// controlGroups lists the control groups whose name is wanted, and none below these. Where in the tree a group is
// depends on its controller and on the group of whoever made it.
func controlGroups(wanted func(name string) bool) ([]string, error) {
	var found []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(group string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // another's group that ends just now
			return nil
		case err != nil:
			return err
		case d.IsDir() && wanted(d.Name()):
			found = append(found, group)
			return fs.SkipDir
		}
		return nil
	})
	return found, err
}
