package preflight

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/internal/overlayfs"
)

const (
	name   = "cvmfs-graphdriver"
	giga   = 1 << 30
	marked = "DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS"
)

var works = overlayfs.Try{Tried: true}

// fit is a host that has nothing against it, before an installation.
func fit() Facts {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	return Facts{
		Time: now,
		Root: true,
		Engine: Engine{
			Host: "unix:///var/run/docker.sock", Product: "Engine", Version: "20.10.24+dfsg1", API: "1.41",
			Driver: "overlay2",
			Root:   "/var/lib/docker", Experimental: true,
		},
		Service: Service{Manager: "systemd", PID: 4711, Flags: map[string]string{}},
		File:    File{Path: "/etc/docker/daemon.json", Exists: true},
		Data: Data{
			Dir: "/var/lib/docker", FileSystem: "extfs", Typed: true, Free: 50 * giga, Size: 100 * giga,
			FreeInodes: 1 << 20, Inodes: 1 << 22,
		},
		Kernel: Kernel{
			Release: "6.12.1-amd64", Support: overlayfs.Support{Overlay: works, EROFS: works, Direct: works},
			FUSE: works,
		},
		Clock: Clock{Synchronised: true},
		Configuration: Configuration{Dir: "/etc/cvmfs", Repositories: []Repository{
			{
				FQRN: "images.example.org", Revision: 7, Published: now.Add(-time.Hour),
				Expires: now.Add(30 * 24 * time.Hour),
			},
		}},
		Plugin: Plugin{Name: name},
	}
}

var install = Plan{Install: true, Name: name}

// active is a host on which the driver runs.
func active() Facts {
	f := fit()
	f.Engine.Driver = name + ":latest"
	f.Engine.DriverStatus = [][2]string{{"View", "erofs"}}
	f.Plugin = Plugin{Name: name, ID: "0123", Present: true, Enabled: true, Ours: true, State: &State{Version: "1"}}
	return f
}

// found returns the findings of a rule.
func found(all []Finding, id string) (some []Finding) {
	for _, f := range all {
		if f.ID == id {
			some = append(some, f)
		}
	}
	return some
}

// packageQuota is what CernVM-FS's package sets.
var packageQuota = config.Quota{
	Bytes: 4000 << 20, Place: config.Place{File: "/etc/cvmfs/default.conf", Line: 3}, Unused: "a package sets it",
}

func TestHostThatIsFitHasNothingAgainstIt(t *testing.T) {
	for _, c := range []struct {
		name  string
		facts Facts
		plan  Plan
	}{
		{"install", fit(), install},
		{"in use", active(), Plan{Name: name}},
		{"installed again", active(), install},
		{"its own data folder", fit(), Plan{Install: true, Name: name, DataRoot: "/var/lib/docker/"}},
	} {
		all := Judge(c.facts, c.plan)
		if err := Unfit(all); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, f := range all {
			if f.Severity == Warning {
				t.Errorf("%s: %+v", c.name, f)
			}
		}
	}
}

