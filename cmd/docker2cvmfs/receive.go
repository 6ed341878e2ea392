package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/internal/program"
	"cvmfs-graphdriver/pushback/receive"
)

// receiveCommand is the service that publishes layers which nodes send.
func receiveCommand() *cli.Command {
	return &cli.Command{
		Name: "receive", Usage: "run the service that publishes layers sent by nodes", ArgsUsage: "CONFIG.yaml",
		Description: "Layers come through a bucket of an S3 store, or are sent to the service itself. Whoever may send layers\n" +
			"decides what is published, signed, for all nodes: docs/pushback.md describes the configuration.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "check-config", Usage: "only check the configuration: files, folders and the bucket that it names"},
			&cli.BoolFlag{Name: "debug", Usage: "log more"},
		},
		Action: receiveLayers,
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "list layers that came, and how far they have got", ArgsUsage: "CONFIG.yaml",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "asking", Usage: "only layers that wait for approval"}, jsonFlag(),
				},
				Action: receiveList,
			},
			{
				Name: "approve", Usage: "have layers published that wait for approval", ArgsUsage: "CONFIG.yaml DIGEST…",
				Description: "Approving a layer that was rejected takes that back: the node can send it again.",
				Action:      func(c *cli.Context) error { return receiveDecide(c, true) },
			},
			{
				Name: "reject", Usage: "refuse layers that wait for approval", ArgsUsage: "CONFIG.yaml DIGEST…",
				Flags: []cli.Flag{&cli.StringFlag{
					Name: "reason", Usage: "`TEXT` for the node and the audit file",
				}},
				Action: func(c *cli.Context) error { return receiveDecide(c, false) },
			},
		},
	}
}

func receiveLayers(c *cli.Context) error {
	if err := needArgs(c, "CONFIG.yaml"); err != nil {
		return err
	}
	config, err := receive.ReadFile(c.Args().First())
	if err != nil {
		return err
	}
	if c.Bool("check-config") {
		if err := receive.Check(c.Context, config); err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.App.Writer, "%s: good\n", c.Args().First())
		return err
	}
	level := slog.LevelInfo
	if c.Bool("debug") {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
	s, err := receive.New(config, log)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Run(c.Context, func(at net.Addr) {
		log.Info("layers are received", "version", version, "repository", s.FQRN(), "address", at)
		daemon.SdNotify(false, daemon.SdNotifyReady) // there may be no systemd
	})
}

func receiveList(c *cli.Context) error {
	if err := needArgs(c, "CONFIG.yaml"); err != nil {
		return err
	}
	config, err := receive.ReadFile(c.Args().First())
	if err != nil {
		return err
	}
	records, err := receive.List(config)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for _, r := range records {
		if c.Bool("asking") && r.State != receive.Asking {
			continue
		}
		if c.Bool("json") {
			if err := printJSON(c, r); err != nil {
				return err
			}
			continue
		}
		reason := shown(r.Reason)
		if r.State == receive.Asking {
			reason = receive.Archive(config, r.Digest)
		}
		fmt.Fprintln(w, strings.Join([]string{ // the error is that of Flush
			r.Digest, string(r.State), size(r.Size), r.Since.Format(time.RFC3339), shown(r.Node), shown(r.Image),
			reason,
		}, "\t"))
	}
	return w.Flush()
}

// shown is a text that a node chose, for a terminal.
func shown(text string) string {
	if text == "" {
		return "-"
	}
	quoted := fmt.Sprintf("%+q", text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

func receiveDecide(c *cli.Context, approve bool) error {
	if c.NArg() < 2 {
		return program.Usagef(c, "want a configuration and at least one digest")
	}
	config, err := receive.ReadFile(c.Args().First())
	if err != nil {
		return err
	}
	for _, digest := range c.Args().Tail() {
		said, err := receive.Decide(config, digest, approve, person(), c.String("reason"))
		if err == nil {
			_, err = fmt.Fprintf(c.App.Writer, "%s: %s\n", digest, said)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// person is who calls the program, also by sudo.
func person() string {
	if name := os.Getenv("SUDO_USER"); name != "" && os.Getuid() == 0 {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprint("uid ", os.Getuid())
}
