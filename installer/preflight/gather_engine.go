package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/internal/hostfs"
	"cvmfs-graphdriver/rootfs"
)

// Dial makes a client of an engine: of host, or where that is "" of $DOCKER_HOST or the default socket. It makes no
// connection.
func Dial(host string) (*client.Client, error) {
	options := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	if host != "" {
		options = append(options, client.WithHost(host))
	}
	c, err := client.NewClientWithOpts(options...)
	if err != nil {
		return nil, fmt.Errorf("engine at %s: %w", hideUser(host), err)
	}
	return c, nil
}

// hideUser leaves user name and password out of an address.
func hideUser(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return address
	}
	u.User = nil
	return u.String()
}

// askEngine asks the engine for what it tells of itself and of the plugin.
func askEngine(ctx context.Context, p Plan) (e Engine, g Plugin) {
	g.Name = p.Name
	c, err := Dial(p.Host)
	if err != nil {
		return Engine{Host: hideUser(p.Host), Err: err.Error()}, g
	}
	defer c.Close()
	e.Host = hideUser(c.DaemonHost())
	if !strings.HasPrefix(e.Host, "unix://") {
		return e, g // elsewhere
	}
	asking, cancel := context.WithTimeout(ctx, askWait)
	v, err := c.ServerVersion(asking)
	cancel()
	if err == nil && v.Version == "" && v.APIVersion == "" {
		err = errors.New("it answers, but reports no version: it may not be a Docker engine")
	}
	if err != nil {
		e.Err, e.Denied = err.Error(), errors.Is(err, fs.ErrPermission)
		return e, g
	}
	e.Version, e.API, e.Product = v.Version, v.APIVersion, product(v)
	ctx, cancel = context.WithTimeout(ctx, infoWait)
	defer cancel()
	info, err := c.Info(ctx)
	if err != nil {
		e.Err = err.Error()
		return e, g
	}
	e.take(info)
	if running, err := c.ContainerList(ctx, container.ListOptions{}); err == nil { // else their number is known
		e.Running = nil
		for _, r := range running {
			e.Running = append(e.Running, nameOf(r))
		}
	}
	if e.Active(p.Name) {
		if named, err := Names(ctx, c); err == nil { // else images are told by their keys
			g.names = named
		}
	}
	found, _, err := c.PluginInspectWithRaw(ctx, p.Name)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		g.Err = err.Error()
	default:
		g.take(found, e.Root)
	}
	return e, g
}

func nameOf(r container.Summary) string {
	if len(r.Names) > 0 {
		return strings.TrimPrefix(r.Names[0], "/")
	}
	return r.ID[:min(12, len(r.ID))]
}

// product is the name of what speaks the engine's API. Docker's engine calls itself Engine, and old ones nothing.
func product(v types.Version) string {
	for _, c := range v.Components {
		if strings.Contains(strings.ToLower(c.Name), "engine") {
			return c.Name
		}
	}
	return ""
}

// take keeps what matters of the engine's state.
func (e *Engine) take(info system.Info) {
	e.OS, e.Driver, e.DriverStatus, e.Root = info.OperatingSystem, info.Driver, info.DriverStatus, info.DockerRootDir
	e.Experimental, e.LiveRestore = info.ExperimentalBuild, info.LiveRestoreEnabled
	e.Images, e.Containers = info.Images, info.Containers
	for i := range info.ContainersRunning {
		e.Running = append(e.Running, fmt.Sprintf("#%d", i+1)) // until their names are known
	}
	for _, option := range info.SecurityOptions {
		switch name, _, _ := strings.Cut(strings.TrimPrefix(option, "name="), ","); name {
		case "rootless":
			e.Rootless = true
		case "userns":
			e.UserNS = true
		case "selinux":
			e.Labels = true
		}
	}
	if state := info.Swarm.LocalNodeState; state != "" && state != "inactive" {
		e.Swarm = "worker"
		if info.Swarm.ControlAvailable {
			e.Swarm = "manager"
		}
	}
}

// take keeps what matters of a plugin.
func (g *Plugin) take(found *types.Plugin, root string) {
	g.ID, g.Present, g.Enabled = found.ID, true, found.Enabled
	g.Ours = len(found.Config.Entrypoint) > 0 && found.Config.Entrypoint[0] == rootfs.Program
	g.Dir = filepath.Join(root, "plugins", found.ID)
	g.Settings = map[string]string{}
	for _, m := range found.Settings.Mounts {
		if m.Source != nil {
			g.Settings[m.Name] = *m.Source
		}
	}
	for _, env := range found.Settings.Env {
		name, value, _ := strings.Cut(env, "=")
		g.Settings[name] = value
	}
}

// elsewhere tells why an engine's files are not those that are seen here, or "".
func elsewhere(e Engine, pid int) string {
	switch {
	case e.Host != "" && !strings.HasPrefix(e.Host, "unix://"):
		return "its address is no socket of this machine's"
	case e.OS == "Docker Desktop":
		return "Docker Desktop runs it in a virtual machine"
	case e.Err != "" || e.Root == "":
		return ""
	}
	return dissent(e.Root, pid)
}