func TestEachRuleSaysWhatItShould(t *testing.T) {
	inUse := Plan{Name: name}
	for _, c := range []struct {
		name     string
		facts    Facts
		plan     Plan
		change   func(f *Facts, p *Plan)
		id       string
		severity Severity
		says     string // part of the finding
		remedy   string // part of its remedy
	}{
		{"not root", fit(), install, func(f *Facts, _ *Plan) { f.Root = false }, "user", Error, "root", "sudo"},
		{
			"not root, in use", active(), inUse, func(f *Facts, _ *Plan) { f.Root = false }, "user", Warning, "root",
			"sudo",
		},
		{"27, not by its unit", fit(), install, func(f *Facts, p *Plan) {
			f.Engine.Version, p.Restart = "27.1",
				"command:x"
		}, "engine.variable", Error, "isn't restarted by systemd", marked},
		{
			"no answer", fit(), install,
			func(f *Facts, _ *Plan) { f.Engine = Engine{Host: "unix:///run/x", Err: "refused"} }, "engine.unreachable",
			Error, "unix:///run/x", "--host",
		},
		{"no answer, and ours", fit(), inUse, func(f *Facts, _ *Plan) {
			f.Engine,
				f.File.Driver = Engine{Err: "refused"}, name
		}, "engine.unreachable", Error, "", "after an upgrade to one, \"install --migrate\""},
		{"no answer, and the snapshotter is its driver", fit(), inUse, func(f *Facts, _ *Plan) {
			f.Engine, f.File.Driver = Engine{Err: "refused"}, "cvmfs"
		}, "engine.unreachable", Error, "", "tells it again"},
		{"no answer, which an install mends", fit(), install, func(f *Facts, p *Plan) {
			f.Engine, f.File.Driver = Engine{Err: "refused"}, "cvmfs"
			p.Snapshots, p.DaemonJSON = true, "/etc/docker/daemon.json"
		}, "engine.unreachable", Note, "is started once containerd knows", ""},
		{"the snapshotter is silent", fit(), inUse, func(_ *Facts, p *Plan) {
			p.Snapshots, p.Snapshotter = true, "/run/its.sock"
		}, "snapshotter.silent", Error, "/run/its.sock", "systemctl restart"},
		{
			"another machine", fit(), install,
			func(f *Facts, _ *Plan) { f.Engine = Engine{Host: "tcp://far:2375", Elsewhere: "far"} }, "engine.remote",
			Error, "tcp://far:2375", "unix:///",
		},
		{
			"no version", fit(), install, func(f *Facts, _ *Plan) { f.Engine.Version, f.Engine.API = "dev", "new" },
			"engine.version", Error, `"dev"`, "17.06 to 26.1",
		},
		{
			"rootless", fit(), install, func(f *Facts, _ *Plan) { f.Engine.Rootless = true }, "engine.rootless", Error,
			"rootless", "as root",
		},
		{"containerd", fit(), install, func(f *Facts, _ *Plan) {
			f.Engine.DriverStatus = [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}
		}, "engine.image-store", Error, "containerd", `"containerd-snapshotter": false`},
		{
			"containerd, at the next start", fit(), install, func(f *Facts, _ *Plan) { f.File.Store = true },
			"engine.image-store", Error, "next start", `"containerd-snapshotter": false`,
		},
		{
			"other data folder", fit(), install, func(_ *Facts, p *Plan) { p.DataRoot = "/srv/docker" },
			"engine.data-root", Warning, "becomes /srv/docker", "--data-root",
		},
		{"option for nobody", fit(), install, func(_ *Facts, p *Plan) {
			p.StorageOpts = []string{"cvmfs.repositories=images.example.org,x.example.org"}
		}, "cvmfs.allowed", Warning, `"x.example.org"`, "correct the option"},
		{
			"what is mounted", fit(), install, func(f *Facts, _ *Plan) { f.Kernel.EROFS.Err = "ENOTBLK" }, "kernel.mounts",
			OK, "Linux 6.12.1-amd64 mounts overlays, FUSE", "",
		},
		{
			"flag", fit(), install, func(f *Facts, _ *Plan) { f.Service.Flags["storage-driver"] = "overlay2" },
			"engine.flag", Error, "--storage-driver", "systemctl edit",
		},
		{
			"flag, no systemd", fit(), install,
			func(f *Facts, _ *Plan) { f.Service = Service{Flags: map[string]string{"experimental": ""}} },
			"engine.flag", Error, "--experimental", "where the engine is started",
		},
		{
			"flag for data", fit(), install, func(f *Facts, p *Plan) { f.Service.Flags["graph"], p.DataRoot = "/d", "/e" },
			"engine.flag", Error, "--graph", "",
		},
		{
			"unreadable file", fit(), install, func(f *Facts, _ *Plan) { f.File.Err = "is a directory" }, "daemon-json",
			Error, "/etc/docker/daemon.json", "regular file",
		},
		{
			"comment", fit(), install, func(f *Facts, _ *Plan) { f.File.Problems = []Problem{{3, 5, "a comment", true}} },
			"daemon-json", Error, "line 3, column 5: a comment", "--fix",
		},
		{
			"unknown option", fit(), install, func(_ *Facts, p *Plan) { p.StorageOpts = []string{"cvmfs.repository=x"} },
			"engine.storage-opts", Error, `"cvmfs.repository": this driver takes cvmfs.cache-floor`, "correct --storage-opt",
		},
		{
			"former options", fit(), install, func(f *Facts, _ *Plan) { f.File.Options = []string{"dm.basesize=20G"} },
			"engine.storage-opts", Note, "overlay2", "",
		},
		{"not in use", fit(), inUse, nil, "engine.driver", Warning, "overlay2", "install"},
		{
			"containers", fit(), install, func(f *Facts, _ *Plan) { f.Engine.Running = []string{"web", "db"} },
			"engine.containers", Warning, "2 running containers are stopped", "commit",
		},
		{
			"one container", fit(), install, func(f *Facts, _ *Plan) { f.Engine.Running = []string{"web"} },
			"engine.containers", Warning, "1 running container is stopped", "",
		},
		{
			"images", fit(), install, func(f *Facts, _ *Plan) { f.Engine.Images, f.Engine.Containers = 3, 1 },
			"engine.images", Warning, "3 images and 1 container belong to the driver overlay2", "uninstall",
		},
		{
			"swarm", fit(), install, func(f *Facts, _ *Plan) { f.Engine.Swarm = "manager" }, "engine.swarm", Warning,
			"manager", "quorum",
		},
		{
			"live-restore", fit(), install, func(f *Facts, _ *Plan) { f.Engine.LiveRestore = true }, "engine.live-restore",
			Note, "shared", "",
		},
		{
			"live-restore, containers", fit(), install, func(f *Facts, _ *Plan) {
				f.Engine.LiveRestore,
					f.Engine.Running = true, []string{"web"}
			}, "engine.live-restore", Error, "1 running container goes on",
			"docker stop",
		},
		{
			"experimental", fit(), install, func(f *Facts, _ *Plan) { f.Engine.Experimental = false },
			"engine.experimental", Note, "will be turned on", "",
		},
		{
			"no plugin, yet named", fit(), inUse, func(f *Facts, _ *Plan) { f.File.Driver = name }, "plugin", Error,
			"does not exist", "uninstall",
		},
		{
			"other plugin", fit(), install, func(f *Facts, _ *Plan) { f.Plugin.Present = true }, "plugin", Error,
			"another plugin", "--name",
		},
		{
			"disabled", active(), inUse, func(f *Facts, _ *Plan) { f.Plugin.Enabled = false }, "plugin", Error, "disabled",
			"docker plugin enable",
		},
		{
			"disabled before", fit(), install, func(f *Facts, _ *Plan) { f.Plugin.Present, f.Plugin.Ours = true, true },
			"plugin", Note, "will be enabled", "",
		},
		{
			"plugin not told of", fit(), install, func(f *Facts, _ *Plan) { f.Plugin.Err = "timeout" }, "plugin", Warning,
			name, "",
		},
		{
			"stale mounts", active(), inUse, func(f *Facts, _ *Plan) { f.Plugin.State.Stale = 1 }, "plugin.state", Warning,
			"1 container hangs", "restart",
		},
		{
			"unseen mounts", active(), inUse, func(f *Facts, _ *Plan) { f.Plugin.State.Unseen = true }, "plugin.state", Error,
			"doesn't see", "restart the engine",
		},
		{
			"metrics", active(), inUse,
			func(f *Facts, _ *Plan) { f.Plugin.State.Metrics = &Metrics{Err: "the port is taken"} }, "plugin.state",
			Warning, "metrics are not served", "cvmfs.metrics",
		},
		{
			"damaged image", active(), inUse,
			func(f *Facts, _ *Plan) { f.Plugin.State.Images = []Image{{Key: "k", Err: "torn"}} }, "plugin.state",
			Warning, "damaged: k", "pull it again",
		},
		{
			"changed for the worse", active(), inUse, func(f *Facts, _ *Plan) {
				f.Plugin.State.Repositories = []InUse{{Repository: status.Repository{FQRN: "a.example.org", Err: "torn"}}}
			}, "plugin.configuration", Warning, "can't be used", "within a minute",
		},
		{
			"changed unseen", active(), inUse, func(f *Facts, _ *Plan) {
				f.Plugin.State.Repositories = []InUse{{Differences: []string{"X"}}}
			}, "plugin.configuration", Warning, "another configuration", "reload",
		},
		{
			"userns", fit(), install, func(f *Facts, _ *Plan) { f.Engine.UserNS = true }, "userns.folders", Note, "0711",
			"",
		},
		{"userns, barred", active(), inUse, func(f *Facts, _ *Plan) {
			f.Engine.UserNS, f.Plugin.Barred = true,
				[]string{"/d/plugins"}
		}, "userns.folders", Error, "closed", "chmod 0711 /d/plugins"},
		{
			"no data folder", fit(), install, func(f *Facts, _ *Plan) { f.Data = Data{Dir: "/d", Err: "denied"} },
			"data-root", Error, "/d", "as root",
		},
		{
			"overlay on overlay", fit(), install, func(f *Facts, _ *Plan) { f.Data.FileSystem = "overlayfs" },
			"data-root.file-system", Error, "overlayfs, as in a container", "volume",
		},
		{
			"nfs", fit(), install, func(f *Facts, _ *Plan) { f.Data.FileSystem = "nfs" }, "data-root.file-system", Error,
			"lies on nfs", "ext4",
		},
		{
			"fuse", fit(), install, func(f *Facts, _ *Plan) { f.Data.FileSystem = "fuse" }, "data-root.file-system", Error,
			"lies on fuse", "ext4",
		},
		{
			"btrfs", fit(), install, func(f *Facts, _ *Plan) { f.Data.FileSystem = "btrfs" }, "data-root.file-system",
			Error, "lies on btrfs", "ext4",
		},
		{
			"zfs", fit(), install, func(f *Facts, _ *Plan) { f.Data.FileSystem = "zfs" }, "data-root.file-system", Error,
			"lies on zfs", "ext4",
		},
		{
			"tmpfs", fit(), install, func(f *Facts, _ *Plan) { f.Data.FileSystem = "tmpfs" }, "data-root.file-system",
			Warning, "gone", "",
		},
		{
			"xfs, ftype=0", fit(), install, func(f *Facts, _ *Plan) { f.Data.FileSystem, f.Data.Typed = "xfs", false },
			"data-root.file-system", Error, "ftype=0", "mkfs.xfs -n ftype=1",
		},
		{
			"xfs", fit(), install, func(f *Facts, _ *Plan) { f.Data.FileSystem = "xfs" }, "data-root.file-system", OK,
			"xfs", "",
		},
		{
			"ext4, no types", fit(), install, func(f *Facts, _ *Plan) { f.Data.Typed = false }, "data-root.file-system",
			Error, "ext4 whose folders", "tune2fs",
		},
		{
			"no name servers", fit(), install, func(f *Facts, _ *Plan) { f.Missing = []string{"/etc/resolv.conf"} },
			"host.files", Error, "/etc/resolv.conf is not there", "nameserver",
		},
		{
			"no hosts", active(), inUse, func(f *Facts, _ *Plan) { f.Missing = []string{"/etc/hosts"} }, "host.files",
			Error, "/etc/hosts is not there", "touch /etc/hosts",
		},
		{"not for this user", fit(), install, func(f *Facts, _ *Plan) {
			f.Engine = Engine{Host: "unix:///x", Err: "permission denied", Denied: true}
		}, "engine.permission", Error, "not for this user", "root"},
		{"log", fit(), inUse, func(f *Facts, _ *Plan) {
			f.Engine, f.File.Driver = Engine{Host: "unix:///x", Err: "refused"}, name
		}, "engine.unreachable", Error, "no engine answers", "--log FILE"},
		{"an option of another driver on the command line", fit(), install, func(f *Facts, _ *Plan) {
			f.Service.Flags["storage-opt"] = "cvmfs.view=auto overlay2.size=1G"
		}, "engine.flag", Error, "--storage-opt overlay2.size=1G", "take it out"},
		{"an option on the command line and one in the file", fit(), install, func(f *Facts, _ *Plan) {
			f.Service.Flags["storage-opt"], f.File.Options = "cvmfs.view=auto", []string{"cvmfs.view=fuse"}
		}, "engine.flag", Error, "the same in daemon.json", "take it out"},
		{"debug on the command line", fit(), install, func(f *Facts, p *Plan) {
			f.Service.Flags["debug"], p.Debug = "",
				true
		}, "engine.flag", Error, "--debug", "take it out"},
		{
			"a driver on the command line, in use", active(), install,
			func(f *Facts, _ *Plan) { f.Service.Flags["storage-driver"] = name }, "engine.flag", Error,
			"--storage-driver", "take it out",
		},
		{
			"a bad view", fit(), install, func(_ *Facts, p *Plan) { p.StorageOpts = []string{"cvmfs.view=ext4"} },
			"engine.storage-opts", Error, "auto, erofs and fuse", "--storage-opt",
		},
		{
			"a bad repository", fit(), install,
			func(_ *Facts, p *Plan) { p.StorageOpts = []string{"cvmfs.repositories=a.example.org,,"} },
			"engine.storage-opts", Error, "repository's name", "",
		},
		{
			"a bad switch", fit(), install,
			func(_ *Facts, p *Plan) { p.StorageOpts = []string{"overlay2.override_kernel_check=yes"} },
			"engine.storage-opts", Error, "true or false", "",
		},
		{
			"an unknown option in the file", active(), install, func(f *Facts,
				p *Plan,
			) {
				f.File.Options = []string{"cvmfs.vieuw=fuse"}
			}, "engine.storage-opts", Error, "cvmfs.vieuw",
			"--storage-opt cvmfs.vieuw=",
		},
		{
			"another data folder, installed", active(), install, func(_ *Facts, p *Plan) { p.DataRoot = "/new" },
			"engine.data-root", Error, "can't go to another", "uninstall --purge",
		},
		{
			"read-only", fit(), install, func(f *Facts, _ *Plan) { f.Data.ReadOnly = true }, "data-root.read-only", Error,
			"can't be written", "dmesg",
		},
		{
			"full", fit(), install, func(f *Facts, _ *Plan) { f.Data.Free = 1 << 20 }, "data-root.space", Error,
			"1.0 MiB of 100 GiB", "prune",
		},
		{
			"nearly full", fit(), install, func(f *Facts, _ *Plan) { f.Data.Free = giga }, "data-root.space", Warning,
			"1.0 GiB of 100 GiB", "prune",
		},
		{
			"no inodes", fit(), install, func(f *Facts, _ *Plan) { f.Data.FreeInodes = 10 }, "data-root.inodes", Error,
			"10 of", "inodes",
		},
		{
			"few inodes", fit(), install, func(f *Facts, _ *Plan) { f.Data.FreeInodes = 5000 }, "data-root.inodes",
			Warning, "5,000 of", "inodes",
		},
		{
			"RHEL 7", fit(), install, func(f *Facts, _ *Plan) { f.Kernel.Release = "3.10.0-1160.el7.x86_64" },
			"kernel.version", Error, "older than 4.18", "override_kernel_check",
		},
		{"RHEL 7, overridden", fit(), install, func(f *Facts, p *Plan) {
			f.Kernel.Release, p.StorageOpts = "3.10.0-1160.el7.x86_64", []string{"overlay2.override_kernel_check=true"}
		}, "kernel.version", Warning, "lets it be tried", ""},
		{"RHEL 7, overridden before", fit(), install, func(f *Facts, _ *Plan) {
			f.Kernel.Release, f.File.Options = "3.10.0-1160.el7.x86_64", []string{"overlay2.override_kernel_check=1"}
		}, "kernel.version", Warning, "lets it be tried", ""},
		{"RHEL 7, not overridden", fit(), install, func(f *Facts, p *Plan) {
			f.Kernel.Release, p.StorageOpts = "3.10.0-1160.el7.x86_64", []string{"overlay2.override_kernel_check=false"}
		}, "kernel.version", Error, "older than 4.18", ""},
		{
			"no overlay", fit(), install, func(f *Facts, _ *Plan) { f.Kernel.Overlay.Err = "no such device" },
			"kernel.overlay", Error, "overlayfs", "modprobe overlay",
		},
		{
			"no device", fit(), install, func(f *Facts, _ *Plan) { f.Kernel.Device = "no such file" }, "kernel.fuse",
			Error, "/dev/fuse", "mknod",
		},
		{
			"no FUSE", fit(), install, func(f *Facts, _ *Plan) { f.Kernel.FUSE.Err = "no such device" }, "kernel.fuse",
			Error, "FUSE", "modprobe fuse",
		},
		{
			"not tried", fit(), install, func(f *Facts, _ *Plan) { f.Kernel = Kernel{Err: "not permitted"} },
			"kernel.probe", Warning, "tried", "root",
		},
		{"two overlays", fit(), install, func(f *Facts, _ *Plan) {
			f.Kernel.Direct.Err, f.Kernel.Stacked = "EINVAL",
				works
		}, "kernel.view", OK, "erofs (by two overlays: EINVAL)", ""},
		{"fuse view", fit(), install, func(f *Facts, _ *Plan) {
			f.Kernel.EROFS.Err, f.Kernel.Direct = "ENOTBLK",
				overlayfs.Try{}
		}, "kernel.view", OK, "by fuse (erofs can't be used: ENOTBLK)", ""},
		{
			"view in use", active(), inUse,
			func(f *Facts, _ *Plan) { f.Engine.DriverStatus = [][2]string{{"View", "fuse (set)"}} }, "kernel.view", OK,
			"fuse (set)", "",
		},
		{
			"SELinux", fit(), install, func(f *Facts, _ *Plan) { f.Security.SELinux = "enforcing" }, "security.selinux",
			Note, "selinux-enabled", "ausearch",
		},
		{
			"AppArmor", fit(), install, func(f *Facts, _ *Plan) { f.Security.AppArmor = true }, "security.apparmor", OK,
			"AppArmor", "",
		},
		{
			"clock", fit(), install, func(f *Facts, _ *Plan) { f.Clock.Synchronised = false }, "clock", Note, "clock",
			"chrony",
		},
		{
			"no configuration", fit(), install,
			func(f *Facts, _ *Plan) { f.Configuration = Configuration{Dir: "/etc/cvmfs", Missing: true} },
			"cvmfs.configuration", Warning, "will be made", "CVMFS_HTTP_PROXY",
		},
		{"no folder as named", fit(), install, func(f *Facts, p *Plan) {
			f.Configuration, p.CVMFSConfig = Configuration{Dir: "/x", Missing: true}, "/x"
		}, "cvmfs.configuration", Error, "/x", "--cvmfs-config"},
		{
			"bad configuration", fit(), install, func(f *Facts, _ *Plan) { f.Configuration.Err = "line 3" },
			"cvmfs.configuration", Error, "can't be read", "",
		},
		{
			"no repository", fit(), install, func(f *Facts, _ *Plan) { f.Configuration.Repositories = nil },
			"cvmfs.configuration", Warning, "no repository", "REPOSITORY.conf",
		},
		{
			"limit of a package", fit(), install, func(f *Facts, _ *Plan) { f.Configuration.Quota = packageQuota },
			"cvmfs.quota", Note, "CVMFS_QUOTA_LIMIT (/etc/cvmfs/default.conf:3) does not limit", "/default.local",
		},
		{
			"limit by an option", fit(), install, func(f *Facts, p *Plan) {
				f.Configuration.Quota, p.StorageOpts = packageQuota, []string{"cvmfs.cache-limit=300G"}
			},
			"cvmfs.quota", OK, "the storage option cvmfs.cache-limit limits", "",
		},
		{
			"limit by an option of the snapshotter", active(), inUse, func(f *Facts, _ *Plan) {
				f.Configuration.Quota = packageQuota
				f.Snapshotter = &Snapshotter{State: &State{Cache: status.Cache{LimitBy: "storage option cvmfs.cache-limit"}}}
			},
			"cvmfs.quota", OK, "the storage option cvmfs.cache-limit limits", "",
		},
		{
			"limit", fit(), install, func(f *Facts, _ *Plan) { f.Configuration.Quota.Bytes = 50 << 30 },
			"cvmfs.quota", OK, "limits the object cache to 50GiB", "",
		},
		{
			"limit in another unit", fit(), install, func(f *Facts, _ *Plan) {
				f.Configuration.Quota.Bytes, f.Configuration.Quota.Odd = 64<<20, `"20G" is taken as 64, the least`
			},
			"cvmfs.quota", Warning, "limits the object cache to 64MiB", "a number of MiB",
		},
		{
			"proxy", fit(), install, func(f *Facts, _ *Plan) { f.Configuration.Repositories[0].Trouble = Proxy },
			"cvmfs.repository.proxy", Warning, "no proxy answers", "CVMFS_HTTP_PROXY",
		},
		{
			"proxy, in use", active(), inUse, func(f *Facts, _ *Plan) { f.Configuration.Repositories[0].Trouble = Proxy },
			"cvmfs.repository.proxy", Error, "no proxy answers", "CVMFS_HTTP_PROXY",
		},
		{
			"key", fit(), install, func(f *Facts, _ *Plan) { f.Configuration.Repositories[0].Trouble = Key },
			"cvmfs.repository.key", Error, "master key", "PEM",
		},
		{
			"expired", active(), inUse, func(f *Facts, _ *Plan) { f.Configuration.Repositories[0].Trouble = Expired },
			"cvmfs.repository.expired", Error, "expired", "clock",
		},
		{
			"expires", active(), inUse,
			func(f *Facts, _ *Plan) { f.Configuration.Repositories[0].Expires = f.Time.Add(time.Hour) },
			"cvmfs.repository.expires", Warning, "2026-06-01 13:00:00", "renew",
		},
		{
			"clock is behind", active(), inUse,
			func(f *Facts, _ *Plan) { f.Configuration.Repositories[0].Published = f.Time.Add(time.Hour) },
			"cvmfs.repository.future", Warning, "future", "clock",
		},
		{
			"notes", active(), inUse,
			func(f *Facts, _ *Plan) { f.Configuration.Repositories[0].Notes = []string{"proxy failed"} },
			"cvmfs.repository.notes", Note, "images.example.org", "",
		},
		{
			"push-back unreadable", fit(), install,
			func(f *Facts, _ *Plan) { f.Minio = &Minio{File: "/m/config.json", Err: "EOF"} },
			"minio", Error, "/m/config.json", "--minio-config",
		},
		{
			"push-back's repository unknown", active(), inUse,
			func(f *Facts, _ *Plan) { f.Minio = &Minio{File: "/m/config.json", Repository: "other.example.org"} },
			"minio.repository", Error, "other.example.org", "CvmfsRepo",
		},
		{
			"push-back's repository not yet known", fit(), install,
			func(f *Facts, _ *Plan) { f.Minio = &Minio{File: "/m/config.json", Repository: "other.example.org"} },
			"minio.repository", Warning, "other.example.org", "CvmfsRepo",
		},
		{
			"push-back's files elsewhere", active(), inUse,
			func(f *Facts, _ *Plan) {
				f.Minio = &Minio{File: "/m/c", Repository: f.Configuration.Repositories[0].FQRN, Outside: []string{"/t"}}
			},
			"minio.outside", Error, "/t", "into the folder",
		},
		{
			"push-back", active(), inUse,
			func(f *Facts, _ *Plan) {
				f.Minio = &Minio{File: "/m/c", Repository: f.Configuration.Repositories[0].FQRN}
			},
			"minio", OK, "nobody was asked: --minio-config /m", "",
		},
		{
			"push-back tried", active(), inUse,
			func(f *Facts, _ *Plan) {
				f.Minio = &Minio{File: "/m/c", Repository: f.Configuration.Repositories[0].FQRN, Asked: true}
			},
			"minio", OK, "all that it names answer", "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.change != nil {
				c.change(&c.facts, &c.plan)
			}
			all := Judge(c.facts, c.plan)
			some := found(all, c.id)
			if len(some) != 1 {
				t.Fatalf("%d findings of %s: %+v", len(some), c.id, all)
			}
			f := some[0]
			if f.Severity != c.severity || !strings.Contains(f.What, c.says) || !strings.Contains(f.Remedy, c.remedy) {
				t.Errorf("%+v, want %s with %q and the remedy %q", f, c.severity, c.says, c.remedy)
			}
			if f.Severity == Error && f.Remedy == "" {
				t.Error("an error without a remedy")
			}
			if (Unfit(all) != nil) != (c.severity == Error) {
				t.Errorf("unfit: %v", Unfit(all))
			}
		})
	}
}

