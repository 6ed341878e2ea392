package preflight

import (
	"time"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/internal/overlayfs"
)

// Plan is what a host is looked at and judged for.
type Plan struct {
	Install bool   // the driver is to become the engine's; otherwise the host is judged as it stands
	Host    string // the engine's address, as in unix:///var/run/docker.sock; "" is $DOCKER_HOST, or that one
	Name    string // of the plugin, and so of the storage driver
	// the engine's configuration file; "" is the one the engine was started with, or /etc/docker/daemon.json
	DaemonJSON  string
	DataRoot    string   // where the engine's data are to lie; "" is where they do
	StorageOpts []string // options of the driver, "name=value"
	CVMFSConfig string   // folder with the CernVM-FS configuration; "" is the plugin's setting, or /etc/cvmfs
	MinioConfig string   // folder with push-back's config.json; "" is where plugin or snapshotter look for it, or none
	PushBack    string   // file with push-back's settings that the snapshotter is told of; "" is where it looks unless told
	Debug       bool     // "debug" is to be written to the engine's configuration file, or taken out
	Log         string   // file the engine's log goes to; "" is where it is found
	Restart     string   // what restarts the engine, as service.Choose takes it; "" is auto
	Agent       string   // who asks, for the servers' logs: product and version
	Snapshotter string   // socket of the snapshotter's node; "" is none
	Containerd  string   // socket of the containerd that it serves; "" where that isn't asked
	// it is the snapshotter that is to be the driver, in DataRoot, not the plugin; the engine is told of it if there is
	// a DaemonJSON
	Snapshots bool
}

// Facts are what was found on a host. In each part, Err says why it isn't known, or not all of it.
type Facts struct {
	Time          time.Time     `json:"time"`
	Root          bool          `json:"root"` // they were gathered by root, who sees all
	Engine        Engine        `json:"engine"`
	Service       Service       `json:"service"`
	File          File          `json:"daemon_json"`
	Data          Data          `json:"data_root"`
	Kernel        Kernel        `json:"kernel"`
	Security      Security      `json:"security"`
	Clock         Clock         `json:"clock"`
	Configuration Configuration `json:"cvmfs"`
	Missing       []string      `json:"missing,omitempty"` // of the host's files that the engine mounts into the plugin
	Minio         *Minio        `json:"minio,omitempty"`   // nil where none is set
	Plugin        Plugin        `json:"plugin"`
	Snapshotter   *Snapshotter  `json:"snapshotter,omitempty"` // nil where none answers
}

// Engine is what the engine says of itself.
type Engine struct {
	Host         string      `json:"host"`
	Product      string      `json:"product"` // "Engine" is Docker's
	Version      string      `json:"version"`
	API          string      `json:"api"`
	OS           string      `json:"os"`
	Driver       string      `json:"driver"`
	DriverStatus [][2]string `json:"driver_status,omitempty"` // names and values
	Root         string      `json:"root"`                    // its data folder; with userns-remap the one below it
	Experimental bool        `json:"experimental"`
	Rootless     bool        `json:"rootless"`
	UserNS       bool        `json:"userns"`
	LiveRestore  bool        `json:"live_restore"`
	Swarm        string      `json:"swarm,omitempty"` // "manager" or "worker"
	Images       int         `json:"images"`
	Containers   int         `json:"containers"`          // all of them
	Running      []string    `json:"running,omitempty"`   // names
	Labels       bool        `json:"labels"`              // containers get SELinux labels
	Elsewhere    string      `json:"elsewhere,omitempty"` // why it doesn't run on this machine
	Denied       bool        `json:"denied,omitempty"`    // its socket may not be used by who asked
	Err          string      `json:"error,omitempty"`
}

// WantsVariable reports whether an engine takes storage-driver plugins only with service.PluginVariable in its
// environment.
func (e Engine) WantsVariable() bool { return takes(e) == withVariable }

