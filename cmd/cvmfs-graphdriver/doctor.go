package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/installer/doctor"
	"cvmfs-graphdriver/installer/policy"
	"cvmfs-graphdriver/installer/preflight"
)

// hostFlags say which engine and plugin are meant, and how to answer.
func hostFlags() []cli.Flag {
	return []cli.Flag{
		hostFlag, nameFlag, fileFlag,
		&cli.StringFlag{
			Name: "cvmfs-config",
			Usage: "`FOLDER` with the CernVM-FS configuration (default: the plugin's setting, or " + policy.ConfigDir +
				")",
		},
		&cli.StringFlag{
			Name:  "minio-config",
			Usage: "`FOLDER` with push-back's config.json, whose service and store are asked",
		},
		&cli.StringFlag{
			Name:  socketFlag.Name,
			Usage: "`SOCKET` at which the snapshotter answers (default: " + control.SnapshotterSocket + ", if it does)",
		},
		&cli.StringFlag{Name: "log", Usage: "`FILE` with the engine's log (default: searched)"},
		jsonFlag, recordFlag,
	}
}

// look gathers what is known of the host, and what it was looked at for.
func look(c *cli.Context) (facts preflight.Facts, plan preflight.Plan, err error) {
	err = find(c, func(h *policy.Host) (err error) {
		plan, err = h.Plan(c.Context)
		return err
	})
	if err == nil {
		facts = preflight.Gather(c.Context, plan)
		err = c.Context.Err()
	}
	return facts, plan, err
}

// doctorCommand judges the host as it stands.
func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "find what is wrong with this host, its engine and its repositories, and how to fix it",
		Description: "Lists errors first. The exit code is 3 if there is one. --bundle-report writes an archive for support with facts,\n" +
			"findings, configuration and the engine's log. Passwords, keys and tokens are removed from it.",
		Flags: append(hostFlags(), &cli.StringFlag{
			Name:  "bundle-report",
			Usage: "`FILE` (.tar.gz) for the archive for support",
		}),
		Action: func(c *cli.Context) error {
			facts, plan, err := look(c)
			if err != nil {
				return err
			}
			report := doctor.New(facts, plan, version, commit)
			write := report.Write
			if c.Bool("json") {
				write = report.WriteJSON
			}
			if err := write(c.App.Writer); err != nil {
				return err
			}
			if file := c.String("bundle-report"); file != "" {
				if err := report.Archive(c.Context, file); err != nil {
					return err
				}
				fmt.Fprintf(c.App.ErrWriter, "the report for support is in %s\n", file)
			}
			return preflight.Unfit(report.Findings)
		},
	}
}
