package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/internal/program"
)

// gcCommand removes layers that no image needs.
func gcCommand() *cli.Command {
	return &cli.Command{
		Name: "gc", Usage: "remove layers that no wish names any more", ArgsUsage: "WISHLIST.yaml…",
		Description: "All wish lists of the repository must be given: images that were converted for a list none of them asks for are dropped.\n" +
			"Images made by make-thin stay. Layers that other tools put below the same folder are known only by their image's\n" +
			"/.metadata/…/manifest.json: without one they are removed. What the storage frees, publish gc tells.",
		Flags: append(targetFlags(),
			&cli.IntFlag{
				Name: "grace-period", Usage: "`DAYS` a layer must have been found unused before it goes",
				Value: 7,
			},
			&cli.BoolFlag{Name: "dry-run", Usage: "only tell what would go"},
			&cli.BoolFlag{Name: "json", Usage: "tell as JSON"},
		),
		Action: collect,
	}
}

func collect(c *cli.Context) error {
	if c.NArg() == 0 {
		return program.Usagef(c, "no wish list: without one, all images would be dropped")
	}
	if c.Int("grace-period") < 0 {
		return program.Usagef(c, "grace period of %d days", c.Int("grace-period"))
	}
	o := convert.CollectOptions{Grace: time.Duration(c.Int("grace-period")) * 24 * time.Hour, DryRun: c.Bool("dry-run")}
	repository := ""
	for _, file := range c.Args().Slice() {
		list, err := readList(file)
		if err != nil {
			return err
		}
		if repository != "" && list.Repository != repository {
			return program.Usagef(c, "%s is for the repository %s, another list for %s", file, list.Repository,
				repository)
		}
		repository = list.Repository
		o.Lists = append(o.Lists, list)
	}
	conv, err := converter(c, repository)
	if err != nil {
		return err
	}
	s, err := conv.Collect(c.Context, o)
	if err != nil {
		return err
	}
	return newProgress(c).collected(s, o.DryRun)
}

// collected says what went.
func (p *progress) collected(s *convert.CollectSummary, dry bool) error {
	if p.json != nil {
		return p.json.Encode(s)
	}
	would := ""
	if dry {
		would = "would be "
	}
	var err error
	say := func(format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintf(p.results, format, args...)
		}
	}
	for _, image := range s.Images {
		say("%sdropped: %s\n", would, image)
	}
	for _, layer := range s.Removed {
		say("%sremoved: %s\n", would, layer)
	}
	say("%d layers kept, %d %sremoved, %d unused in their time of grace\n", s.Kept, len(s.Removed), would,
		len(s.Waiting))
	return err
}
