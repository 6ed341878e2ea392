package preflight

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/installer/service"
)

// The engine's versions that matter, as major times 100 plus minor, and the API of each, likewise.
const (
	firstWithPlugins     = 17_06 // managed storage-driver plugins, as such
	firstWithVariable    = 27_00 // plugins that want [service.PluginVariable] besides
	firstWithout         = 28_00 // no storage-driver plugins
	firstWithoutRemapped = 29_00 // no snapshotters with userns-remap
	firstWithPluginsAPI  = 1_30
	firstWithVariableAPI = 1_46
	firstWithoutAPI      = 1_48
)

// snapshotter is the storage driver of an engine that keeps its images with the snapshotter.
const snapshotter = "cvmfs"

func reachable(f *Facts, p *Plan) []Finding {
	if f.Engine.Err == "" {
		return nil
	}
	if f.Engine.Denied {
		return with(one(Error, "engine.permission", "the engine's socket is not for this user: "+f.Engine.Host,
			"run this program as root (sudo); whether the engine runs is not known"), f.Engine.Err)
	}
	detail := f.Engine.Err
	if f.Service.Cause != "" {
		detail += "; the engine's log says: " + f.Service.Cause
	}
	remedy := "start the engine, or name its socket with --host"
	switch {
	case f.File.Driver == snapshotter && p.Snapshots && p.Install:
		return with(one(Note, "engine.unreachable", "no engine answers at "+f.Engine.Host+
			": it is started once containerd knows its storage driver", ""), detail)
	case f.File.Driver == snapshotter:
		remedy = fmt.Sprintf("%s names the snapshotter as storage driver, and containerd may not know it any more: \"cvmfs-graphdriver install\" "+
			"tells it again and starts the engine, \"uninstall --force\" starts it on the former one", f.File.Path)
	case f.File.Driver != "" && tagged(f.File.Driver) == tagged(p.Name):
		remedy = fmt.Sprintf("%s names %s as storage driver: \"cvmfs-graphdriver uninstall\" starts the engine on the former one, \"install\" does that and "+
			"mends the plugin; engine 28 and newer take no plugins: after an upgrade to one, \"install --migrate\" goes over "+
			"to the snapshotter", f.File.Path, p.Name)
		if f.Service.Cause == "" {
			remedy += "; the reason is in the engine's log, in the line before the last (--log FILE names the log)"
		}
	}
	return with(one(Error, "engine.unreachable", "no engine answers at "+f.Engine.Host, remedy), detail)
}

// here refuses an engine on another machine, whose files and units are not the ones that are seen here.
func here(f *Facts, _ *Plan) []Finding {
	if f.Engine.Elsewhere == "" {
		return nil
	}
	return with(one(Error, "engine.remote", "the engine at "+f.Engine.Host+
		" doesn't run on this machine, or in another root",
		"run this program where the engine runs, and with its socket (--host unix:///var/run/docker.sock)"),
		f.Engine.Elsewhere)
}

// version applies what an engine takes by its version.
func version(f *Facts, p *Plan) []Finding {
	e := f.Engine
	if e.silent() {
		return nil
	}
	if e.Product != "Engine" && e.Product != "" {
		return one(Error, "engine.product",
			fmt.Sprintf("this is not Docker's engine but %s %s, which has no storage-driver plugins", e.Product,
				e.Version),
			"run Docker's engine, 17.06 to 26.1, and name its socket with --host")
	}
	const id = "engine.version"
	switch what := "engine " + e.Version; takes(e) {
	case tooOld:
		return one(Error, id, what+" is too old: storage-driver plugins that the engine manages came with 17.06",
			"run engine 17.06 to 26.1")
	case none:
		remedy := "\"cvmfs-graphdriver install\" sets up the snapshotter, which is the way from 28 on"
		if f.File.Driver != "" && tagged(f.File.Driver) == tagged(p.Name) {
			remedy = "\"cvmfs-graphdriver install --migrate\" takes the plugin out of " + f.File.Path +
				", sets up the snapshotter, and pulls what containers were made of"
		}
		return one(Error, id, what+
			" has no storage-driver plugins: they were removed in 28.0, and an engine that is configured to use one does not start",
			remedy)
	case withVariable:
		return variable(f, p)
	case unknown:
		return one(Error, id, fmt.Sprintf("the engine reports neither its version (%q) nor that of its API (%q)", e.Version,
			e.API), "run engine 17.06 to 26.1")
	default:
		return append(one(OK, id, what+" takes storage-driver plugins", ""), experimental(f, p)...)
	}
}