func TestVersionsAreJudgedByTheirRule(t *testing.T) {
	const drop = " takes storage-driver plugins only with " + marked + "=1 in its environment"
	const refused = " has no storage-driver plugins: they were removed in 28.0, and an engine that is configured to use one does not start"
	for _, c := range []struct {
		version, api string
		id           string
		severity     Severity
		what         string
	}{
		{
			"1.13.1", "1.26", "engine.version", Error,
			"engine 1.13.1 is too old: storage-driver plugins that the engine manages came with 17.06",
		},
		{
			"17.03.2-ce", "1.27", "engine.version", Error,
			"engine 17.03.2-ce is too old: storage-driver plugins that the engine manages came with 17.06",
		},
		{"17.06.0-ce", "1.30", "engine.version", OK, "engine 17.06.0-ce takes storage-driver plugins"},
		{"18.09.9", "1.39", "engine.version", OK, "engine 18.09.9 takes storage-driver plugins"},
		{
			"18.06.1~ce~3-0~ubuntu", "1.38", "engine.version", OK,
			"engine 18.06.1~ce~3-0~ubuntu takes storage-driver plugins",
		},
		{"19.03.13-ce", "1.40", "engine.version", OK, "engine 19.03.13-ce takes storage-driver plugins"},
		{"20.10.24+dfsg1", "1.41", "engine.version", OK, "engine 20.10.24+dfsg1 takes storage-driver plugins"},
		{"v25.0.3", "1.44", "engine.version", OK, "engine v25.0.3 takes storage-driver plugins"},
		{"26.1.5", "1.45", "engine.version", OK, "engine 26.1.5 takes storage-driver plugins"},
		{"27.0.0-rc.1", "1.46", "engine.variable", Note, "engine 27.0.0-rc.1" + drop +
			": a drop-in of its systemd unit will set it"},
		{"27.5.1", "1.47", "engine.variable", Note, "engine 27.5.1" + drop +
			": a drop-in of its systemd unit will set it"},
		{"28.0.0", "1.48", "engine.version", Error, "engine 28.0.0" + refused},
		{"28.5.2", "1.51", "engine.version", Error, "engine 28.5.2" + refused},
		{"29.0.1", "1.52", "engine.version", Error, "engine 29.0.1" + refused},
		{"dev", "1.41", "engine.version", OK, "engine dev takes storage-driver plugins"},
		{
			"master-dockerproject-2024-05-01", "1.47", "engine.variable", Note,
			"engine master-dockerproject-2024-05-01" + drop + ": a drop-in of its systemd unit will set it",
		},
		{"0.0.0-dev", "1.52", "engine.version", Error, "engine 0.0.0-dev" + refused},
	} {
		f := fit()
		f.Engine.Version, f.Engine.API = c.version, c.api
		got := found(Judge(f, install), c.id)
		if len(got) != 1 || got[0].Severity != c.severity || got[0].What != c.what {
			t.Errorf("%s: %+v, want %s: %s", c.version, got, c.severity, c.what)
		}
	}
}

