package preflight

import (
	"encoding/json"

	"cvmfs-graphdriver/installer/daemonjson"
)

// readFile reads the engine's configuration file and judges it by the rules of the engine's version.
func readFile(p Plan, s Service, version string) File {
	f := File{Path: firstOf(p.DaemonJSON, s.Flags["config-file"], daemonjson.DefaultPath)}
	read, err := daemonjson.Read(f.Path)
	if err != nil {
		f.Err = err.Error()
		return f
	}
	f.Exists = read.Exists()
	for _, problem := range read.Problems(version) {
		f.Problems = append(f.Problems, Problem{problem.Line, problem.Column, problem.Text, problem.Fixable})
	}
	// What is of another type than the engine wants is among the problems.
	if value, ok := read.Get("storage-driver"); ok {
		_ = json.Unmarshal(value, &f.Driver)
	}
	if value, ok := read.Get("storage-opts"); ok {
		_ = json.Unmarshal(value, &f.Options)
	}
	if value, ok := read.Get("features"); ok {
		var features map[string]bool
		_ = json.Unmarshal(value, &features)
		f.Store = features["containerd-snapshotter"]
	}
	return f
}
