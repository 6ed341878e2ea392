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

// mostDays is the longest time in days, a century.
const mostDays = 36500

// gcCommand removes layers that no image needs.
func gcCommand() *cli.Command {
	return &cli.Command{
		Name: "gc", Usage: "remove layers that no image needs any more", ArgsUsage: "[WISHLIST.yaml…]",
		Description: "Pass all wish lists of the repository: an image converted for a list is dropped if no list names it.\n" +
			"Images converted with make-thin are kept, and so are layers that nodes sent (see receive), until they are\n" +
			"dropped by digest or by age. With one of these, and without a wish list, all images are kept. Layers that\n" +
			"other tools put into the same folder count as unused and are removed, unless a manifest.json below\n" +
			"/.metadata names them. To free storage, run publish gc afterwards.",
		Flags: append(targetFlags(),
			&cli.IntFlag{
				Name: "grace-period", Usage: "remove layers that were found unused at least `DAYS` ago",
				Value: 7,
			},
			&cli.StringSliceFlag{
				Name: "drop-received", Usage: "drop the layer with this `DIGEST` that a node sent; can be repeated",
			},
			&cli.IntFlag{Name: "received-days", Usage: "drop layers that nodes sent at least `DAYS` ago"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only show what would be removed"},
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
		),
		Action: collect,
	}
}

func collect(c *cli.Context) error {
	if c.NArg() == 0 && !c.IsSet("drop-received") && !c.IsSet("received-days") {
		return program.Usagef(c, "no wish list: without one, all images would be dropped")
	}
	if n := c.Int("grace-period"); n < 0 || n > mostDays {
		return program.Usagef(c, "grace period of %d days", c.Int("grace-period"))
	}
	if n := c.Int("received-days"); c.IsSet("received-days") && (n < 1 || n > mostDays) {
		return program.Usagef(c, "received layers of %d days", c.Int("received-days"))
	}
	lists, err := wish.ReadFiles(c.Args().Slice())
	if errors.Is(err, wish.ErrMixed) {
		return program.Usagef(c, "%v", err)
	}
	if err != nil {
		return err
	}
	repository := ""
	if len(lists) > 0 {
		repository = lists[0].Repository
	}
	conv, err := converter(c, repository)
	if err != nil {
		return err
	}
	const day = 24 * time.Hour
	s, err := conv.Collect(c.Context, convert.CollectOptions{
		Lists: lists, KeepImages: len(lists) == 0, Grace: time.Duration(c.Int("grace-period")) * day,
		Dropped: c.StringSlice("drop-received"), ReceivedAge: time.Duration(c.Int("received-days")) * day,
		DryRun: c.Bool("dry-run"),
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
