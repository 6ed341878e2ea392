package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/convert"
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
	flags = append(flags, targetFlags()...)
	return append(flags,
		&cli.StringFlag{
			Name: "notification-file", Aliases: []string{"notify", "n"},
			Usage: "append events to `FILE`, one JSON object per line",
		},
		&cli.BoolFlag{Name: "force", Usage: "write thin images even if nothing changed"},
	)
}

func loop(c *cli.Context) error {
	if err := needArgs(c, "WISHLIST.yaml"); err != nil {
		return err
	}
	if c.Duration("interval") <= 0 {
		return program.Usagef(c, "interval %v: want more than nothing", c.Duration("interval"))
	}
	for {
		err := convertOnce(c)
		if program.IsUsage(err) {
			return err
		}
		if c.Context.Err() != nil {
			return nil // the interrupt is how a loop ends; what was under way was dropped
		}
		if err != nil {
			fmt.Fprintf(c.App.ErrWriter, "docker2cvmfs: %v\n", err)
		}
		pause := time.NewTimer(c.Duration("interval"))
		select {
		case <-pause.C:
		case <-c.Context.Done():
			pause.Stop()
			return nil
		}
	}
}

// readList reads a wish list's file.
func readList(file string) (*wish.List, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	list, err := wish.Read(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

func convertOnce(c *cli.Context) error {
	list, err := readList(c.Args().First())
	if err != nil {
		return err
	}
	conv, err := converter(c, list.Repository)
	if err != nil {
		return err
	}
	if err := duccCredentials(conv, list); err != nil {
		return program.Usagef(c, "%v", err)
	}
	n, err := openNotifier(c.String("notification-file"))
	if err != nil {
		return err
	}
	p := newProgress(c)
	conv.Progress = func(e convert.Event) {
		p.event(e)
		n.event(e)
	}
	s, err := convertAll(c.Context, conv, list, n)
	p.close()
	if s != nil {
		err = errors.Join(err, p.listSummary(s))
	}
	if err = errors.Join(err, n.close()); err != nil {
		return err
	}
	if len(s.Failures) > 0 {
		return fmt.Errorf("%d of %d images failed", len(s.Failures), len(s.Failures)+len(s.Images))
	}
	return nil
}

func convertAll(ctx context.Context, conv *convert.Converter, list *wish.List,
	n *notifier,
) (*convert.ListSummary, error) {
	n.begin()
	s, err := conv.ConvertList(ctx, list)
	n.end(err)
	return s, err
}

// listSummary says what converting a list came to, and what failed.
func (p *progress) listSummary(s *convert.ListSummary) error {
	if p.json != nil {
		return p.json.Encode(s)
	}
	var added int
	var stored int64
	for _, i := range s.Images {
		added, stored = added+i.Added, stored+i.Stats.Stored
	}
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
