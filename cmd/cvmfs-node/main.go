// Command cvmfs-node puts the snapshotter on a node of Kubernetes, from the pod of a DaemonSet: see
// installer/kubernetes.
//
// Its command "pod" runs in the pod, "ready" is the pod's probe, and "apply" is what systemd runs on the host.
package main

import (
	"context"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer/kubernetes"
	"cvmfs-graphdriver/internal/program"
)

// Set by the linker: -X main.version=… -X main.commit=….
var (
	version = "development"
	commit  = "unknown"
)

func main() { program.Main(run) }

// done is the file, in the pod alone, that says that the node is as it is to be.
const done = "/tmp/cvmfs-node.done"

// run is the program without its process: it gives the exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	shared := &cli.StringFlag{
		Name: "shared", Value: "/opt/cvmfs-snapshotter", Usage: "`FOLDER` of the host for programs and settings",
	}
	settings := &cli.StringFlag{Name: "settings", Value: "/settings/node.yaml", Usage: "read settings from `FILE`"}
	return program.Run(ctx, &cli.App{
		Name: kubernetes.Program, Usage: "puts the snapshotter of thin images on a node of Kubernetes",
		Commands: []*cli.Command{
			{
				Name: "pod", Usage: "bring this pod's node to what the settings say, and stay",
				Flags: []cli.Flag{
					shared, settings,
					&cli.StringFlag{Name: "image", Value: "/", Usage: "`FOLDER` with the programs"},
				},
				Action: func(c *cli.Context) error { return pod(c, out) },
			},
			{
				Name: "ready", Usage: "tell whether the node is as the settings say", Flags: []cli.Flag{settings},
				Action: func(c *cli.Context) error {
					if _, err := os.Stat(done); err != nil {
						return err
					}
					return kubernetes.Ready(c.Context, c.String("settings"))
				},
			},
			{
				Name: "apply", Usage: "bring this host to what the settings in the shared folder say", Flags: []cli.Flag{shared},
				Action: func(c *cli.Context) error { return kubernetes.Apply(c.Context, c.String("shared")) },
			},
			program.VersionCommand(version, commit),
		},
		Writer: out, ErrWriter: errOut,
	}, args, kubernetes.ErrInUse)
}

// pod does the work and waits to be told to end. Where its node isn't as it is to be it fails, and kubelet starts it
// again.
func pod(c *cli.Context, out io.Writer) error {
	p := kubernetes.Pod{
		Image: c.String("image"), Settings: c.String("settings"), Shared: c.String("shared"), Out: out,
	}
	if err := os.Remove(done); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := p.Run(c.Context); err != nil {
		return err
	}
	if err := os.WriteFile(done, nil, 0o600); err != nil {
		return err
	}
	<-c.Context.Done()
	return nil
}
