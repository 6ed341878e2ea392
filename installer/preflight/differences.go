package preflight

import (
	"context"
	"fmt"
	"os"
	"slices"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/rootfs"
)

// compare adds to what the plugin uses what the host's files say otherwise. Of files that can't be used the plugin
// itself tells.
func (g *Plugin) compare(ctx context.Context, c Configuration, agent string) {
	if g.State == nil || len(g.State.Repositories) == 0 || c.Missing || c.Err != "" {
		return
	}
	state, err := os.MkdirTemp("", "cvmfs-graphdriver-")
	if err != nil {
		return // nothing is compared
	}
	defer os.RemoveAll(state)
	folder := config.Folder{
		Dir: c.Dir, Shown: c.Dir, Defaults: rootfs.Defaults,
		ConfigRepository: client.ConfigRepository(ctx, client.Options{Dir: state, UserAgent: agent}),
	}
	for n := range g.State.Repositories {
		r := &g.State.Repositories[n]
		if files, err := folder.Load(r.FQRN); err == nil {
			r.Differences = differences(r.Settings, files.Settings())
		}
	}
}

// differences tells which settings of files are others than those that are used. Built-in ones, which no host has made,
// are none of the files: versions of the plugin differ in them.
func differences(used []status.Setting, files []config.Setting) (told []string) {
	of := map[string]status.Setting{}
	for _, s := range used {
		of[s.Name] = s
	}
	for _, s := range files {
		u, ok := of[s.Name]
		delete(of, s.Name)
		switch {
		case s.Place.File == config.BuiltIn && (!ok || u.BuiltIn), ok && u.Value == s.Value:
		case ok:
			told = append(told, fmt.Sprintf("%s: %q is used (%s), and the files say %q (%v)", s.Name, u.Value, u.Place,
				s.Value, s.Place))
		default:
			told = append(told, fmt.Sprintf("%s: it isn't used, and the files say %q (%v)", s.Name, s.Value, s.Place))
		}
	}
	for name, u := range of {
		if !u.BuiltIn {
			told = append(told, fmt.Sprintf("%s: %q is used (%s), and the files don't say it any more", name, u.Value,
				u.Place))
		}
	}
	slices.Sort(told)
	return told
}