// variable applies the rule of engine 27.
func variable(f *Facts, p *Plan) []Finding {
	const id = "engine.variable"
	what := fmt.Sprintf("engine %s takes storage-driver plugins only with %s=1 in its environment", f.Engine.Version,
		service.PluginVariable)
	var found []Finding
	byUnit := f.Service.Manager == "systemd" && (p.Restart == "" || p.Restart == "auto" ||
		strings.HasPrefix(p.Restart, "systemd"))
	switch {
	case f.Service.Variable || f.Engine.Active(p.Name):
		found = one(OK, id, fmt.Sprintf("engine %s takes storage-driver plugins: %s is in its environment",
			f.Engine.Version, service.PluginVariable), "")
	case byUnit && p.Install:
		found = one(Note, id, what+": a drop-in of its systemd unit will set it", "")
	case byUnit:
		found = one(Warning, id, what, "\"cvmfs-graphdriver install\" writes a drop-in of its systemd unit")
	case p.Install:
		found = one(Error, id, what+", and it isn't restarted by systemd, where a drop-in would set it",
			fmt.Sprintf("set %s=1 where the engine is started, for instance in /etc/default/docker, and restart it",
				service.PluginVariable))
	default:
		found = one(Warning, id, what, fmt.Sprintf("set %s=1 where the engine is started, and restart it",
			service.PluginVariable))
	}
	return append(found, experimental(f, p)...)
}

func experimental(f *Facts, p *Plan) []Finding {
	const id = "engine.experimental"
	switch {
	case f.Engine.Experimental:
		return one(OK, id, "the engine has its experimental features on, which storage-driver plugins need", "")
	case p.Install:
		return one(Note, id, "storage-driver plugins need the engine's experimental features: they will be turned on",
			"")
	}
	return one(Note, id, "storage-driver plugins need the engine's experimental features, which are off",
		"\"cvmfs-graphdriver install\" turns them on")
}

// What engines take.
type taken int

const (
	unknown      taken = iota
	tooOld             // nothing
	plugins            // storage-driver plugins, with experimental features on
	withVariable       // the same, with [service.PluginVariable] besides
	none               // nothing any more
)

// takes judges an engine by its version, or where that is none, as of a build of a developer's, by its API's.
func takes(e Engine) taken {
	if v := number(e.Version); v > 0 {
		return band(v, firstWithPlugins, firstWithVariable, firstWithout)
	}
	if v := number(e.API); v > 0 {
		return band(v, firstWithPluginsAPI, firstWithVariableAPI, firstWithoutAPI)
	}
	return unknown
}

func band(v, first, variable, without int) taken {
	switch {
	case v < first:
		return tooOld
	case v < variable:
		return plugins
	case v < without:
		return withVariable
	}
	return none
}

var leading = regexp.MustCompile(`^v?([0-9]{1,4})\.([0-9]{1,2})\b`)

// number reads the beginning of a version, as in 20.10.24+dfsg1 or 19.03.13-ce: major times 100 plus minor, or 0.
func number(version string) int {
	m := leading.FindStringSubmatch(version)
	if m == nil {
		return 0
	}
	major, _ := strconv.Atoi(m[1]) // digits, and few
	minor, _ := strconv.Atoi(m[2])
	if major == 0 { // 0.0.0-dev
		return 0
	}
	return major*100 + minor
}

func rootless(f *Facts, _ *Plan) []Finding {
	if !f.Engine.Rootless {
		return nil
	}
	return one(Error, "engine.rootless",
		"the engine runs rootless: the plugin mounts file systems of the kernel's, which takes root on the host",
		"run an engine as root; it can do so beside the rootless one, with a socket and a data folder of its own")
}

// remapped refuses user namespaces of an engine that has storage drivers of its own for them.
func remapped(f *Facts, _ *Plan) []Finding {
	if !f.Engine.UserNS {
		return nil
	}
	if number(f.Engine.Version) < firstWithoutRemapped {
		return one(Warning, "engine.userns-remap", "userns-remap is on: this engine changes the owner of every file of an image "+
			"when a container is made, and so fetches the whole image", "turn userns-remap off for thin images")
	}
	return one(Error, "engine.userns-remap", "userns-remap is on, with which this engine uses no snapshotter",
		"take userns-remap out of daemon.json")
}

