package preflight

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/internal/overlayfs"
)

// user tells who can't see or do all.
func user(f *Facts, p *Plan) []Finding {
	switch {
	case f.Root:
		return nil
	case p.Install:
		return one(Error, "user", "this program doesn't run as root, who alone can change the engine",
			"run it as root (sudo)")
	}
	return one(Warning, "user", "this program does not run as root: many checks are not possible", "run it as root (sudo)")
}

// plugin judges the plugin the engine has under the name.
func plugin(f *Facts, p *Plan) []Finding {
	const id = "plugin"
	if f.Engine.silent() {
		return nil
	}
	inUse := f.Engine.Active(p.Name) || f.File.Driver != "" && tagged(f.File.Driver) == tagged(p.Name)
	switch g := f.Plugin; {
	case g.Err != "":
		return with(one(Warning, id, "the engine doesn't tell of its plugin "+p.Name, ""), g.Err)
	case !g.Present && inUse && p.Install:
		return one(Note, id, "the plugin "+p.Name+" is the storage driver, but does not exist: it will be created", "")
	case !g.Present && inUse:
		return one(Error, id, "the engine's configuration names the plugin "+p.Name+
			" as storage driver, but it does not exist: the engine will not start again",
			"run \"cvmfs-graphdriver install\", or \"cvmfs-graphdriver uninstall\" to go back to the former driver")
	case !g.Present && p.Install:
		return one(Note, id, "the plugin "+p.Name+" will be created", "")
	case !g.Present:
		return one(Note, id, "the engine has no plugin "+p.Name, "\"cvmfs-graphdriver install\" creates it")
	case !g.Ours:
		return one(Error, id, "the engine has another plugin under the name "+p.Name,
			"choose another name with --name, or remove that plugin")
	case !g.Enabled && inUse && !p.Install:
		return one(Error, id, "the plugin "+p.Name+
			" is disabled, and it is the storage driver: nothing works, and the engine will not start again",
			"run \"cvmfs-graphdriver install\", or docker plugin enable "+p.Name+" and restart the engine")
	case !g.Enabled && p.Install:
		return one(Note, id, "the plugin "+p.Name+" is there and disabled; it will be enabled", "")
	case !g.Enabled:
		return one(Note, id, "the plugin "+p.Name+" is there and disabled", "\"cvmfs-graphdriver install\" enables it")
	}
	of := ""
	if s := f.Plugin.State; s != nil && s.Version != "" {
		of = ", version " + s.Version
	}
	return one(OK, id, "the plugin "+p.Name+" is enabled"+of, "")
}

// needed judges the files of the host that the engine mounts into the plugin.
func needed(f *Facts, p *Plan) []Finding {
	if !p.Install && !f.Plugin.Present {
		return nil
	}
	var found []Finding
	for _, file := range f.Missing {
		what, remedy := file+" is not there: the engine mounts it into the plugin, and can't enable it without",
			"make it; an empty file will do (touch "+file+")"
		if file == resolvConf {
			remedy = "make it, with the site's name servers (nameserver ADDRESS); if it is a link to a file that a service writes, as systemd-resolved, start that"
		}
		found = append(found, one(Error, "host.files", what, remedy)...)
	}
	return found
}

// pluginState judges what the plugin says of itself.
func pluginState(f *Facts, p *Plan) []Finding {
	s := f.Plugin.State
	if s == nil {
		return nil
	}
	const id = "plugin.state"
	var found []Finding
	if s.Err != "" {
		found = append(found, with(one(Warning, id, "the plugin doesn't tell its state",
			"restart the engine if containers don't start"), s.Err)...)
	}
	if s.Unseen {
		found = append(found, one(Error, id, "the engine doesn't see what the plugin mounts: containers get an empty "+
			"root, and programs in them aren't found; the folder that both share was unmounted",
			fmt.Sprintf("restart the engine; with live-restore run \"docker plugin disable --force %s\" and "+
				"\"docker plugin enable %s\" first", p.Name, p.Name))...)
	}
	if s.Stale > 0 {
		found = append(found, one(Warning, id, several(s.Stale, "container hangs", "containers hang")+
			" on a mount of the plugin's that has gone: files get \"Transport endpoint is not connected\"",
			"restart the containers")...)
	}
	if s.Metrics != nil && s.Metrics.Err != "" {
		found = append(found, with(one(Warning, id, "metrics are not served, which is tried again",
			"mend what the error says, or set another address by the storage option "+options.MetricsAt),
			s.Metrics.Err)...)
	}
	found = append(found, inUse(s)...)
	for _, image := range s.Images {
		if image.Err != "" {
			found = append(found,
				with(one(Warning, id, "a composed image is damaged: "+image.Key,
					"remove the thin image and pull it again"), image.Err)...)
		}
	}
	return found
}

