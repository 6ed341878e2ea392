package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/installer"
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
		Name: "socket", Usage: "`SOCKET` at which the node answers (default: that of the engine's plugin)",
	}
	thinFlag = &cli.StringFlag{Name: "thin-image", Usage: "test with this thin `IMAGE`, too"}
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

// nodeFlags say which node is meant, and how to answer.
func nodeFlags() []cli.Flag {
	return []cli.Flag{socketFlag, hostFlag, nameFlag, fileFlag, jsonFlag, recordFlag}
}

// onNode has a command speak to the node that runs on this host. The host tells of the engine that it serves.
func onNode(c *cli.Context, do func(*policy.Host, *control.Client) error) error {
	if c.NArg() > 0 {
		return program.Usagef(c, "unknown argument %q", c.Args().First())
	}
	return onNodeWith(c, do)
}

// onNodeWith is onNode for a command with arguments, which are its own to look at.
func onNodeWith(c *cli.Context, do func(*policy.Host, *control.Client) error) error {
	return findWith(c, func(h *policy.Host) error {
		node, err := h.Node(c.Context)
		if err != nil {
			return err
		}
		return do(h, node)
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