// imageStore refuses the containerd image store of an engine that has storage drivers otherwise.
func imageStore(f *Facts, _ *Plan) []Finding {
	if t := takes(f.Engine); t != plugins && t != withVariable {
		return nil
	}
	const id, remedy = "engine.image-store",
		"set \"features\": {\"containerd-snapshotter\": false} in daemon.json and restart the engine; its images come back when it is set again"
	for _, s := range f.Engine.DriverStatus {
		if s[0] == "driver-type" && s[1] == "io.containerd.snapshotter.v1" {
			return one(Error, id, "the engine keeps its images in containerd, where storage drivers have no part",
				remedy)
		}
	}
	if f.File.Store {
		return one(Error, id, "the engine keeps its images in containerd from its next start on, where storage drivers have no part: "+f.File.Path+" says so", remedy)
	}
	return nil
}

// flags refuses command line flags that contradict what is written to daemon.json, and options of another driver's: the
// engine would not start.
func flags(f *Facts, p *Plan) []Finding {
	if !p.Install || f.Engine.silent() {
		return nil
	}
	have := len(daemonjson.DriverOptions(f.File.Options, p.StorageOpts)) > 0
	written := map[string]bool{
		"storage-driver": true, "experimental": true, "storage-opt": have, "data-root": p.DataRoot != "",
		"graph": p.DataRoot != "", "debug": p.Debug,
	}
	where := "take it out of where the engine is started"
	if f.Service.Manager == "systemd" {
		where = "take it out of its unit (systemctl edit --full docker) or of the file of options the unit reads"
	}
	const id = "engine.flag"
	var found []Finding
	for _, name := range slices.Sorted(maps.Keys(f.Service.Flags)) {
		if written[name] {
			found = append(found,
				one(Error, id, fmt.Sprintf("the engine is started with --%s, and does not start with the same in daemon.json", name), where)...)
			found = with(found, fmt.Sprintf("--%s=%s", name, f.Service.Flags[name]))
		}
	}
	for option := range strings.FieldsSeq(f.Service.Flags["storage-opt"]) {
		if err := options.Check(option); err != nil {
			found = append(found,
				one(Error, id, "the engine is started with --storage-opt "+option+
					", and would not start with it on this driver", where)...)
			found = with(found, err.Error())
		}
	}
	return found
}

// file reports what the engine would refuse of daemon.json.
func file(f *Facts, _ *Plan) []Finding {
	const id = "daemon-json"
	if f.File.Err != "" {
		return with(one(Error, id, "the engine's configuration can't be read: "+f.File.Path,
			"make it a regular file that root can read"), f.File.Err)
	}
	var found []Finding
	for _, problem := range f.File.Problems {
		remedy := "correct the file by hand"
		if problem.Fixable {
			remedy = "correct the file by hand, or give --fix to \"cvmfs-graphdriver install\", which leaves comments and trailing commas out"
		}
		found = append(found, one(Error, id, fmt.Sprintf("the engine refuses %s, line %d, column %d: %s", f.File.Path,
			problem.Line, problem.Column, problem.Text), remedy)...)
	}
	return found
}

// storageOptions tells of those that are lost, and refuses those the driver doesn't take: the engine would not
// start.
func storageOptions(f *Facts, p *Plan) []Finding {
	if !p.Install {
		return nil
	}
	const id = "engine.storage-opts"
	var found []Finding
	for _, option := range p.StorageOpts {
		err := options.Check(option)
		if daemonjson.TakesBack(option) {
			err = nil
		}
		if err != nil {
			found = append(found, one(Error, id, err.Error()+"; the engine would not start with it",
				"correct --storage-opt")...)
		}
	}
	for _, option := range daemonjson.DriverOptions(f.File.Options, p.StorageOpts) {
		if err := options.Check(option); err != nil && !slices.Contains(p.StorageOpts, option) {
			found = append(found,
				one(Error, id, fmt.Sprintf("%v; it is in %s, and the engine would not start with it", err,
					f.File.Path),
					"take it out with --storage-opt "+options.Name(option)+"=")...)
		}
	}
	if becomes(f, p) && len(f.File.Options) > 0 {
		found = append(found, one(Note, id, "the storage options of the driver "+f.Engine.Driver+
			" are left out while this driver is used", "")...)
		found = with(found, strings.Join(f.File.Options, " "))
	}
	return found
}

