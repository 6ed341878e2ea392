package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/driver/record"
	"cvmfs-graphdriver/internal/program"
	"cvmfs-graphdriver/thin"
)

// recordWord stands for a profile that is to be recorded, where a file is wanted otherwise.
const recordWord = "record"

// defaultFor is how long a start is recorded, at most.
const defaultFor = 30 * time.Second

// profileCommand is about what the starts of images read.
func profileCommand() *cli.Command {
	return &cli.Command{
		Name:  "profile",
		Usage: "record what the start of a thin image reads, so that nodes fetch it ahead",
		Subcommands: []*cli.Command{
			{
				Name: "record", ArgsUsage: "THIN-IMAGE [COMMAND [ARGUMENT…]]",
				Usage: "run a thin image, or a command in it, and write its start profile (root)",
				Description: "Without a command it is the image's own that is run. The start is over when the program ends, when\n" +
					"--for has passed, or when somebody listens at --until-port, whichever is first. Nothing is fetched\n" +
					"but what is read. The program has no network but its own loopback.",
				Flags: append(append(imageFlags(), recordFlags()...),
					&cli.StringFlag{Name: "output", Usage: "write the profile to `FILE` instead of standard output"},
					&cli.StringFlag{
						Name:  "target",
						Usage: "read layers of the publisher's folder DIR from there: `native:DIR`",
					},
				),
				Action: profileRecord,
			},
			{
				Name: "attach", ArgsUsage: "PROFILE",
				Usage: "publish a start profile with an image, and write the thin image that names it",
				Flags: slices.Concat(imageFlags(), progressFlags(), targetFlags(), makeThinFlags(),
					[]cli.Flag{chunkFlag()}),
				Action: func(c *cli.Context) error {
					if err := needArgs(c, "PROFILE"); err != nil {
						return err
					}
					profile, err := readProfile(c.Args().First())
					if err != nil {
						return err
					}
					return makeThinOf(c, func(job *convert.Job) error {
						job.Profile = profile
						return nil
					})
				},
			},
			{
				Name: "show", ArgsUsage: "PROFILE", Usage: "check a start profile's file, and say what it names",
				Action: profileShow,
			},
		},
		Action: program.OnlyCommands,
	}
}

// recordFlags say how a start is recorded.
func recordFlags() []cli.Flag {
	return []cli.Flag{
		&cli.DurationFlag{Name: "for", Usage: "end after this `DURATION`; 0s is no limit", Value: defaultFor},
		&cli.IntFlag{Name: "until-port", Usage: "end when the image's program listens at this TCP `PORT`"},
		&cli.StringFlag{Name: "config-dir", Usage: "`FOLDER` with the CernVM-FS configuration", Value: config.HostDir},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "write debug messages to stderr"},
	}
}

// profileFlag is the profile that is published with an image.
func profileFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "profile",
		Usage: "publish the start profile in `FILE` with the image; \"record\" runs the image to record one, unless one is" +
			" published (root)",
	}
}

func readProfile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, objects.MaxProfile+1))
	if err == nil {
		_, err = objects.ParseProfile(b)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// setProfile has a job do what --profile says.
func setProfile(c *cli.Context, job *convert.Job) (err error) {
	switch name := c.String("profile"); name {
	case "":
	case recordWord:
		job.Record = true
	default:
		job.Profile, err = readProfile(name)
	}
	return err
}

// recorder records the starts of images, as flags say, those of a publisher's folder from there.
func recorder(c *cli.Context, t sink.Sink) func(context.Context, *source.Image, *thin.Descriptor) ([]byte, error) {
	return func(ctx context.Context, image *source.Image, d *thin.Descriptor) ([]byte, error) {
		r, err := recordStart(ctx, c, sink.Publisher(t), image, d, nil)
		if err != nil {
			return nil, err
		}
		return r.Profile.Encode(), nil
	}
}

func recordStart(ctx context.Context, c *cli.Context, from *publish.Repository, image *source.Image,
	d *thin.Descriptor, command []string,
) (_ *record.Result, err error) {
	switch port := c.Int("until-port"); {
	case port < 0 || port > math.MaxUint16:
		return nil, program.Usagef(c, "--until-port %d: want a TCP port", port)
	case c.Duration("for") < 0:
		return nil, program.Usagef(c, "--for %v: want a duration, or 0s for no limit", c.Duration("for"))
	}
	layers := *d
	layers.Profile = nil // reads are recorded of the layers' files, not of those that were cut for another start
	descriptor, err := layers.Encode()
	if err != nil {
		return nil, err
	}
	folder := c.String("config-dir")
	if from != nil {
		own, stop, err := record.Publisher(ctx, from, folder)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
		folder = own
	}
	run, err := image.Command()
	if err != nil {
		return nil, err
	}
	if len(command) > 0 {
		run.Args = command
	}
	return record.Run(ctx, record.Config{
		Descriptor: descriptor, Configuration: folder, Command: record.Command(run), Port: c.Int("until-port"),
		For: c.Duration("for"), Agent: c.App.Name + "/" + version, Verbose: c.Bool("verbose"), Output: c.App.ErrWriter,
	})
}

func profileRecord(c *cli.Context) error {
	if c.NArg() == 0 {
		return program.Usagef(c, "want a thin image, and perhaps a command")
	}
	var from *publish.Repository
	if text := c.String("target"); text != "" {
		t, err := sink.Open(text, sink.Options{})
		if err != nil {
			return err
		}
		if from = sink.Publisher(t); from == nil {
			return program.Usagef(c, "--target: want native:DIR")
		}
	}
	return withImage(c, func(ctx context.Context, image *source.Image) error {
		d, err := convert.Thin(ctx, image)
		if err != nil {
			return err
		}
		r, err := recordStart(ctx, c, from, image, d, c.Args().Tail())
		if err != nil {
			return err
		}
		out := c.App.Writer
		if name := c.String("output"); name != "" {
			if err := os.WriteFile(name, r.Profile.Encode(), 0o644); err != nil {
				return err
			}
		} else if _, err := out.Write(r.Profile.Encode()); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.App.ErrWriter, "%d objects and chunks, %s, read in %v until %s\n", r.Pieces,
			units.BytesSize(float64(r.Bytes)), r.Took.Round(time.Millisecond), r.Ended)
		return err
	})
}

func profileShow(c *cli.Context) error {
	if err := needArgs(c, "PROFILE"); err != nil {
		return err
	}
	b, err := readProfile(c.Args().First())
	if err != nil {
		return err
	}
	p, err := objects.ParseProfile(b)
	if err != nil {
		return err
	}
	names, chunks, bytes := p.Count()
	if chunks > 0 { // recorded by an older version
		_, err = fmt.Fprintf(c.App.Writer, "%d objects, %s of them and %d chunks\n", names,
			units.BytesSize(float64(bytes)), chunks)
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%d objects, %s of them\n", names, units.BytesSize(float64(bytes)))
	return err
}
