package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/containerd"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/installer/policy"
	"cvmfs-graphdriver/internal/program"
)

// Flags that install, upgrade, uninstall and test have in common.
var (
	hostFlag = &cli.StringFlag{
		Name:  "host",
		Usage: "`SOCKET` of the engine (default: $DOCKER_HOST, or unix:///var/run/docker.sock)",
	}
	nameFlag = &cli.StringFlag{
		Name: "name",
		Usage: "`NAME` of the plugin and of the storage driver (default: the existing plugin's, or " +
			installer.DefaultName + ")",
	}
	fileFlag = &cli.StringFlag{
		Name:  "daemon-json",
		Usage: "the engine's configuration `FILE` (default: the one the engine uses, or " + daemonjson.DefaultPath + ")",
	}
	restartFlag = &cli.StringFlag{
		Name:  "restart",
		Usage: "how to restart the engine: auto, systemd, systemd:UNIT, openrc, sysv, command:`COMMAND` or none",
		Value: "auto",
	}
	yesFlag    = &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask for confirmation"}
	jsonFlag   = &cli.BoolFlag{Name: "json", Usage: "print JSON, for steps one object per line"}
	recordFlag = &cli.StringFlag{
		Name: "record", Usage: "`FILE` with the record of changes",
		Value: installer.DefaultRecord,
	}
	bundleFlag = &cli.StringFlag{Name: "bundle", Usage: "plugin bundle: a `FILE` or a folder (default: the one in " +
		policy.PackagedDir + " or beside this program)"}
	keyFlag    = &cli.StringFlag{Name: "key", Usage: "public `KEY` (minisign) that must have signed the bundle"}
	testFlag   = &cli.StringFlag{Name: "test-image", Usage: "test with this ordinary `IMAGE` instead of one made on the spot"}
	socketFlag = &cli.StringFlag{
		Name: "socket", Usage: "`SOCKET` at which the one node answers that is meant (default: those of the snapshotter and the engine's plugin)",
	}
	containerdFlag = &cli.StringFlag{
		Name: "containerd", Usage: "`SOCKET` of the containerd that is to use the snapshotter (default: the engine's, if it takes no plugin, or " +
			containerd.DefaultSocket + ")",
	}
	pluginFlag = &cli.BoolFlag{Name: "plugin", Usage: "the plugin is meant, also where the snapshotter is installed"}
	thinFlag   = &cli.StringFlag{Name: "thin-image", Usage: "test with this thin `IMAGE`, too"}
)

// onHost has a command work on this host's engine.
func onHost(c *cli.Context, do func(*policy.Host, *installer.Installer) error) error {
	return find(c, func(h *policy.Host) error {
		p := newPrinter(c)
		i, err := h.Installer(p.tell, func(ctx context.Context, what []string) error { return ask(ctx, c, p, what) })
		if err != nil {
			return err
		}
		return do(h, i)
	})
}

// onSnapshotter has a command work on this host's snapshotter, and on the engine of Docker's if there is one.
func onSnapshotter(c *cli.Context, h *policy.Host, i *installer.Installer, do func(*containerd.Client) error) error {
	client, err := h.Snapshotter(c.Context, i)
	if err != nil {
		return err
	}
	defer client.Close() // nothing is on its way any more
	if h.HasEngine(c.Context) {
		if err := h.Restarts(c.Context, i); err != nil {
			return err
		}
	}
	return do(client)
}

// nodeFlags say which node is meant, and how to answer.
func nodeFlags() []cli.Flag {
	return []cli.Flag{socketFlag, hostFlag, nameFlag, fileFlag, jsonFlag, recordFlag}
}

// onNodes has a command speak to the nodes that run on this host, one after another. Of several, each is named.
func onNodes(c *cli.Context, do func(policy.Node) error) error {
	if c.NArg() > 0 {
		return program.Usagef(c, "unknown argument %q", c.Args().First())
	}
	return findWith(c, func(h *policy.Host) error {
		nodes, err := h.Nodes(c.Context)
		if err != nil {
			return err
		}
		return each(c, nodes, do)
	})
}