func TestEngine28IsToldTheWay(t *testing.T) {
	f := fit()
	f.Engine.Version = "28.5.2"
	const want = `"cvmfs-graphdriver install" sets up the snapshotter, which is the way from 28 on`
	if got := found(Judge(f, install), "engine.version"); len(got) != 1 || got[0].Remedy != want {
		t.Errorf("%+v", got)
	}
	f.File.Driver = install.Name // it was upgraded from 27
	if got := found(Judge(f, install), "engine.version"); len(got) != 1 ||
		!strings.Contains(got[0].Remedy, "install --migrate") || !strings.Contains(got[0].Remedy, "daemon.json") {
		t.Errorf("%+v", got)
	}
}

// An engine that maps owners by itself takes no snapshotter, or fetches all of an image.
func TestTheSnapshotterIsJudgedByItsOwnRules(t *testing.T) {
	plan := install
	plan.Snapshots, plan.DaemonJSON = true, "/etc/docker/daemon.json"
	for version, severity := range map[string]Severity{"28.5.2": Warning, "29.1.0": Error} {
		f := fit()
		f.Engine.Version, f.Engine.UserNS = version, true
		if got := found(Judge(f, plan), "engine.userns-remap"); len(got) != 1 || got[0].Severity != severity {
			t.Errorf("%s: %+v", version, got)
		}
		if got := found(Judge(f, plan), "engine.version"); len(got) > 0 {
			t.Errorf("%s: %+v", version, got)
		}
		untold := plan
		untold.DaemonJSON = ""
		if got := found(Judge(f, untold), "engine.userns-remap"); len(got) > 0 {
			t.Errorf("%s, which isn't told: %+v", version, got)
		}
	}
}