// dissent reports how the engine's data folder, as seen here, differs from what the engine sees, or "".
func dissent(root string, pid int) string {
	why, ok := within(lookWait, func() string {
		here, err := os.Stat(root)
		if errors.Is(err, fs.ErrNotExist) {
			return "its data folder " + root + " is not here"
		}
		if err != nil || pid == 0 {
			return "" // the folder is judged later on
		}
		there, err := os.Stat(filepath.Join(rootOf(pid), root))
		if err == nil && !os.SameFile(here, there) {
			return "its data folder " + root + " is another one than here"
		}
		return ""
	})
	if !ok {
		return ""
	}
	return why
}

// rootOf is the root folder of a process, as it is seen from here.
func rootOf(pid int) string {
	if pid == 0 {
		return "/"
	}
	return fmt.Sprintf("/proc/%d/root", pid)
}

// look adds what the plugin's files and the plugin itself tell.
func (g *Plugin) look(ctx context.Context, e Engine, pid int) {
	if e.UserNS {
		for _, dir := range []string{filepath.Dir(g.Dir), g.Dir} {
			if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
				g.Barred = append(g.Barred, dir)
			}
		}
	}
	if !g.Ours {
		return
	}
	if disk, ok := within(2*countWait,
		func() Disk { return count(filepath.Join(g.Dir, "propagated-mount", "store", "objects")) }); ok {
		g.Disk = &disk
	}
	if g.Enabled {
		g.State = askNode(ctx, PluginSocket(pid, g.ID))
		g.State.name(g.names)
		g.State.Unseen = unseen(pid, filepath.Join(g.Dir, "propagated-mount"), g.State.PeerGroup)
	}
}

// unseen reports whether an engine doesn't see what a plugin mounts in the folder that they share. Of a plugin that
// doesn't tell, and where it can't be found out, it is false.
func unseen(pid int, dir, group string) bool {
	if group == "" {
		return false
	}
	seen, err := hostfs.HasPeer(pid, dir, group)
	return err == nil && !seen
}

// count counts the objects in the store, for a time.
func count(dir string) Disk {
	d := Disk{Whole: true}
	end := time.Now().Add(countWait)
	// What can't be read counts as nothing: objects come and go.
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if time.Now().After(end) {
			d.Whole = false
			return fs.SkipAll
		}
		if err != nil || !entry.Type().IsRegular() {
			return nil // nothing
		}
		if info, err := entry.Info(); err == nil {
			d.Objects++
			d.Bytes += info.Size()
		}
		return nil
	})
	return d
}

// askNode asks a node for its state, at its socket.
func askNode(ctx context.Context, socket string) *State {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	answer, err := control.Status.Ask(ctx, control.NewClient(socket), control.None{})
	if err != nil {
		return &State{Err: err.Error()}
	}
	return stateOf(answer)
}

// name adds what the engine calls images.
func (s *State) name(names map[string]*Named) {
	for n := range s.Images {
		if named := names[s.Images[n].Key]; named != nil {
			s.Images[n].Names, s.Images[n].Containers, s.Images[n].Local = named.Images, named.Containers, named.Local
		}
	}
}

// nameImages adds names of images, by their keys.
func (s *State) nameImages(names map[string][]string) {
	for n := range s.Images {
		s.Images[n].Names = names[s.Images[n].Key]
	}
}

// PluginSocket is where an enabled plugin answers the engine and commands, seen from here; pid is the engine's, 0 where
// it isn't known.
func PluginSocket(pid int, id string) string {
	return filepath.Join(rootOf(pid), "run/docker/plugins", id, rootfs.PluginConfig(rootfs.Build{}).Interface.Socket)
}

// stateOf is what matters here of a node's state.
func stateOf(answer status.Node) *State {
	s := &State{
		Version: answer.Version, Commit: answer.Commit, Err: answer.Err, Memory: answer.Memory.Resident,
		Layers: answer.Store.Layers, Thin: answer.Store.Thin, Mounts: len(answer.Store.Mounts), Images: []Image{},
		View: answer.View, Cache: answer.Cache, PeerGroup: answer.PeerGroup,
	}
	for _, r := range answer.Repositories {
		s.Repositories = append(s.Repositories, InUse{Repository: r})
	}
	if answer.Metrics != nil {
		s.Metrics = (*Metrics)(answer.Metrics)
	}
	for _, m := range answer.Store.Mounts {
		if m.Stale {
			s.Stale++
		}
	}
	for _, i := range answer.Store.Images {
		image := Image{Key: i.Key, Objects: i.Objects, Size: i.Size, Err: i.Err, Repositories: map[string]uint64{}}
		if i.Local != nil && i.Size > 0 {
			image.Local = fmt.Sprintf("about %d of %d objects, %.1f of %.1f MB", i.Local.Objects, i.Objects,
				float64(i.Local.Bytes)/1e6, float64(i.Size)/1e6)
		}
		for _, pin := range i.Layers {
			image.Repositories[pin.FQRN] = max(image.Repositories[pin.FQRN], pin.Revision)
		}
		s.Images = append(s.Images, image)
	}
	return s
}