func each(c *cli.Context, nodes []policy.Node, do func(policy.Node) error) (err error) {
	if len(nodes) > 1 && c.Bool(jsonFlag.Name) {
		return program.Usagef(c, "%s and %s run on this host: name the one that is meant by --%s", nodes[0].Title,
			nodes[1].Title, socketFlag.Name)
	}
	for _, n := range nodes {
		if len(nodes) > 1 {
			fmt.Fprintf(c.App.Writer, "%s:\n", n.Title)
		}
		err = errors.Join(err, do(n))
	}
	return err
}

// onImage has a command speak to the nodes that have an image, with the key that each has for it.
func onImage(c *cli.Context, image string, do func(n policy.Node, key string) error) error {
	return findWith(c, func(h *policy.Host) error {
		nodes, err := h.Nodes(c.Context)
		if err != nil {
			return err
		}
		keys := map[string]string{}
		var unknown error
		nodes = slices.DeleteFunc(nodes, func(n policy.Node) bool {
			key, err := n.ImageKey(c.Context, image)
			keys[n.Title] = key
			unknown = errors.Join(unknown, err)
			return err != nil
		})
		if len(nodes) == 0 {
			return unknown
		}
		return each(c, nodes, func(n policy.Node) error { return do(n, keys[n.Title]) })
	})
}

// find has a command look at this host's engine. A request that can't be meant is a wrong call.
func find(c *cli.Context, do func(*policy.Host) error) error {
	if c.NArg() > 0 {
		return program.Usagef(c, "unknown argument %q", c.Args().First())
	}
	return findWith(c, do)
}

// findWith is find for a command with arguments.
func findWith(c *cli.Context, do func(*policy.Host) error) error {
	h, err := policy.Find(c.Context, request(c))
	if err == nil {
		defer h.Close() // nothing is on its way any more
		err = do(h)
	}
	if mistake, ok := errors.AsType[policy.UsageError](err); ok {
		return program.Usagef(c, "%v", mistake)
	}
	return err
}

// request is what the flags say. Those that a command doesn't have say nothing.
func request(c *cli.Context) policy.Request {
	r := policy.Request{
		Version: version,
		Host:    c.String(hostFlag.Name), Socket: c.String(socketFlag.Name),
		Name: c.String(nameFlag.Name), File: c.String(fileFlag.Name),
		Log: c.String("log"), Record: c.String(recordFlag.Name), Restart: c.String(restartFlag.Name),
		Bundle: c.String(bundleFlag.Name), Key: c.String(keyFlag.Name), From: c.String("from"),
		DataRoot: c.String("data-root"), StorageOpts: c.StringSlice("storage-opt"), Settings: c.StringSlice("set"),
		CVMFSConfig: c.String("cvmfs-config"), MinioConfig: c.String("minio-config"), Fix: c.Bool("fix"),
		Containerd: c.String(containerdFlag.Name), CRI: c.Bool("cri"), Plugin: c.Bool(pluginFlag.Name),
		Images: installer.Images{Ordinary: c.String(testFlag.Name), Thin: c.String(thinFlag.Name)},
	}
	if c.IsSet("debug") {
		r.Debug = new(c.Bool("debug"))
	}
	return r
}

// ask shows what is to be done, and has it confirmed unless the user has done so already.
func ask(ctx context.Context, c *cli.Context, p *printer, what []string) error {
	yes := c.Bool(yesFlag.Name)
	if !yes && !interactive() {
		return program.Usagef(c, "the host would be changed: %s\nThere is nobody to confirm it: give --%s",
			strings.Join(what, "\n"), yesFlag.Name)
	}
	p.tell(installer.Event{Step: "plan", Outcome: installer.Told, Text: strings.Join(what, "\n")})
	if yes {
		return nil
	}
	fmt.Fprint(c.App.ErrWriter, "Go on? [y/N] ")
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n') // an end without an answer is a no
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case said := <-answer:
		if said == "y" || said == "yes" {
			return nil
		}
		return errors.New("not confirmed: nothing was changed")
	case <-ctx.Done():
		return fmt.Errorf("not confirmed: %w; nothing was changed", ctx.Err())
	}
}

// interactive reports whether somebody can be asked.
func interactive() bool { return term.IsTerminal(int(os.Stdin.Fd())) }
