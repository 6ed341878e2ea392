package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/installer/preflight"
)

// Report is what is known of a host and what it means.
type Report struct {
	Version  string              `json:"version"` // of this program
	Commit   string              `json:"commit,omitempty"`
	Facts    preflight.Facts     `json:"facts"`
	Findings []preflight.Finding `json:"findings"`
	LogFile  string              `json:"-"` // the file the engine's log goes to; "" is where it is found
}

// New judges a host as it stands.
func New(f preflight.Facts, p preflight.Plan, version, commit string) Report {
	p.Install = false
	r := Report{Version: version, Commit: commit, Facts: f, Findings: preflight.Judge(f, p), LogFile: p.Log}
	if s := f.Plugin.State; s != nil && s.Version != "" && s.Version != version {
		r.Findings = append(r.Findings, preflight.Finding{
			ID: "plugin.version", Severity: preflight.Note,
			What:   fmt.Sprintf("the plugin is of version %s, this program of version %s", s.Version, version),
			Remedy: "\"cvmfs-graphdriver upgrade\" brings the plugin of this program's version",
		})
	}
	return r
}

// Write writes the report for people, findings with the gravest first.
func (r Report) Write(w io.Writer) error {
	count := map[preflight.Severity]int{}
	for _, f := range r.Findings {
		count[f.Severity]++
	}
	if err := preflight.Write(w, r.Findings, true); err != nil {
		return err
	}
	var said []string
	for _, s := range []preflight.Severity{preflight.Error, preflight.Warning, preflight.Note} {
		if n := count[s]; n == 1 {
			said = append(said, "1 "+string(s))
		} else if n > 1 {
			said = append(said, fmt.Sprintf("%d %ss", n, s))
		}
	}
	if len(said) == 0 {
		said = append(said, "all is as it should be")
	}
	_, err := fmt.Fprintln(w, strings.Join(said, ", "))
	return err
}

// WriteJSON writes the report for programs.
func (r Report) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Status is what runs on a host, without a judgement.
type Status struct {
	Program       string                  `json:"program"` // version of this program
	Active        bool                    `json:"active"`  // the plugin is the engine's storage driver
	Engine        preflight.Engine        `json:"engine"`
	Plugin        preflight.Plugin        `json:"plugin"`
	Snapshotter   *preflight.Snapshotter  `json:"snapshotter,omitempty"` // nil where none answers
	Data          preflight.Data          `json:"data_root"`
	Configuration preflight.Configuration `json:"cvmfs"`
}

// StatusOf takes from facts what runs.
func StatusOf(f preflight.Facts, version string) Status {
	return Status{
		Program: version, Active: f.Engine.Active(f.Plugin.Name), Engine: f.Engine, Plugin: f.Plugin,
		Snapshotter: f.Snapshotter, Data: f.Data, Configuration: f.Configuration,
	}
}

// WriteJSON writes the status for programs.
func (s Status) WriteJSON(w io.Writer) error { return writeJSON(w, s) }

// Write writes the status for people, a matter a line.
func (s Status) Write(w io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", name, fmt.Sprintf(format, args...))
	}
	if s.Engine.Denied {
		line("engine", "may not be asked by this user at %s: %s", s.Engine.Host, s.Engine.Err)
	} else if s.Engine.Err != "" {
		line("engine", "doesn't answer at %s: %s", s.Engine.Host, s.Engine.Err)
	} else {
		line("engine", "%s (API %s) at %s", s.Engine.Version, s.Engine.API, s.Engine.Host)
		use := "not this plugin"
		if s.Active {
			use = "this plugin"
		}
		line("driver", "%s: %s", s.Engine.Driver, use)
	}
	s.writePlugin(line)
	if s.Snapshotter != nil {
		line("snapshotter", "answers at %s", s.Snapshotter.Socket)
		writeState(line, s.Snapshotter.State)
		for _, l := range s.Snapshotter.Lacking {
			line("", "%s (%s): %d layers aren't downloaded, it can't be saved yet", l.Name, l.Namespace, l.Blobs)
		}
	}
	if s.Active {
		for _, pair := range s.Engine.DriverStatus {
			line("", "%s: %s", pair[0], pair[1])
		}
	}
	for _, r := range s.Configuration.Repositories {
		if r.Trouble != "" {
			line("repository", "%s can't be used (%s): %s", r.FQRN, r.Trouble, r.Err)
		} else {
			line("repository", "%s revision %d of %s", r.FQRN, r.Revision,
				r.Published.UTC().Format("2006-01-02 15:04:05"))
		}
	}
	if s.Data.Dir != "" && s.Data.Err == "" {
		line("data", "%s on %s, %s of %s free", s.Data.Dir, preflight.Shown(s.Data.FileSystem), size(s.Data.Free),
			size(s.Data.Size))
	}
	line("program", "%s", s.Program)
	_, err := io.WriteString(w, b.String())
	return err
}

