package kubernetes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"
)

// The states a node can be in.
const (
	Installed = "installed"
	Removed   = "removed"
)

// Settings are what a node is to be like: a file of the ConfigMap, in YAML.
type Settings struct {
	State string `yaml:"state"`
	// Default has every pod's images unpacked by the snapshotter, but for those of other runtime classes.
	Default bool `yaml:"default"`
	// RuntimeClass is the handler of a runtime that is like runc, with the snapshotter; "" for none.
	RuntimeClass string `yaml:"runtimeClass"`
	// SystemdCgroup is whether that runtime's control groups are systemd's, as kubelet's are by default.
	SystemdCgroup bool `yaml:"systemdCgroup"`
	// Containerd is "containerd", "k3s" or "rke2"; "" is whichever the host has.
	Containerd string `yaml:"containerd"`
	// Snapshotter are the keys of the snapshotter's file of settings.
	Snapshotter map[string]any `yaml:"snapshotter"`
	// CVMFS are files below /etc/cvmfs, by their paths. Those of the host that aren't named stay.
	CVMFS map[string]string `yaml:"cvmfs"`
}

// handler is the name of a runtime, which becomes a part of containerd's configuration.
var handler = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// ReadSettings reads a file of settings.
func ReadSettings(name string) (*Settings, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	s := &Settings{SystemdCgroup: true}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(s); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the settings, %s: %w", name, err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("the settings, %s: %w", name, err)
	}
	return s, nil
}

func (s *Settings) check() error {
	switch {
	case s.State != Installed && s.State != Removed:
		return fmt.Errorf("state: want %q or %q, not %q", Installed, Removed, s.State)
	case s.Containerd != "" && flavours[s.Containerd] == nil:
		return fmt.Errorf("containerd: want one of %q, or nothing, not %q", slices.Sorted(maps.Keys(flavours)), s.Containerd)
	case s.RuntimeClass != "" && !handler.MatchString(s.RuntimeClass):
		return fmt.Errorf("runtimeClass: %q can't be the handler of a runtime class", s.RuntimeClass)
	case s.State == Installed && !s.Default && s.RuntimeClass == "":
		return errors.New("no pod would use the snapshotter: want default: true, or a runtimeClass, or both")
	}
	for name := range s.CVMFS {
		if !filepath.IsLocal(name) || filepath.Clean(name) != name {
			return fmt.Errorf("cvmfs: %q is no path below /etc/cvmfs", name)
		}
	}
	for _, name := range []string{"root", "address", "containerd", "cvmfs-config"} {
		if _, set := s.Snapshotter[name]; set {
			return fmt.Errorf("snapshotter: %s is the same on every node and can't be set here", name)
		}
	}
	return nil
}

// Where the snapshotter is on a host.
const (
	name       = "cvmfs" // containerd's for it
	unit       = "cvmfs-snapshotter.service"
	unitFile   = "/etc/systemd/system/" + unit
	configFile = "/etc/cvmfs-snapshotter/config.json"
	cvmfs      = "/etc/cvmfs"
	root       = "/var/lib/cvmfs-snapshotter"
	socket     = "/run/cvmfs-snapshotter/cvmfs-snapshotter.sock"
)

// config returns the snapshotter's file of settings for a containerd. The cache's bounds are the snapshotter's to
// choose, which leaves more to others on a node of Kubernetes.
func (s *Settings) config(containerd string) ([]byte, error) {
	keys := map[string]any{}
	maps.Copy(keys, s.Snapshotter)
	keys["containerd"] = containerd
	text, err := json.MarshalIndent(keys, "", "  ")
	return append(text, '\n'), err
}