// silent reports whether the engine wasn't asked or didn't answer.
func (e Engine) silent() bool { return e.Err != "" || e.Version == "" && e.API == "" }

// Active reports whether a plugin is the engine's storage driver.
func (e Engine) Active(name string) bool { return e.Driver != "" && tagged(e.Driver) == tagged(name) }

// Service is how the engine is run.
type Service struct {
	// what restarts it: "systemd", "openrc", "sysv"; "" where nothing is known to
	Manager string `json:"manager"`
	PID     int    `json:"pid"`                // of the engine; 0 where it isn't known
	LogFile string `json:"log_file,omitempty"` // the file its log goes to, if it is one
	// of its command line, those that matter here, by their long names
	Flags    map[string]string `json:"flags"`
	Variable bool              `json:"variable"` // its environment has service.PluginVariable
	// why it didn't start, by its log; "" if it answers, or its log doesn't say
	Cause string `json:"cause,omitempty"`
	Err   string `json:"error,omitempty"`
}

// File is the engine's configuration file.
type File struct {
	Path     string    `json:"path"`
	Exists   bool      `json:"exists"`
	Problems []Problem `json:"problems,omitempty"` // what the engine would refuse
	Driver   string    `json:"storage_driver"`
	Options  []string  `json:"storage_opts,omitempty"`
	Store    bool      `json:"containerd_store"` // features has containerd-snapshotter
	Err      string    `json:"error,omitempty"`
}

// Problem is something in the configuration file that the engine would refuse.
type Problem struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Text    string `json:"text"`
	Fixable bool   `json:"fixable"` // by leaving comments and trailing commas out
}

// Data is where the engine's data lie, or are to.
type Data struct {
	Dir        string `json:"dir"`         // the nearest folder that exists
	FileSystem string `json:"file_system"` // as mount calls it
	Typed      bool   `json:"typed"`       // its folders list names with their types, which overlayfs needs
	ReadOnly   bool   `json:"read_only"`
	Free       uint64 `json:"free"` // bytes
	Size       uint64 `json:"size"` // bytes
	FreeInodes uint64 `json:"free_inodes"`
	Inodes     uint64 `json:"inodes"` // 0 where the file system has no fixed number
	Err        string `json:"error,omitempty"`
}

// Kernel is what the kernel can do.
type Kernel struct {
	Release string `json:"release"`
	overlayfs.Support
	FUSE   overlayfs.Try `json:"fuse"`            // a FUSE mount
	Device string        `json:"device"`          // what is wrong with /dev/fuse
	Err    string        `json:"error,omitempty"` // why nothing was tried
}

// Security is what watches over programs here.
type Security struct {
	SELinux  string `json:"selinux"` // "enforcing", "permissive" or ""
	AppArmor bool   `json:"apparmor"`
}

// Clock is what the kernel knows of the time.
type Clock struct {
	Synchronised bool   `json:"synchronised"`
	Err          string `json:"error,omitempty"`
}

// Configuration is the host's CernVM-FS configuration.
type Configuration struct {
	Dir          string       `json:"dir"`
	Missing      bool         `json:"missing"`
	Repositories []Repository `json:"repositories,omitempty"`
	Err          string       `json:"error,omitempty"`
	Notes        []string     `json:"notes,omitempty"` // what files that all repositories have in common lead to
	Quota        config.Quota `json:"quota,omitzero"`  // CVMFS_QUOTA_LIMIT; zero: no file sets it
}

// Repository is a configured repository.
type Repository struct {
	FQRN      string    `json:"fqrn"`
	Revision  uint64    `json:"revision,omitempty"`
	Published time.Time `json:"published,omitzero"`
	Expires   time.Time `json:"expires,omitzero"` // of the whitelist
	Trouble   Trouble   `json:"trouble,omitempty"`
	Err       string    `json:"error,omitempty"`
	// settings without effect, servers and proxies that failed while others answered
	Notes []string `json:"notes,omitempty"`
}

// Trouble is why a repository can't be used.
type Trouble string