// driver reports which storage driver is in use, where none is to be installed.
func driver(f *Facts, p *Plan) []Finding {
	const id = "engine.driver"
	switch e := f.Engine; {
	case e.silent():
		return nil
	case e.Active(p.Name):
		return one(OK, id, "the engine's storage driver is "+e.Driver, "")
	case p.Install:
		return one(Note, id, fmt.Sprintf("the engine's storage driver becomes %s; it is %s", p.Name, e.Driver), "")
	}
	return one(Warning, id, fmt.Sprintf("the engine's storage driver is %s, not %s: thin images don't run",
		f.Engine.Driver, p.Name), "run \"cvmfs-graphdriver install\"")
}

// containers tells of containers that stop.
func containers(f *Facts, p *Plan) []Finding {
	if !becomes(f, p) || len(f.Engine.Running) == 0 || f.Engine.LiveRestore {
		return nil
	}
	return with(one(Warning, "engine.containers",
		fmt.Sprintf("the engine is restarted: %s, and not started again under the new driver",
			several(len(f.Engine.Running), "running container is stopped", "running containers are stopped")),
		"end them in good time, and commit and push what is to go on; if the installation fails, they are started again, those that were run with --rm aside"),
		some(f.Engine.Running))
}

// images tells of images and containers that are not shown any more.
func images(f *Facts, p *Plan) []Finding {
	e := f.Engine
	if !becomes(f, p) || e.Images+e.Containers == 0 {
		return nil
	}
	return one(Warning, "engine.images",
		fmt.Sprintf("%s and %s belong to the driver %s and are not shown under the new one",
			several(e.Images, "image", "images"), several(e.Containers, "container", "containers"), e.Driver),
		"nothing is lost: they come back with \"cvmfs-graphdriver uninstall\"; pull under the new driver what is needed there")
}

// moves reports what it means that the engine gets another data folder.
func moves(f *Facts, p *Plan) []Finding {
	root := f.Engine.Root
	if f.Engine.UserNS {
		root = filepath.Dir(root) // <data-root>/<uid>.<gid>
	}
	if !p.Install || p.DataRoot == "" || root == "" || filepath.Clean(p.DataRoot) == root {
		return nil
	}
	if f.Plugin.Present {
		return one(Error, "engine.data-root",
			fmt.Sprintf("the plugin %s lies in the engine's data folder %s, with its images, and can't go to another one", p.Name, root),
			"leave --data-root out; or first run \"cvmfs-graphdriver uninstall --purge\", which removes the plugin and its images")
	}
	return one(Warning, "engine.data-root",
		fmt.Sprintf("the engine's data folder becomes %s: images, containers, volumes, networks and plugins in %s are left behind", p.DataRoot, root),
		"nothing is lost: they come back with \"cvmfs-graphdriver uninstall\"; leave --data-root out to keep them")
}

func swarm(f *Facts, p *Plan) []Finding {
	if !becomes(f, p) || f.Engine.Swarm == "" {
		return nil
	}
	remedy := "drain the node first, on a manager: docker node update --availability drain NODE; make it active again afterwards"
	if f.Engine.Swarm == "manager" {
		remedy += ". It is a manager: see that the others make a quorum without it"
	}
	return one(Warning, "engine.swarm", "this is a "+f.Engine.Swarm+
		" of a swarm: its tasks are lost at the restart, and the swarm starts them elsewhere", remedy)
}

// liveRestore refuses a restart that containers would live through: the engine passes over those of another driver
// (daemon.restore), so that they run on without it, unlisted and not to be stopped, until the driver is theirs again.
func liveRestore(f *Facts, p *Plan) []Finding {
	e := f.Engine
	if !becomes(f, p) || !e.LiveRestore {
		return nil
	}
	const id = "engine.live-restore"
	if len(e.Running) == 0 {
		return one(Note, id, "live-restore is on: it works with this driver where the machine's mounts are shared, as systemd has them", "")
	}
	return with(one(Error, id, fmt.Sprintf("live-restore is on: %s on while the engine changes its driver, and the engine doesn't know them any more",
		several(len(e.Running), "running container goes", "running containers go")),
		"stop them first (docker stop), or turn live-restore off"), some(e.Running))
}

// several spells a number of things.
func several(n int, singular, plural string) string {
	if n == 1 {
		return "1 " + singular
	}
	return strconv.Itoa(n) + " " + plural
}

// some names the first of many.
func some(names []string) string {
	const most = 10
	if len(names) > most {
		return strings.Join(names[:most], " ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, " ")
}

// tagged is a plugin's name as the engine compares it.
func tagged(name string) string {
	if name == "" || strings.Contains(name[strings.LastIndexByte(name, '/')+1:], ":") {
		return name
	}
	return name + ":latest"
}
