package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/service"
)

// flavour is a way to run containerd on a node.
type flavour struct {
	dir      string // folder of its configuration
	main     string // the file that containerd reads, in there
	template string // what that is made of at each start, in there; "" where it is an administrator's
	dropIns  string // folder that is imported, in there
	socket   string
	units    []string // those of which one runs it
}

// flavours are the ways there are. k3s and RKE2 write containerd's file themselves at each start; a template takes its
// place, and newer ones import a folder.
var flavours = map[string]*flavour{
	"containerd": {
		dir: "/etc/containerd", main: "config.toml", dropIns: "conf.d",
		socket: "/run/containerd/containerd.sock", units: []string{"containerd.service"},
	},
	"k3s":  rancher("k3s", "k3s.service", "k3s-agent.service"),
	"rke2": rancher("rke2", "rke2-server.service", "rke2-agent.service"),
}

func rancher(product string, units ...string) *flavour {
	return &flavour{
		dir: "/var/lib/rancher/" + product + "/agent/etc/containerd", main: "config.toml",
		template: "config-v3.toml.tmpl", dropIns: "config-v3.toml.d",
		socket: "/run/k3s/containerd/containerd.sock", units: units,
	}
}

// base is what a template of k3s and RKE2 consists of that changes nothing.
const base = "{{ template \"base\" . }}\n"

// find returns the flavour that a host has, and the unit that runs it.
func find(ctx context.Context, wanted string) (*flavour, string, error) {
	names := []string{"k3s", "rke2", "containerd"} // a host of the first two may have a containerd beside
	if wanted != "" {
		names = []string{wanted}
	}
	var asked []string
	for _, name := range names {
		for _, unit := range flavours[name].units {
			asked = append(asked, unit)
			u, err := service.LoadUnit(ctx, unit)
			if errors.Is(err, fs.ErrNotExist) || err == nil && u.State != "active" {
				continue
			}
			return flavours[name], unit, err
		}
	}
	return nil, "", fmt.Errorf("no containerd runs here as a service of systemd: none of %s is active",
		strings.Join(asked, ", "))
}

func (f *flavour) path(name string) string { return filepath.Join(f.dir, name) }

// files are those that may be written.
func (f *flavour) files() []string {
	if f.template != "" {
		return []string{f.dropIn(), f.path(f.template)}
	}
	return []string{f.dropIn(), f.path(f.main)}
}

// dropIn is the file with what containerd is told of the snapshotter.
func (f *flavour) dropIn() string { return filepath.Join(f.dir, f.dropIns, "cvmfs-snapshotter.toml") }

// imports is the pattern by which the main file names it.
func (f *flavour) imports() string { return filepath.Join(f.dir, f.dropIns, "*.toml") }

// tell writes what a containerd of some version is to know into its configuration, and reports whether that changed.
func (f *flavour) tell(rec *record, version string, s *Settings) (changed bool, err error) {
	old := strings.HasPrefix(version, "1.")
	if old && s.RuntimeClass != "" {
		return false, fmt.Errorf("containerd is %s here: a runtime class with the snapshotter takes 2.0 or newer", version)
	}
	if f.template != "" {
		if old {
			return false, fmt.Errorf("containerd is %s here: with %s pods set up 2.0 and newer", version, f.path(f.template))
		}
		return f.tellTemplate(rec, version, s)
	}
	main, err := rec.without(f.path(f.main))
	if err != nil {
		return false, err
	}
	main, err = containerd.Main(main, version, f.dropIn(), s.options())
	if err != nil {
		return false, fmt.Errorf("%s: %w", f.path(f.main), err)
	}
	text, err := s.dropIn(version, main)
	if err != nil {
		return false, err
	}
	dropIn, err := rec.write(f.dropIn(), text)
	if err != nil {
		return false, err
	}
	changed, err = rec.write(f.path(f.main), main)
	return dropIn || changed, err
}

// newest is the version of files that every containerd 2 reads and that doesn't name plugins by their old names.
const newest = 3

// tellTemplate does so where the main file is made of a template, of version 3, at each start.
func (f *flavour) tellTemplate(rec *record, version string, s *Settings) (changed bool, err error) {
	text, err := s.dropIn(version, fmt.Appendf(nil, "version = %d\n", newest))
	if err != nil {
		return false, err
	}
	changed, err = rec.write(f.dropIn(), text)
	if err != nil {
		return false, err
	}
	for _, name := range []string{f.main, f.template} {
		text, err := os.ReadFile(f.path(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return changed, err
		}
		switch {
		case strings.Contains(string(text), f.imports()):
			return changed, nil
		case name == f.template && err == nil:
			return changed, fmt.Errorf("%s doesn't import the drop-ins: put this in front of its first table: imports = [%q]",
				f.path(name), f.imports())
		}
	}
	_, err = rec.write(f.path(f.template), fmt.Appendf(nil, "imports = [%q]\n%s", f.imports(), base))
	return true, err
}

// dropIn is the text of the drop-in for a containerd of some version with a main file.
func (s *Settings) dropIn(version string, main []byte) ([]byte, error) {
	file, err := containerd.Version(main)
	if err != nil {
		return nil, err
	}
	text, err := containerd.DropIn(version, main, s.options())
	return []byte(text + s.runtime(file)), err
}

// options are what containerd is told of the snapshotter.
func (s *Settings) options() containerd.Options {
	return containerd.Options{
		Name: name, Socket: socket, Root: root, Platform: "linux/" + runtime.GOARCH, CRI: s.Default,
		Mapped: containerd.Maps(root),
	}
}

// runtime is the table of the runtime that has the snapshotter, "" for none, as files of a version name it.
func (s *Settings) runtime(file int) string {
	if s.RuntimeClass == "" {
		return ""
	}
	plugin := "io.containerd.cri.v1.runtime"
	if file < newest {
		plugin = "io.containerd.grpc.v1.cri"
	}
	table := fmt.Sprintf("plugins.%q.containerd.runtimes.%q", plugin, s.RuntimeClass)
	return fmt.Sprintf("\n[%[1]s]\n  runtime_type = \"io.containerd.runc.v2\"\n  snapshotter = %[2]q\n[%[1]s.options]\n"+
		"  SystemdCgroup = %[3]t\n", table, name, s.SystemdCgroup)
}