// The kinds of trouble.
const (
	Unreadable  Trouble = "configuration" // the configuration can't be read or is incomplete
	Key         Trouble = "key"           // of a master key's file
	Unreachable Trouble = "unreachable"   // no server answers
	Proxy       Trouble = "proxy"         // no proxy answers
	Slow        Trouble = "slow"          // no answer within the time there was
	Absent      Trouble = "absent"        // the servers don't have it
	Untrusted   Trouble = "untrusted"     // signed by nobody this host trusts
	Expired     Trouble = "expired"       // the whitelist is out of date, or the clock is
	Other       Trouble = "other"
)

// Minio are the settings of push-back.
type Minio struct {
	File       string   `json:"file"`
	Asked      bool     `json:"asked"`                // the service and the store, if there is one
	Missing    bool     `json:"missing,omitempty"`    // the snapshotter's settings name it, and it isn't there
	Repository string   `json:"repository,omitempty"` // that layers are published in
	Outside    []string `json:"outside,omitempty"`    // files that are named, and lie where the plugin doesn't see them
	Err        string   `json:"error,omitempty"`
}

// Plugin is the plugin the engine has under the plan's name.
type Plugin struct {
	Name     string            `json:"name"`
	ID       string            `json:"id,omitempty"`
	Present  bool              `json:"present"`
	Enabled  bool              `json:"enabled"`
	Ours     bool              `json:"ours"` // it is this project's
	Settings map[string]string `json:"settings,omitempty"`
	Dir      string            `json:"dir,omitempty"` // its folder of the engine's data
	// folders that a container's root, being another user, can't pass
	Barred []string          `json:"barred,omitempty"`
	State  *State            `json:"state,omitempty"` // what it says of itself; nil where it wasn't asked
	Disk   *Disk             `json:"disk,omitempty"`
	names  map[string]*Named // of composed images, by their keys
	Err    string            `json:"error,omitempty"`
}

// State is what the plugin says of itself.
type State struct {
	Version string       `json:"version"`
	Commit  string       `json:"commit"`
	Layers  int          `json:"layers"`
	Thin    int          `json:"thin_layers"`
	Mounts  int          `json:"mounts"`
	Stale   int          `json:"stale_mounts"` // that hang on a FUSE mount that has gone
	Images  []Image      `json:"images"`
	Memory  uint64       `json:"memory"` // bytes, resident
	Cache   status.Cache `json:"cache"`
	View    string       `json:"view,omitempty"`
	// the peer group of the mount that its layers are mounted on
	PeerGroup string `json:"peer_group,omitempty"`
	Unseen    bool   `json:"unseen,omitempty"` // the engine has no mount of that group
	// the repositories in use, as they are configured in the plugin
	Repositories []InUse  `json:"repositories,omitempty"`
	Metrics      *Metrics `json:"metrics,omitempty"` // nil: none are to be served
	Err          string   `json:"error,omitempty"`
}

// Metrics is where the plugin serves metrics.
type Metrics struct {
	Address string `json:"address"`
	Err     string `json:"error,omitempty"` // why it doesn't, for now
}

// InUse is a repository that the plugin uses.
type InUse struct {
	status.Repository
	Differences []string `json:"differences,omitempty"` // what the host's files say otherwise
}

// Image is a thin image's composed form.
type Image struct {
	Key          string            `json:"key"`
	Objects      int               `json:"objects"`
	Size         int64             `json:"size"`                 // bytes of all files
	Repositories map[string]uint64 `json:"repositories"`         // revision by name
	Names        []string          `json:"names,omitempty"`      // the engine's
	Containers   []string          `json:"containers,omitempty"` // those that run from it
	Local        string            `json:"local,omitempty"`      // how much of it is on this host
	Err          string            `json:"error,omitempty"`
}

// Disk is what the objects that were fetched take.
type Disk struct {
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
	Whole   bool  `json:"whole"` // all were counted within the time there was
}
