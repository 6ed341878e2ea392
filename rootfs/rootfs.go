// Package rootfs says what a plugin bundle holds besides the plugin's program: the folders of the plugin's root file
// system and its config.json.
//
// The format of config.json is Docker's "Plugin Config Version 1 of Plugin V2". A setting is an entry with exactly one
// settable field, so that `docker plugin set NAME SETTING=VALUE` works without naming the field.
package rootfs

// Program is the plugin's program, as a path in the root file system.
const Program = "/bin/cvmfs-graphdriver-plugin"

// PropagatedMount is the folder that the engine shares with the plugin. No host may have a folder of that path: of a plugin that is
// not enabled yet the engine mistakes it for one of its own and renames it (docs/adr/0003-propagated-mount-that-no-host-has.md).
const PropagatedMount = "/srv/cvmfs-graphdriver"

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

// Folders are the folders of the root file system, relative to it, parents first: mount points, and what the plugin
// writes into.
func Folders() []string {
	return []string{"bin", "dev", "etc", "etc/cvmfs", "minio_ext_config", "proc", "run", "srv", PropagatedMount[1:], "sys", "tmp"}
}

// PluginConfig is the plugin's config.json. Each right in it has its reason in docs/plugin-rights.md.
func PluginConfig() Config {
	return Config{
		Description:   "Storage driver that runs thin images from CernVM-FS repositories",
		Documentation: "docs/plugin-rights.md in the source of cvmfs-graphdriver",
		Entrypoint:    []string{Program},
		Interface:     Interface{Socket: "plugin.sock", Types: []string{"docker.graphdriver/1.0"}},
		Linux: Linux{
			Capabilities: []string{"CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN"},
			Devices:      []Device{{Name: "fuse", Description: "fetches files when they are first read", Path: "/dev/fuse", Settable: []string{}}},
		},
		Mounts: []Mount{
			configuration("cvmfs_ext_config", "/etc/cvmfs", "folder with the CernVM-FS configuration of the host"),
			configuration("minio_ext_config", "/minio_ext_config", "folder with config.json, the store that committed layers are published to"),
		},
		Network:         Network{Type: "host"},
		PropagatedMount: PropagatedMount,
		Env:             []Env{{Name: "DEBUG", Description: "1 logs what a maintainer wants to know", Value: "0", Settable: []string{"value"}}},
	}
}

// configuration is a folder of the host that the plugin reads and whose place is a setting.
func configuration(name, destination, description string) Mount {
	return Mount{
		Name:        name,
		Description: description,
		Source:      "/etc/cvmfs",
		Destination: destination,
		Type:        "bind",
		Options:     []string{"rbind", "ro"},
		Settable:    []string{"source"},
	}
}
