package policy

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/rootfs"
)

// Node returns a client of the node that runs on this host: the one whose socket is named, or the engine's plugin.
func (h *Host) Node(ctx context.Context) (*control.Client, error) {
	if h.Socket != "" {
		return control.NewClient(h.Socket), nil
	}
	if !strings.HasPrefix(h.Address(), "unix://") {
		return nil, usagef("the engine at %s is not this host's: run this where it runs, or name the node's --socket",
			h.Address())
	}
	name, err := h.pluginName(ctx)
	if err != nil {
		return nil, err
	}
	plugin, _, err := h.Engine.Client().PluginInspectWithRaw(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		return nil, fmt.Errorf("the engine has no plugin %s (\"cvmfs-graphdriver install\" brings it; --name names another)",
			name)
	case err != nil:
		return nil, fmt.Errorf("find the plugin %s: %w", name, err)
	case strings.Join(plugin.Config.Entrypoint, " ") != rootfs.Program:
		return nil, fmt.Errorf("the plugin %s is not this project's: name another one with --name", name)
	case !plugin.Enabled:
		return nil, fmt.Errorf("the plugin %s isn't enabled: nothing of it runs (\"docker plugin enable %s\")", name,
			cmp.Or(plugin.Name, name))
	}
	pid := 0
	if h.process != nil {
		pid = h.process.PID
	}
	return control.NewClient(preflight.PluginSocket(pid, plugin.ID)), nil
}
