package main

import (
	"cmp"
	"fmt"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/doctor"
	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/installer/service"
	"cvmfs-graphdriver/internal/program"
)

// hostFlags say which engine and plugin are meant, and how to answer.
func hostFlags() []cli.Flag {
	return []cli.Flag{
		hostFlag, nameFlag, fileFlag,
		&cli.StringFlag{
			Name: "cvmfs-config",
			Usage: "`FOLDER` with the CernVM-FS configuration (default: the plugin's setting, or " + configuration +
				")",
		},
		&cli.StringFlag{
			Name:  "minio-config",
			Usage: "`FOLDER` with config.json of an object store (default: the plugin's setting)",
		},
		&cli.StringFlag{Name: "log", Usage: "`FILE` that the engine's log goes to (default: where it is found)"},
		jsonFlag, recordFlag,
	}
}

// hostPlan is what the flags say of the host.
func hostPlan(c *cli.Context) (preflight.Plan, error) {
	engine, err := installer.Connect(c.String(hostFlag.Name))
	if err != nil {
		return preflight.Plan{}, err
	}
	defer engine.Close() // nothing is on its way any more
	running, err := service.Find(c.Context, engine.Client().DaemonHost())
	if err != nil {
		running = nil
	}
	file, log := filesOf(c, running)
	name, err := pluginName(c, engine, file)
	return preflight.Plan{
		Host: engine.Client().DaemonHost(), Name: name, Log: cmp.Or(c.String("log"), log), DaemonJSON: file,
		CVMFSConfig: c.String("cvmfs-config"), MinioConfig: c.String("minio-config"), Agent: c.App.Name + "/" + version,
	}, err
}

// doctorCommand judges the host as it stands.
func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "say what is wrong with this host, its engine and its repositories, and what to do about it",
		Description: "Errors come first. The exit code is 3 if there is one. --bundle-report packs what a supporter wants to see:\n" +
			"facts, findings, configuration, the engine's log. Passwords, keys and tokens are removed from it.",
		Flags: append(hostFlags(), &cli.StringFlag{
			Name:  "bundle-report",
			Usage: "`FILE` that receives a .tar.gz for support",
		}),
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return program.Usagef(c, "unknown argument %q", c.Args().First())
			}
			plan, err := hostPlan(c)
			if err != nil {
				return err
			}
			report := doctor.New(preflight.Gather(c.Context, plan), plan, version, commit)
			if err := c.Context.Err(); err != nil {
				return err
			}
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