// inUse judges the configuration that the plugin uses.
func inUse(s *State) (found []Finding) {
	const id = "plugin.configuration"
	for _, r := range s.Repositories {
		switch {
		case r.Err != "":
			found = append(found, with(one(Warning, id, "the configuration of "+r.FQRN+
				" was changed and can't be used: the plugin uses what it was before",
				"correct what the error names; it counts within a minute, by \"cvmfs-graphdriver reload\" at once"),
				r.Err)...)
		case len(r.Differences) > 0:
			found = append(found, with(one(Warning, id, "the plugin uses another configuration of "+r.FQRN+
				" than the host's files say", "\"cvmfs-graphdriver reload\"; if that doesn't help, the folder was "+
				"replaced by another one, or the plugin has another: restart the engine"),
				strings.Join(r.Differences, "; "))...)
		}
	}
	return found
}

// folders judges the two folders that userns-remap takes to be opened.
func folders(f *Facts, p *Plan) []Finding {
	const id = "userns.folders"
	switch {
	case f.Engine.silent() || !f.Engine.UserNS:
		return nil
	case p.Install:
		return one(Note, id, "userns-remap is on: the folder plugins of the engine's data, and the plugin's in it, are opened for passage (mode 0711), or no container could start", "")
	case len(f.Plugin.Barred) > 0:
		return one(Error, id, "userns-remap is on, and containers can't reach their files: a folder above them is closed to all but root",
			"chmod 0711 "+strings.Join(f.Plugin.Barred, " "))
	case f.Plugin.Present:
		return one(OK, id, "userns-remap is on, and the folders above the containers' files are open for passage", "")
	}
	return nil
}

// dataRoot judges the file system of the engine's data.
func dataRoot(f *Facts, p *Plan) []Finding {
	const id, remedy = "data-root.file-system", "move the engine's data-root to ext4, or to xfs made with ftype=1"
	d := f.Data
	if d.Dir == "" && d.Err == "" {
		return nil
	}
	if d.Err != "" {
		return with(one(Error, "data-root", "the engine's data folder can't be examined: "+d.Dir,
			"run this program as root on the engine's host"), d.Err)
	}
	what := fmt.Sprintf("the engine's data folder %s lies on %s", d.Dir, Shown(d.FileSystem))
	var found []Finding
	switch {
	case d.FileSystem == "overlayfs":
		found = one(Error, id, what+", as in a container, and the kernel takes no overlay on that",
			remedy+", for an engine in a container on a volume")
	case d.FileSystem == "tmpfs":
		found = one(Warning, id, what+": images are gone when the machine is restarted", remedy)
	case d.FileSystem == "xfs" && !d.Typed:
		found = one(Error, id, what+" that was made with ftype=0 (xfs_info shows it), which overlayfs can't be used on",
			"make it anew with \"mkfs.xfs -n ftype=1\", or move the engine's data-root")
	case d.FileSystem != "extfs" && d.FileSystem != "xfs":
		found = one(Error, id, what+", which the driver isn't made for", remedy)
	case !d.Typed:
		found = one(Error, id, what+" whose folders list names without their types (d_type), which overlayfs needs",
			"unmount it and run \"tune2fs -O filetype\" and \"e2fsck -f\", or move the engine's data-root")
	default:
		found = one(OK, id, what, "")
	}
	if d.ReadOnly {
		found = append(found, one(Error, "data-root.read-only",
			"the engine's data folder "+d.Dir+" can't be written to",
			"mount its file system for writing; a disk with errors is mounted read-only by the kernel (see dmesg)")...)
	}
	return found
}

// Shown is what a file system is called by people.
func Shown(fileSystem string) string {
	if fileSystem == "extfs" {
		return "ext4"
	}
	return fileSystem
}

// Space below which there is a finding. The plugin itself takes some 30 MB; a thin image a few for its metadata, and
// what is read.
const (
	leastFree   = 256 << 20 // bytes: refused
	littleFree  = 5 << 30   // bytes: warned of
	leastFiles  = 2_000     // inodes: refused
	littleFiles = 100_000   // inodes: warned of
)

// space judges what is free for the engine's data.
func space(f *Facts, p *Plan) []Finding {
	d := f.Data
	if d.Err != "" || d.Size == 0 {
		return nil
	}
	free := fmt.Sprintf("%s of %s free in %s", humanize.IBytes(d.Free), humanize.IBytes(d.Size), d.Dir)
	found := least(d.Free, leastFree, littleFree, "data-root.space", free,
		"free some space (docker system prune), or move the engine's data-root to a larger disk")
	if d.Inodes > 0 {
		free := fmt.Sprintf("%s of %s files can still be made in %s", humanize.Comma(int64(d.FreeInodes)),
			humanize.Comma(int64(d.Inodes)), d.Dir)
		found = append(found, least(d.FreeInodes, leastFiles, littleFiles, "data-root.inodes", free,
			"remove files, or move the engine's data-root to a file system with more inodes")...)
	}
	return found
}

// least compares an amount with two bounds.
func least(is, refused, warned uint64, id, what, remedy string) []Finding {
	switch {
	case is < refused:
		return one(Error, id, "too little: "+what, remedy)
	case is < warned:
		return one(Warning, id, "little: "+what, remedy)
	}
	return one(OK, id, what, "")
}

