package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Containerd is a containerd of the engine's own, in whose image store the engine's images lie. It runs where the
// engine does, and is started before it. Containers outlive it.
type Containerd struct {
	*Service
	engine *Engine
}

// Snapshotter is one that runs by itself, as a containerd is told of it.
type Snapshotter struct {
	Name, Socket string
	Root         string   // folder that holds its snapshots
	Capabilities []string // as containerd names them
	Diff         bool     // it also compares and applies layers
}

func newContainerd(e *Engine) *Containerd {
	c := &Containerd{engine: e}
	c.Service = e.Service("containerd", e.tools.containerd, "--config", c.ConfigFile(), "--address", c.Socket(),
		"--root", c.Root(), "--state", e.path("containerd/state"))
	return c
}

// Socket is the path of the socket that containerd listens on. It is short: another one's name is this and ".ttrpc".
func (c *Containerd) Socket() string { return c.engine.path("c.sock") }

// ConfigFile is containerd's configuration, of the engine's own.
func (c *Containerd) ConfigFile() string { return c.engine.path("containerd.toml") }

// Root is the folder of what containerd keeps.
func (c *Containerd) Root() string { return c.engine.path("containerd/root") }

// Start starts containerd with the configuration that is there, and an empty one if there is none, and waits until it
// answers.
func (c *Containerd) Start(ctx context.Context) error {
	f, err := os.OpenFile(c.ConfigFile(), os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	f.Close()
	return c.Service.Start(ctx, func(ctx context.Context) error {
		_, err := c.engine.Ctr(ctx, "version")
		return err
	})
}

// Configure writes a configuration in which a snapshotter is the one of Kubernetes' runtime interface and known to
// pulls; one without a socket is built in. Containers without an image of their own, which hold the namespaces of pods,
// have the image named pause.
func (c *Containerd) Configure(ctx context.Context, s Snapshotter, pause string) error {
	version, err := c.Version(ctx)
	if err != nil {
		return err
	}
	// The root of a user namespace passes to what is below, which containerd itself would make for root alone.
	if err := os.MkdirAll(filepath.Dir(c.Root()), 0o711); err != nil {
		return err
	}
	if err := makeNetwork(c.network()); err != nil {
		return err
	}
	text := containerdConfig(version, s, pause, c.network())
	return os.WriteFile(c.ConfigFile(), []byte(text), 0o644)
}

// network is the folder of what connects pods that have a network of their own.
func (c *Containerd) network() string { return c.engine.path("cni") }

// noNetwork is a plugin of the Container Network Interface that connects a pod to nothing, and says that it did.
const noNetwork = `#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}' ;;
ADD) echo '{"cniVersion": "0.4.0", "interfaces": [{"name": "'"$CNI_IFNAME"'", "sandbox": "'"$CNI_NETNS"'"}],
	"ips": [{"version": "4", "interface": 0, "address": "192.0.2.2/24"}]}' ;;
esac
`

// makeNetwork makes the network of pods, below a folder: its configuration, and the plugins that it names.
func makeNetwork(dir string) error {
	const config = `{"cniVersion": "0.4.0", "name": "unconnected", "plugins": [{"type": "none"}]}`
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "none.conflist"), []byte(config), 0o644),
		os.WriteFile(filepath.Join(dir, "none"), []byte(noNetwork), 0o755),
		os.WriteFile(filepath.Join(dir, "loopback"), []byte(noNetwork), 0o755))
}

// Version is containerd's, as in "2.1.9".
func (c *Containerd) Version(ctx context.Context) (string, error) {
	// containerd github.com/containerd/containerd 2.1.9~ds1 2.1.9~ds1-5
	out, err := output(ctx, "containerd --version", c.engine.inside(ctx, c.engine.tools.containerd, "--version"))
	fields := strings.Fields(out)
	if err == nil && len(fields) < 3 {
		err = fmt.Errorf("it says %q", out)
	}
	if err != nil {
		return "", fmt.Errorf("ask containerd for its version: %w", err)
	}
	return strings.TrimPrefix(fields[2], "v"), nil
}

// containerdConfig returns the configuration of a containerd by its version. Its own limits of processes, which it may
// lack the capability to lower, are kept by containers of Kubernetes.
func containerdConfig(version string, s Snapshotter, pause, network string) string {
	var b strings.Builder
	old := strings.HasPrefix(version, "1.")
	if old {
		fmt.Fprintf(&b, `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[2]q
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = %[1]q
  disable_snapshot_annotations = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = %[3]q
  conf_dir = %[3]q
`, s.Name, pause, network)
	} else {
		fmt.Fprintf(&b, `version = 3
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dir = %[3]q
  conf_dir = %[3]q
[plugins."io.containerd.cri.v1.images"]
  snapshotter = %[1]q
  disable_snapshot_annotations = false
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %[2]q
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = %[1]q
`, s.Name, pause, network)
	}
	if s.Socket == "" {
		return b.String()
	}
	fmt.Fprintf(&b, `[proxy_plugins.%[1]s]
  type = "snapshot"
  address = %[2]q
  capabilities = [%[4]s]
[proxy_plugins.%[1]s.exports]
  root = %[3]q
  enable_remote_snapshot_annotations = "true"
`, s.Name, s.Socket, s.Root, quoted(s.Capabilities))
	if s.Diff {
		fmt.Fprintf(&b, `[proxy_plugins.%[1]s-diff]
  type = "diff"
  address = %[2]q
[plugins."io.containerd.service.v1.diff-service"]
  default = ["%[1]s-diff", "walking"]
`, s.Name, s.Socket)
	}
	return b.String()
}

func quoted(words []string) string {
	var quoted []string
	for _, w := range words {
		quoted = append(quoted, fmt.Sprintf("%q", w))
	}
	return strings.Join(quoted, ", ")
}

// Ctr runs containerd's own client, where containerd runs, and gives what it prints to its standard output.
func (e *Engine) Ctr(ctx context.Context, args ...string) (string, error) {
	ctr := filepath.Join(filepath.Dir(e.tools.containerd), "ctr")
	return output(ctx, "ctr "+strings.Join(args, " "),
		e.inside(ctx, append([]string{ctr, "--address", e.Containerd.Socket()}, args...)...))
}

// Crictl runs a client of Kubernetes' runtime interface as [Engine.Ctr] does.
func (e *Engine) Crictl(ctx context.Context, args ...string) (string, error) {
	socket := "unix://" + e.Containerd.Socket()
	return output(ctx, "crictl "+strings.Join(args, " "), e.inside(ctx, append([]string{
		e.tools.crictl, "--runtime-endpoint", socket, "--image-endpoint", socket, "--timeout", "60s",
	}, args...)...))
}
