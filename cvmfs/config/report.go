package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Report is what a folder says of a repository, whether that is enough to use it or not.
type Report struct {
	FQRN       string    `json:"fqrn"`
	Parameters []Setting `json:"parameters"` // sorted by name
	Findings   []Finding `json:"findings"`
	Err        string    `json:"error,omitempty"` // why the repository can't be used
}

// Setting is a parameter as it holds for a repository.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`            // without user names and passwords of URLs
	Place  *Place `json:"place,omitempty"`  // where it was set; nil: its default holds
	Status Status `json:"status,omitempty"` // "" for a parameter that the client doesn't know
	Doubt  string `json:"doubt,omitempty"`  // the failed line that makes the value uncertain
	Unused string `json:"unused,omitempty"` // why a parameter that is honored has no effect with this value
}

// Report reads the folder for a repository as Load does. An error is of the name, or of a folder that can't be read at
// all.
func (f Folder) Report(fqrn string) (*Report, error) {
	f = f.placed()
	s, err := f.evaluated(fqrn)
	if err != nil {
		return nil, err
	}
	r := &Report{FQRN: s.fqrn}
	if c, err := (&settings{folder: f, fqrn: s.fqrn, shell: s}).config(); err != nil {
		r.Err = err.Error()
		r.Findings = (&settings{folder: f, fqrn: s.fqrn, shell: s}).findings()
	} else {
		r.Findings = c.Findings
	}
	names := map[string]bool{}
	for _, p := range Parameters {
		if p.Status == Honored && p.Default != "" {
			names[p.Name] = true
		}
	}
	for name, v := range s.params {
		if v.set || v.doubt != "" && guards[name] {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		r.Parameters = append(r.Parameters, s.setting(name))
	}
	return r, nil
}

// Settings returns the parameters that files set, sorted by name.
func (c *Config) Settings() (list []Setting) {
	for _, name := range slices.Sorted(maps.Keys(c.Params)) {
		if at, ok := c.Origins[name]; ok {
			value := hide(c.Params[name])
			list = append(list, Setting{Name: name, Value: value, Place: &at, Status: byName[name].Status})
		}
	}
	return list
}

// KeysNamedBy tells which parameter names the files with master keys, and where it is set.
func (c *Config) KeysNamedBy() string {
	for _, name := range []string{"CVMFS_PUBLIC_KEY", "CVMFS_KEYS_DIR"} {
		if at, ok := c.Origins[name]; ok && c.Params[name] != "" {
			return fmt.Sprintf("%s, set in %v", name, at)
		}
	}
	return "CVMFS_KEYS_DIR by its default"
}

func (s *shell) setting(name string) Setting {
	v, p := s.params[name], byName[name]
	shown := Setting{Name: name, Value: p.Default, Status: p.Status, Doubt: v.doubt}
	if v.set {
		shown.Value, shown.Place = hide(v.value), &v.at
	}
	if q, _ := (&settings{shell: s}).quota(); name == quotaLimit {
		shown.Unused = q.Unused
	}
	return shown
}

// userinfo is what stands before the host in an address, of a proxy also where it names no scheme.
var userinfo = regexp.MustCompile(`://[^/@\s|;]*@|(^|[\s|;"])[^/@:\s|;"]+:[^/@\s|;"]*@`)

// hide leaves user names and passwords of addresses out.
func hide(value string) string {
	return userinfo.ReplaceAllStringFunc(value, func(found string) string {
		switch {
		case strings.HasPrefix(found, "://"):
			return "://…@"
		case strings.ContainsAny(found[:1], " \t\n|;\""):
			return found[:1] + "…@"
		}
		return "…@"
	})
}

// String is the report for people: a line NAME=VALUE # FILE:LINE for each parameter, then what their author should be
// told.
func (r *Report) String() string {
	text := ""
	for _, p := range r.Parameters {
		from := "default"
		if p.Place != nil {
			from = p.Place.String()
		}
		if p.Doubt != "" {
			from += ", not certain"
		}
		if p.Unused != "" {
			from += ", no effect: " + p.Unused
		}
		text += fmt.Sprintf("%s=%s    # %s\n", p.Name, p.Value, from)
	}
	for i, f := range r.Findings {
		if i == 0 {
			text += "\n"
		}
		text += fmt.Sprintf("# %s: %s\n", f.Kind, f)
	}
	return text
}
