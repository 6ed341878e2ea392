package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/containerd/errdefs"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/status"
	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/rootfs"
)

// Node is a node that runs on this host, behind the engine's plugin or behind the snapshotter.
type Node struct {
	*control.Client
	Title string // what it is, for people
	host  *Host
}

// Nodes returns those that run on this host: the one whose socket is named, or the snapshotter's and that of the
// engine's plugin, as far as they are there. One at least is, or there is an error.
func (h *Host) Nodes(ctx context.Context) ([]Node, error) {
	if h.Socket != "" {
		return []Node{{control.NewClient(h.Socket), "the node at " + h.Socket, h}}, nil
	}
	var nodes []Node
	socket := h.nodeSocket()
	if client := control.NewClient(socket); preflight.Answers(ctx, client) {
		nodes = append(nodes, Node{client, "the snapshotter at " + socket, h})
	}
	plugin, err := h.pluginNode(ctx)
	switch {
	case err == nil:
		return append(nodes, plugin), nil
	case len(nodes) > 0 && !errors.As(err, new(UsageError)):
		return nodes, nil
	}
	return nil, err
}

// pluginNode returns the node of the engine's plugin.
func (h *Host) pluginNode(ctx context.Context) (Node, error) {
	if !strings.HasPrefix(h.Address(), "unix://") {
		return Node{}, usagef("the engine at %s is not this host's: run this where it runs, or name the node's --socket",
			h.Address())
	}
	name, err := h.pluginName(ctx)
	if err != nil {
		return Node{}, err
	}
	plugin, _, err := h.Engine.Client().PluginInspectWithRaw(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		return Node{}, fmt.Errorf("the engine has no plugin %s (\"cvmfs-graphdriver install\" brings it; --name names "+
			"another), and no snapshotter answers at %s (--socket names another)", name,
			h.nodeSocket())
	case err != nil:
		return Node{}, fmt.Errorf("find the plugin %s: %w", name, err)
	case strings.Join(plugin.Config.Entrypoint, " ") != rootfs.Program:
		return Node{}, fmt.Errorf("the plugin %s is not this project's: name another one with --name", name)
	case !plugin.Enabled:
		return Node{}, fmt.Errorf("the plugin %s isn't enabled: nothing of it runs (\"docker plugin enable %s\")", name,
			cmp.Or(plugin.Name, name))
	}
	pid := 0
	if h.process != nil {
		pid = h.process.PID
	}
	return Node{control.NewClient(preflight.PluginSocket(pid, plugin.ID)), "the plugin " + name, h}, nil
}

// EngineNode returns the node that keeps the images of this host's engine: that of the plugin that is the engine's
// storage driver, or the snapshotter's.
func (h *Host) EngineNode(ctx context.Context) (Node, error) {
	info, err := h.Engine.Client().Info(ctx)
	if err != nil {
		return Node{}, fmt.Errorf("ask the engine what it runs on, which has to be Docker's: %w", err)
	}
	if info.Driver == installer.SnapshotterName {
		socket := cmp.Or(h.Socket, h.nodeSocket())
		return Node{control.NewClient(socket), "the snapshotter at " + socket, h}, nil
	}
	_, _, err = h.Engine.Client().PluginInspectWithRaw(ctx, info.Driver)
	if errdefs.IsNotFound(err) {
		return Node{}, fmt.Errorf("the engine at %s keeps its images with %s, so it runs no thin ones: "+
			"\"cvmfs-graphdriver install\" has it run them", h.Address(), info.Driver)
	}
	plugin := *h
	plugin.Name = info.Driver
	return plugin.pluginNode(ctx)
}

// State asks the node what it has, and what it has done.
func (n Node) State(ctx context.Context) (status.Node, error) {
	return control.Status.Ask(ctx, n.Client, control.None{})
}

// ImageNames returns the engine's names of images, by the key of the composed image; those there are also where there
// is an error. A node behind containerd asks for them itself.
func (n Node) ImageNames(ctx context.Context) (map[string][]string, error) {
	told, err := control.Names.Do(ctx, n.Client, control.None{}, nil)
	switch {
	case errors.Is(err, control.ErrUnknown) || err == nil && !told.Known:
		return n.host.imageNames(ctx)
	case err != nil:
		return nil, err
	}
	names := preflight.NamesByKey(told)
	if told.Err != "" {
		return names, errors.New(told.Err)
	}
	return names, nil
}

// ImageKey returns the key of the composed image of one that the engine knows by a name or an id; fs.ErrNotExist if it
// knows none. A key is taken as it is, unless the engine has an image of that id.
func (n Node) ImageKey(ctx context.Context, image string) (string, error) {
	told, err := control.Names.Do(ctx, n.Client, control.None{}, nil)
	switch {
	case errors.Is(err, control.ErrUnknown) || err == nil && !told.Known:
		return n.host.imageKey(ctx, image)
	case err != nil:
		return "", err
	}
	keys := preflight.KeysOf(told, image)
	switch {
	case len(keys) == 1:
		return keys[0], nil
	case len(keys) > 1:
		return "", fmt.Errorf("%s is the name of %d composed images: give the key of one, which \"cache ls --json\" "+
			"shows: %s", image, len(keys), strings.Join(keys, ", "))
	case isKey.MatchString(image):
		return image, nil
	case told.Err != "":
		return "", errors.New(told.Err)
	}
	return "", fmt.Errorf("containerd has no thin image %s in use of %s: pull it: %w", image, n.Title, fs.ErrNotExist)
}