// oldest is the first kernel the driver is expected to work on (docs/compatibility.md), as major times 100 plus minor.
const oldest = 4_18

// kernel judges what the kernel can do.
func kernel(f *Facts, p *Plan) []Finding {
	k := f.Kernel
	var found []Finding
	if v := number(k.Release); v > 0 && v < oldest {
		what := "Linux " + k.Release + " is older than 4.18, the first this driver is expected to work on"
		if overridden(p.StorageOpts) || overridden(f.File.Options) {
			found = append(found, one(Warning, "kernel.version",
				what+"; "+options.Override+" lets it be tried", "run a newer kernel")...)
		} else {
			found = append(found, one(Error, "kernel.version", what,
				"run a newer kernel; to try all the same, give --storage-opt "+options.Override+"=true")...)
		}
	}
	if k.Err != "" {
		return append(found, with(one(Warning, "kernel.probe", "it wasn't tried what this kernel can mount",
			"run this program as root, in a mount namespace of its own rights (not in a container)"), k.Err)...)
	}
	if k.Overlay.Tried && !k.Overlay.Works() {
		found = append(found, with(one(Error, "kernel.overlay", "overlayfs doesn't work on this kernel",
			"run \"modprobe overlay\", or a kernel with CONFIG_OVERLAY_FS"), k.Overlay.Err)...)
	}
	switch {
	case k.Device != "":
		found = append(found, with(one(Error, "kernel.fuse", "the device /dev/fuse is not as it should be",
			"run \"modprobe fuse\"; if that doesn't make it: mknod -m 0666 /dev/fuse c 10 229"), k.Device)...)
	case k.FUSE.Tried && !k.FUSE.Works():
		found = append(found, with(one(Error, "kernel.fuse", "FUSE doesn't work on this kernel",
			"run \"modprobe fuse\", or a kernel with CONFIG_FUSE_FS"), k.FUSE.Err)...)
	}
	return found
}

// mounts reports what of the kernel works.
func mounts(f *Facts, _ *Plan) []Finding {
	var works []string
	for _, m := range []struct {
		name string
		overlayfs.Try
	}{{"overlays", f.Kernel.Overlay}, {"FUSE", f.Kernel.FUSE}, {"EROFS images from files", f.Kernel.EROFS}} {
		if m.Works() {
			works = append(works, m.name)
		}
	}
	if len(works) == 0 {
		return nil
	}
	return one(OK, "kernel.mounts", fmt.Sprintf("Linux %s mounts %s", f.Kernel.Release, strings.Join(works, ", ")), "")
}

// overridden reports whether options ask for an old kernel to be tried. Others than the driver's don't matter.
func overridden(opts []string) bool {
	return slices.ContainsFunc(opts, func(option string) bool {
		o, err := options.Parse([]string{option})
		return err == nil && o.Override
	})
}

// view reports how thin images are shown, or will be as far as it can be told without the driver.
func view(f *Facts, p *Plan) []Finding {
	const id = "kernel.view"
	for _, s := range f.Engine.DriverStatus {
		if f.Engine.Active(p.Name) && s[0] == "View" {
			return one(OK, id, "thin images are shown by "+s[1], "")
		}
	}
	if expected := Expected(f.Kernel); expected != "" {
		return one(OK, id, "thin images are expected to be shown by "+expected, "")
	}
	return nil
}

// Expected returns the view that the driver chooses on a kernel, in the words of "docker info". It is "" where none
// works, or that can't be told.
func Expected(k Kernel) string {
	if !k.Overlay.Works() {
		return ""
	}
	switch way, why := k.Way(); {
	case way == overlayfs.ByOne:
		return "erofs"
	case way == overlayfs.ByTwo:
		return "erofs (by two overlays: " + why + ")"
	case k.FUSE.Works():
		return "fuse (erofs can't be used: " + why + ")"
	}
	return ""
}

func security(f *Facts, _ *Plan) []Finding {
	var found []Finding
	if f.Security.SELinux == "enforcing" {
		what := "SELinux is enforcing, and the engine doesn't label containers (selinux-enabled)"
		if f.Engine.Labels {
			what = "SELinux is enforcing: the driver mounts containers' files with the labels the engine gives"
		}
		found = one(Note, "security.selinux", what+"; this was not tested with such a policy",
			"if something is denied, \"ausearch -m avc -ts recent\" names it")
	}
	if f.Security.AppArmor {
		found = append(found, one(OK, "security.apparmor",
			"AppArmor is on: containers keep their profile, the plugin has none", "")...)
	}
	return found
}

func clock(f *Facts, _ *Plan) []Finding {
	if f.Clock.Err != "" || f.Clock.Synchronised {
		return nil
	}
	return one(Note, "clock", "the kernel doesn't know its clock as synchronised; whitelists of repositories are judged by it", "run a time service, such as chrony or systemd-timesyncd")
}