func TestImagesThatLackBlobsAreTold(t *testing.T) {
	f := fit()
	f.Snapshotter = &Snapshotter{Lacking: []status.Lacking{{Namespace: "moby", Name: "an/image:1", Blobs: 2}}}
	for _, p := range []Plan{{}, {Snapshots: true}} {
		found := Judge(f, p)
		if !slices.ContainsFunc(found, func(f Finding) bool {
			return f.ID == "snapshotter.blobs" && strings.Contains(f.What, "an/image:1 (moby)") && strings.Contains(f.What, "2 of")
		}) {
			t.Errorf("%+v", found)
		}
	}
}

func TestLostDataOfEitherSideAreTold(t *testing.T) {
	for _, c := range []struct {
		layers int
		known  *containerd.Known
		want   string // the finding; "" for none
	}{
		{3, nil, ""},
		{0, &containerd.Known{}, ""},
		{3, &containerd.Known{There: 3}, ""},
		{3, &containerd.Known{There: 1}, ""}, // the others are about to be collected
		{3, &containerd.Known{}, "snapshotter.unknown"},
		{0, &containerd.Known{Lost: []string{"moby/a"}}, "snapshotter.lost"},
		{3, &containerd.Known{There: 3, Lost: []string{"moby/a"}}, "snapshotter.lost"},
	} {
		f := fit()
		f.Snapshotter = &Snapshotter{State: &State{Version: "1", Layers: c.layers}, Known: c.known}
		var found []string
		for _, finding := range Judge(f, Plan{Snapshots: true, DataRoot: "/folder"}) {
			if strings.HasPrefix(finding.ID, "snapshotter.") {
				found = append(found, finding.ID)
			}
		}
		if strings.Join(found, " ") != c.want {
			t.Errorf("%d layers, %+v: %q, want %q", c.layers, c.known, found, c.want)
		}
	}
}

