package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/installer/bench"
	"cvmfs-graphdriver/installer/policy"
	"cvmfs-graphdriver/internal/program"
)

// benchCommand compares an image with its thin one on this host.
func benchCommand() *cli.Command {
	return &cli.Command{
		Name: "bench", ArgsUsage: "IMAGE THIN-IMAGE [COMMAND [ARGUMENT…]]",
		Usage: "compare how long an image and its thin one take to start on this host",
		Description: "Pulls and runs each in turn, from cold, and runs it again: its own command, or the one given.\n" +
			"A start is ready when the program has ended, writes --until-line, or answers at --until-port. Neither\n" +
			"image may be on this host. They are removed between the rounds and in the end, also if the command is\n" +
			"interrupted; nothing else is. The thin image's files go from the cache with it, but for those that\n" +
			"other images on this host share: how much that is, is told. Both run on the same driver; it mounts\n" +
			"ordinary images as overlay2 does.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rounds", Usage: "how often each is started from cold", Value: 3},
			&cli.StringFlag{Name: "until-line", Usage: "it is ready when it writes a line with this `TEXT`"},
			&cli.IntFlag{Name: "until-port", Usage: "it is ready when it answers at this TCP `PORT`"},
			&cli.DurationFlag{
				Name: "within", Usage: "a start that takes longer than `DURATION` is an error", Value: 5 * time.Minute,
			},
			&cli.StringSliceFlag{
				Name: "env", Aliases: []string{"e"}, Usage: "environment `NAME=VALUE`; can be repeated",
			},
			&cli.StringFlag{
				Name: "network", Usage: "`NETWORK` of the containers (default: none, or bridge with --until-port)",
			},
			socketFlag, hostFlag, jsonFlag, recordFlag,
		},
		Action: func(c *cli.Context) error {
			if c.NArg() < 2 {
				return program.Usagef(c, "want an image, its thin one, and perhaps a command")
			}
			start, err := benchStart(c)
			if err != nil {
				return err
			}
			return findWith(c, func(h *policy.Host) error { return compareImages(c, h, start) })
		},
	}
}

// benchStart is what the flags say of a start.
func benchStart(c *cli.Context) (s bench.Start, err error) {
	port := c.Int("until-port")
	s = bench.Start{
		Command: c.Args().Slice()[2:], Env: c.StringSlice("env"), Network: c.String("network"),
		Line: c.String("until-line"), Port: uint16(port), Within: c.Duration("within"),
	}
	switch {
	case port < 0 || port > math.MaxUint16:
		err = program.Usagef(c, "--until-port %d: want a TCP port", port)
	case port != 0 && s.Network == "none":
		err = program.Usagef(c, "--until-port needs a network: name another one by --network")
	case s.Within <= 0:
		err = program.Usagef(c, "--within %v: want a duration", s.Within)
	case c.Int("rounds") < 1:
		err = program.Usagef(c, "--rounds %d: want one at least", c.Int("rounds"))
	case s.Network == "" && port != 0:
		s.Network = "bridge"
	case s.Network == "":
		s.Network = "none"
	}
	return s, err
}

func compareImages(c *cli.Context, h *policy.Host, start bench.Start) error {
	node, err := h.EngineNode(c.Context)
	if err != nil {
		return err
	}
	p := newProgress(c)
	r, err := bench.Run(c.Context, bench.Config{
		Engine: h.Engine, Node: node, Ordinary: c.Args().Get(0), Thin: c.Args().Get(1), Rounds: c.Int("rounds"),
		Start: start, Tell: func(what string) { p.tell("%s", what) },
	})
	p.end()
	if err != nil {
		return err
	}
	if err := show(c, r, func(w io.Writer) { writeComparison(w, r) }); err != nil || c.Bool(jsonFlag.Name) {
		return err
	}
	return writeConditions(c.App.Writer, r)
}

// writeComparison writes the table: medians, with the least and the greatest.
func writeComparison(w io.Writer, r *bench.Result) {
	fmt.Fprint(w, "\tordinary\tthin\tthin ÷ ordinary\n")
	row := func(what string, spell func(float64) string, figure func(bench.Sample) float64) {
		a, b := r.Of(bench.Ordinary, figure), r.Of(bench.Thin, figure)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", what, spread(a, spell), spread(b, spell),
			quotient(bench.Median(b), bench.Median(a)))
	}
	row("pull", seconds, func(s bench.Sample) float64 { return s.Pull })
	row("first run", seconds, func(s bench.Sample) float64 { return s.First })
	row("until ready", seconds, bench.Sample.Ready)
	row("warm run", seconds, func(s bench.Sample) float64 { return s.Warm })
	row("fetched", bytesOrNothing, func(s bench.Sample) float64 { return float64(s.Fetched) })
	ordinary, thin := r.Images[bench.Ordinary], r.Images[bench.Thin]
	fmt.Fprintf(w, "unpacked\t%s\t\t\nin the registry\t%s\t%s\t\n", size(ordinary.Size),
		bytesOrNothing(float64(ordinary.Compressed)), bytesOrNothing(float64(thin.Compressed)))
}

// spread spells the median of some numbers and, where they differ, the least and the greatest.
func spread(numbers []float64, spell func(float64) string) string {
	middle, least, most := spell(bench.Median(numbers)), spell(slices.Min(numbers)), spell(slices.Max(numbers))
	if least == most {
		return middle
	}
	return fmt.Sprintf("%s (%s–%s)", middle, least, most)
}

func seconds(s float64) string { return fmt.Sprintf("%.2f s", s) }

func bytesOrNothing(n float64) string {
	if n == 0 {
		return "?"
	}
	return size(int64(n))
}

func quotient(a, b float64) string {
	if a == 0 || b == 0 {
		return ""
	}
	return fmt.Sprintf("× %.2f", a/b)
}

// writeConditions says under which conditions the table holds.
func writeConditions(w io.Writer, r *bench.Result) error {
	_, err := fmt.Fprintf(w, "\nBoth ran on %s, Docker %s. Cold: the image was not on this host; caches of the\n"+
		"network, and memory, were left as they are. \"fetched\" is until the first run was ready; of the thin image all\n"+
		"that the node fetched, for others, too.\n", r.Driver, r.Engine)
	for _, form := range []bench.Form{bench.Ordinary, bench.Thin} {
		shared := bench.Median(r.Of(form, func(s bench.Sample) float64 { return float64(s.Shared) }))
		if err == nil && shared > 0 {
			_, err = fmt.Fprintf(w, "About %s of the %s image was here before, as other images have it: a host "+
				"without them fetches more.\n", size(int64(shared)), form)
		}
		if unknown := r.Images[form].Unknown; err == nil && unknown != "" {
			_, err = fmt.Fprintf(w, "What the %s image takes in the registry isn't known: %s\n", form, unknown)
		}
	}
	return err
}
