// Package rootfs says what lies in the plugin's root file system besides its program, and what the plugin's config.json
// asks for.
//
// The format of config.json is Docker's "Plugin Config Version 1 of Plugin V2". A setting is an entry with exactly one
// settable field, so that `docker plugin set NAME SETTING=VALUE` works without naming the field.
package rootfs

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"time"
)

// Paths in the root file system.
const (
	Program     = "/bin/cvmfs-graphdriver-plugin"
	BuildFile   = "/usr/share/cvmfs-graphdriver/build.json"         // which build this is: a [Build]
	DefaultConf = "/usr/share/cvmfs-graphdriver/cvmfs/default.conf" // [Defaults]
)

// Defaults is the CernVM-FS configuration that holds where the host's says nothing else, a file as CernVM-FS's
// default.conf.
//
//go:embed cvmfs/default.conf
var Defaults []byte

// Build reports which build of the plugin it is; build.json is this.
type Build struct {
	Version string    `json:"version"`
	Commit  string    `json:"commit"` // of the source; "" if it isn't known
	Arch    string    `json:"arch"`   // as in GOARCH
	Time    time.Time `json:"time"`   // of every file, in UTC, to the second
}

// PropagatedMount is the folder that the engine shares with the plugin. No host may have a folder of that path: of a
// plugin that is not enabled yet the engine mistakes it for one of its own and renames it
// (docs/adr/0003-propagated-mount-that-no-host-has.md).
const PropagatedMount = "/srv/cvmfs-graphdriver"

// NoFolder is the source of a mount that isn't wanted. The engine doesn't enable a plugin with a source that isn't
// there, knows no empty one, and makes none: so it must be a folder that every host of an engine has, and that shows
// nothing of the host. This one is the kernel's, always empty, and kept as it is visible to programs (Linux,
// fs/proc/proc_tty.c). Nobody can make a file in it.
const NoFolder = "/proc/tty/ldisc"

// Config is config.json. Only what the plugin uses is there.
type Config struct {
	Description     string    `json:"description"`
	Documentation   string    `json:"documentation"`
	Entrypoint      []string  `json:"entrypoint"`
	Interface       Interface `json:"interface"`
	Linux           Linux     `json:"linux"`
	Mounts          []Mount   `json:"mounts"`
	Network         Network   `json:"network"`
	PropagatedMount string    `json:"propagatedMount"`
	Env             []Env     `json:"env"`
}

// Interface is what the engine speaks to: a socket below /run/docker/plugins.
type Interface struct {
	Socket string   `json:"socket"`
	Types  []string `json:"types"`
}

// Linux is what the plugin may do beyond what every plugin may.
type Linux struct {
	Capabilities []string `json:"capabilities"`
	Devices      []Device `json:"devices"`
}

// Device is a device of the host.
type Device struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Path        string   `json:"path"`
	Settable    []string `json:"settable"`
}

// Mount is a folder of the host, bind-mounted.
type Mount struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Source      string   `json:"source"`
	Destination string   `json:"destination"`
	Type        string   `json:"type"`
	Options     []string `json:"options"`
	Settable    []string `json:"settable"`
}

// Network is the kind of network.
type Network struct {
	Type string `json:"type"`
}

// Env is an environment variable of the plugin.
type Env struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Value       string   `json:"value"`
	Settable    []string `json:"settable"`
}

// Folders are the folders of the root file system, relative to it, parents first: where the files lie, mount points,
// and /run, the only one that the plugin writes into besides its propagated mount.
func Folders() []string {
	return []string{
		"bin", "dev", "etc", "etc/cvmfs", "minio_ext_config", "proc", "run", "srv", PropagatedMount[1:], "sys",
		"usr", "usr/share", "usr/share/cvmfs-graphdriver", "usr/share/cvmfs-graphdriver/cvmfs",
	}
}

// Files are the files of the root file system besides the program, by their paths relative to it.
func Files(b Build) (map[string][]byte, error) {
	build, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", BuildFile, err)
	}
	return map[string][]byte{BuildFile[1:]: append(build, '\n'), DefaultConf[1:]: Defaults}, nil
}

// PluginConfig is the config.json of a build. Each right in it has its reason in docs/plugin-rights.md.
func PluginConfig(b Build) Config {
	return Config{
		Description:   "Storage driver that runs thin images from CernVM-FS repositories, version " + b.Version,
		Documentation: "docs/plugin-rights.md in the source of cvmfs-graphdriver",
		Entrypoint:    []string{Program},
		Interface:     Interface{Socket: "plugin.sock", Types: []string{"docker.graphdriver/1.0"}},
		Linux: Linux{
			Capabilities: []string{"CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN"},
			Devices: []Device{{
				Name:        "fuse",
				Description: "device of the host by which files are fetched when they are first read",
				Path:        "/dev/fuse", Settable: []string{"path"},
			}},
		},
		Mounts: []Mount{
			configuration("cvmfs_ext_config", "/etc/cvmfs", "/etc/cvmfs",
				"folder with the CernVM-FS configuration of the host"),
			configuration("minio_ext_config", NoFolder, "/minio_ext_config",
				"folder with config.json, by which layers of commits are published"),
		},
		Network:         Network{Type: "host"},
		PropagatedMount: PropagatedMount,
		Env: []Env{{
			Name: "DEBUG", Description: "1 logs what a maintainer wants to know", Value: "0",
			Settable: []string{"value"},
		}},
	}
}

// configuration is a folder of the host that the plugin reads and whose place is a setting, source unless it is set.
func configuration(name, source, destination, description string) Mount {
	return Mount{
		Name:        name,
		Description: description,
		Source:      source,
		Destination: destination,
		Type:        "bind",
		Options:     []string{"rbind", "ro"},
		Settable:    []string{"source"},
	}
}
