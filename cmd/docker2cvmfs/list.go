package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/ducc"
	"cvmfs-graphdriver/convert/wish"
	"cvmfs-graphdriver/internal/program"
)

// defaultInterval is between two rounds of loop.
const defaultInterval = 10 * time.Minute

// convertCommand converts the images of a wish list.
func convertCommand() *cli.Command {
	return &cli.Command{
		Name: "convert", Usage: "convert the images of a wish list", ArgsUsage: "WISHLIST.yaml", Flags: listFlags(),
		Description: "Images that did not change are skipped. If an image fails, the others are still converted, the summary\n" +
			"names the failed image, and the exit code is 1.\n\n" +
			"Environment variables: DUCC_OUTPUT_REGISTRY_PASS is the password of the list's user,\n" +
			"DUCC_AUTH_REGISTRIES lists the names of additional registry credentials.",
		Action: func(c *cli.Context) error {
			if err := needArgs(c, "WISHLIST.yaml"); err != nil {
				return err
			}
			return convertOnce(c)
		},
	}
}

// loopCommand does so again and again.
func loopCommand() *cli.Command {
	return &cli.Command{
		Name: "loop", Usage: "convert the images of a wish list repeatedly", ArgsUsage: "WISHLIST.yaml",
		Description: "The list is read again in each round. If a round fails, the error is printed and the loop continues.\n" +
			"Ctrl-C ends it.",
		Flags: append(listFlags(), &cli.DurationFlag{
			Name: "interval", Usage: "pause between two rounds, as a `DURATION`, for example 30m",
			Value: defaultInterval,
		}),
		Action: loop,
	}
}

func listFlags() []cli.Flag {
	flags := append(imageFlags(), progressFlags()...)
	flags = append(append(flags, targetFlags()...), recordFlags()...)
	return append(flags,
		&cli.StringFlag{
			Name: "notification-file", Aliases: []string{"notify", "n"},
			Usage: "append events to `FILE`, one JSON object per line",
		},
		&cli.BoolFlag{Name: "force", Usage: "write thin images even if nothing changed"},
		refreshFlag(), fetchFlag(), chunkFlag(),
	)
}

func loop(c *cli.Context) error {
	if err := needArgs(c, "WISHLIST.yaml"); err != nil {
		return err
	}
	if c.Duration("interval") <= 0 {
		return program.Usagef(c, "interval %v: want more than nothing", c.Duration("interval"))
	}
	return convert.Repeat(c.Context, c.Duration("interval"), func() error {
		err := convertOnce(c)
		if err != nil && !program.IsUsage(err) && c.Context.Err() == nil {
			fmt.Fprintf(c.App.ErrWriter, "docker2cvmfs: %v\n", err)
			return nil
		}
		return err
	})
}

func convertOnce(c *cli.Context) error {
	list, err := wish.ReadFile(c.Args().First())
	if err != nil {
		return err
	}
	conv, err := converter(c, list.Repository)
	if err != nil {
		return err
	}
	if err := ducc.SetCredentials(conv, list); err != nil {
		return program.Usagef(c, "%v", err)
	}
	p := newProgress(c)
	conv.Progress = p.event
	s, err := ducc.ConvertList(c.Context, conv, list, c.String("notification-file"))
	p.close()
	if s != nil {
		err = errors.Join(p.listSummary(s), err)
	}
	return err
}

// listSummary says what converting a list came to, and what failed.
func (p *progress) listSummary(s *convert.ListSummary) error {
	if p.json != nil {
		return p.json.Encode(s)
	}
	added, stored := s.Added()
	_, err := fmt.Fprintf(p.results, "%d converted, %d unchanged, %d failed; %d layers added, %s stored\n", s.Converted,
		s.Unchanged, len(s.Failures),
		added, size(stored))
	for _, f := range s.Failures {
		if err == nil {
			_, err = fmt.Fprintf(p.results, "failed: %s: %s\n", f.Image, f.Error)
		}
	}
	return err
}