func TestEngine27TakesItsVariable(t *testing.T) {
	for _, c := range []struct {
		name    string
		service Service
		plan    Plan
		want    Finding
	}{
		{"set", Service{Manager: "systemd", Variable: true}, install, Finding{
			ID: "engine.variable", Severity: OK, What: "engine 27.5.1 takes storage-driver plugins: " + marked +
				" is in its environment",
		}},
		{"no systemd", Service{}, install, Finding{
			ID: "engine.variable", Severity: Error,
			What: "engine 27.5.1 takes storage-driver plugins only with " + marked +
				"=1 in its environment, and it isn't restarted by systemd, where a drop-in would set it",
			Remedy: "set " + marked +
				"=1 where the engine is started, for instance in /etc/default/docker, and restart it",
		}},
		{"as it stands", Service{Manager: "systemd"}, Plan{Name: name}, Finding{
			ID: "engine.variable", Severity: Warning,
			What:   "engine 27.5.1 takes storage-driver plugins only with " + marked + "=1 in its environment",
			Remedy: `"cvmfs-graphdriver install" writes a drop-in of its systemd unit`,
		}},
	} {
		f := fit()
		f.Engine.Version, f.Service = "27.5.1", c.service
		if d := cmp.Diff([]Finding{c.want}, found(Judge(f, c.plan), "engine.variable")); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestEveryFaultIsToldAtOnceTheGravestFirst(t *testing.T) {
	f := fit()
	f.Engine.Version, f.Engine.Rootless, f.Engine.Images, f.Engine.Running = "29.1.0", true, 4, []string{"a", "b"}
	f.File.Problems = []Problem{{1, 1, "a comment", true}, {9, 2, "a comma", true}}
	f.Data.FileSystem, f.Data.Free = "nfs", 1<<20
	f.Kernel.Overlay.Err, f.Kernel.Device = "no such device", "no such file"
	f.Clock.Synchronised = false
	f.Configuration.Repositories = append(f.Configuration.Repositories,
		Repository{FQRN: "bad.example.org", Trouble: Untrusted, Err: "signature"})
	all := Judge(f, install)
	var errs []string
	last := 0
	for _, finding := range all {
		rank := slices.Index(order, finding.Severity)
		if rank < last {
			t.Errorf("%s %s stands after a lesser one", finding.Severity, finding.ID)
		}
		if last = rank; finding.Severity == Error {
			errs = append(errs, finding.ID)
		}
	}
	want := []string{
		"engine.version", "engine.rootless", "daemon-json", "daemon-json", "data-root.file-system", "data-root.space",
		"kernel.overlay", "kernel.fuse",
		"cvmfs.repository.untrusted",
	}
	if d := cmp.Diff(want, errs); d != "" {
		t.Errorf("errors (-want +got):\n%s", d)
	}
	err := Unfit(all)
	if !errors.Is(err, ErrUnfit) || strings.Count(err.Error(), "daemon-json") != 1 {
		t.Errorf("%v: want ErrUnfit, and each rule once", err)
	}
	var text strings.Builder
	if err := Write(&text, all, false); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(text.String(), "error    engine 29.1.0 has no") || strings.Contains(text.String(), "\nok ") {
		t.Errorf("text:\n%s", text.String())
	}
}

func TestPodmanIsRefusedByName(t *testing.T) {
	f := fit()
	f.Engine.Product, f.Engine.Version = "Podman Engine", "4.3.1"
	got := found(Judge(f, install), "engine.product")
	if len(got) != 1 || got[0].Severity != Error ||
		got[0].What != "this is not Docker's engine but Podman Engine 4.3.1, which has no storage-driver plugins" {
		t.Errorf("%+v", got)
	}
}
