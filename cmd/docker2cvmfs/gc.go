package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/wish"
	"cvmfs-graphdriver/internal/program"
)

// gcCommand removes layers that no image needs.
func gcCommand() *cli.Command {
	return &cli.Command{
		Name: "gc", Usage: "remove layers that no image needs any more", ArgsUsage: "WISHLIST.yaml…",
		Description: "Pass all wish lists of the repository: an image converted for a list is dropped if no list names it.\n" +
			"Images converted with make-thin are kept. Layers that other tools put into the same folder count as\n" +
			"unused and are removed, unless a manifest.json below /.metadata names them. To free storage, run\n" +
			"publish gc afterwards.",
		Flags: append(targetFlags(),
			&cli.IntFlag{
				Name: "grace-period", Usage: "remove layers that were found unused at least `DAYS` ago",
				Value: 7,
			},
			&cli.BoolFlag{Name: "dry-run", Usage: "only show what would be removed"},
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
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
	lists, err := wish.ReadFiles(c.Args().Slice())
	if errors.Is(err, wish.ErrMixed) {
		return program.Usagef(c, "%v", err)
	}
	if err != nil {
		return err
	}
	conv, err := converter(c, lists[0].Repository)
	if err != nil {
		return err
	}
	s, err := conv.Collect(c.Context, convert.CollectOptions{
		Lists: lists, Grace: time.Duration(c.Int("grace-period")) * 24 * time.Hour, DryRun: c.Bool("dry-run"),
	})
	if err != nil {
		return err
	}
	return newProgress(c).collected(s, c.Bool("dry-run"))
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