func (s Status) writePlugin(line func(name, format string, args ...any)) {
	g := s.Plugin
	switch {
	case s.Engine.Err != "":
		return
	case g.Err != "":
		line("plugin", "%s: %s", g.Name, g.Err)
		return
	case !g.Present:
		line("plugin", "%s is not there", g.Name)
		return
	}
	state := "disabled"
	if g.Enabled {
		state = "enabled"
	}
	line("plugin", "%s is %s, id %s", g.Name, state, g.ID)
	var settings []string
	for name, value := range g.Settings {
		settings = append(settings, name+"="+value)
	}
	slices.Sort(settings)
	line("settings", "%s", strings.Join(settings, " "))
	if g.State != nil {
		writeState(line, g.State)
	}
	if g.Disk != nil {
		about := ""
		if !g.Disk.Whole {
			about = "at least "
		}
		line("store", "%s%d objects, %s", about, g.Disk.Objects, size(uint64(g.Disk.Bytes)))
	}
}

// writeState writes what a node says of itself.
func writeState(line func(name, format string, args ...any), st *preflight.State) {
	if st.Err != "" {
		line("state", "not known: %s", st.Err)
	}
	if st.Version != "" {
		line("version", "%s", strings.TrimSpace(st.Version+" "+st.Commit))
		line("layers", "%d, of them thin %d; mounted %d", st.Layers, st.Thin, st.Mounts)
		if st.View != "" {
			line("view", "%s", st.View)
		}
	}
	if c := st.Cache; c.Limit > 0 {
		line("cache", "%s of %s used by %d objects; %s free, of which %s stay free", size(uint64(max(0, c.Used))),
			size(uint64(c.Limit)), c.Objects, size(uint64(max(0, c.Free))), size(uint64(max(0, c.Floor))))
	}
	if m := st.Metrics; m != nil && m.Err != "" {
		line("metrics", "not served: %s", m.Err)
	} else if m != nil {
		line("metrics", "at %s", m.Address)
	}
	for _, image := range st.Images {
		writeImage(line, image)
	}
	for _, r := range st.Repositories {
		writeInUse(line, r)
	}
}

// writeImage writes a thin image, by its names where the engine tells them.
func writeImage(line func(name, format string, args ...any), i preflight.Image) {
	name := strings.Join(i.Names, ", ")
	if name == "" {
		name = i.Key
	}
	line("image", "%s: %d objects, %s, of %s", name, i.Objects, size(uint64(max(i.Size, 0))), revisions(i.Repositories))
	if i.Err != "" {
		line("", "damaged: %s", i.Err)
	}
	if i.Local != "" {
		line("", "on this host: %s", i.Local)
	}
	if len(i.Containers) > 0 {
		line("", "used by %s", strings.Join(i.Containers, ", "))
	}
}

// writeInUse writes a repository as the plugin uses it.
func writeInUse(line func(name, format string, args ...any), r preflight.InUse) {
	line("in use", "%s, configured since %s", r.FQRN, r.Since.UTC().Format("2006-01-02 15:04:05"))
	for _, of := range []struct {
		kind string
		list []status.Member
	}{{"server", r.Servers}, {"proxy", r.Proxies}} {
		for _, m := range of.list {
			how := "in order"
			if m.Err != "" {
				how = "others are preferred: " + m.Err
			}
			if m.Answers > 0 {
				how += fmt.Sprintf("; %d answers, %.3f s on average", m.Answers, m.Wait)
			}
			line("", "%s %s: %s", of.kind, m.Name, how)
		}
	}
	if r.Err != "" {
		line("", "its files were changed, and can't be used: %s", r.Err)
	}
	for _, d := range r.Differences {
		line("", "differs from the files: %s", d)
	}
}
