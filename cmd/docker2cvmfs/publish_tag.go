package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/internal/program"
)

func publishTagCommand() *cli.Command {
	return &cli.Command{
		Name: "tag", Usage: "list, add and remove tags of revisions", ArgsUsage: "DIR [list | add NAME | remove NAME]",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "of", Usage: "add the new tag to the revision of this `TAG`", DefaultText: "the newest revision"},
			&cli.StringFlag{Name: "description", Usage: "description of the new tag"},
			jsonFlag(),
		},
		Action: publishTag,
	}
}

func publishTag(c *cli.Context) error {
	dir, what, name := c.Args().Get(0), c.Args().Get(1), c.Args().Get(2)
	list := c.NArg() == 1 || c.NArg() == 2 && what == "list"
	if !list && (c.NArg() != 3 || what != "add" && what != "remove") {
		return program.Usagef(c, "want DIR, and list, add NAME or remove NAME; flags stand before them")
	}
	r, err := publish.Open(dir, publish.Options{})
	if err != nil {
		return err
	}
	switch {
	case what == "add":
		return r.AddTag(c.Context, name, c.String("of"), c.String("description"))
	case what == "remove":
		return r.RemoveTag(c.Context, name)
	}
	tags, err := r.Tags(c.Context)
	if err != nil {
		return err
	}
	return printTags(c, tags)
}

func printTags(c *cli.Context, tags []history.Tag) error {
	for _, t := range tags {
		var err error
		if c.Bool("json") {
			err = printJSON(c, map[string]any{
				"name": t.Name, "revision": t.Revision, "root": t.Root.String(), "time": t.Time,
				"description": t.Description,
			})
		} else {
			_, err = fmt.Fprintf(c.App.Writer, "%s\t%d\t%s\t%v\t%q\n", t.Name, t.Revision, t.Time.Format(time.RFC3339),
				t.Root, t.Description)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
