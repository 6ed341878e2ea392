package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/gc"
	"cvmfs-graphdriver/internal/program"
)

func publishGCCommand() *cli.Command {
	return &cli.Command{
		Name: "gc", Usage: "remove old revisions and the objects that only they need", ArgsUsage: "DIR",
		Description: "The newest revision and the revisions that you tagged are always kept.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "keep-revisions", Usage: "number of `REVISIONS` before the newest to keep", Value: 3},
			&cli.IntFlag{Name: "keep-days", Usage: "keep the revisions of the last `DAYS`"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only show what would be removed"},
			jsonFlag(),
		},
		Action: withRepository(publishGC),
	}
}

func publishGC(c *cli.Context, r *publish.Repository) error {
	if c.Int("keep-revisions") < 0 || c.Int("keep-days") < 0 {
		return program.Usagef(c, "what is kept can't be negative")
	}
	s, err := gc.Run(c.Context, r, gc.Options{
		KeepRevisions: c.Int("keep-revisions"), KeepAge: time.Duration(c.Int("keep-days")) * 24 * time.Hour,
		DryRun: c.Bool("dry-run"),
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c, s)
	}
	would := ""
	if c.Bool("dry-run") {
		would = "would be "
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: %d revisions kept, %d %sremoved, with %d files, %s\n",
		r.FQRN(), s.Kept, s.Removed, would, s.Objects, size(s.Bytes))
	return err
}
