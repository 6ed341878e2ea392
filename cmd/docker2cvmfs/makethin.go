package main

import (
	"math"
	"slices"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/internal/program"
)

// makeThinCommand does everything for one image.
func makeThinCommand() *cli.Command {
	flags := append(imageFlags(), progressFlags()...)
	flags = append(flags, targetFlags()...)
	return &cli.Command{
		Name:  "make-thin",
		Usage: "convert one image: publish its layers in a repository and write its thin image",
		Description: "The thin image goes to a registry, or to docker-archive:FILE, oci:DIR[:TAG] or docker-daemon:NAME.\n" +
			"Without --output-reference only the layers are published.",
		Flags: slices.Concat(flags, makeThinFlags(),
			[]cli.Flag{refreshFlag(), fetchFlag(), chunkFlag(), profileFlag()}, recordFlags()),
		Action: makeThin,
	}
}

// makeThinFlags say what is converted.
func makeThinFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "input-reference", Aliases: []string{"i"}, Usage: "the `IMAGE` to convert"},
		&cli.StringFlag{Name: "output-reference", Aliases: []string{"o"}, Usage: "where to write the thin `IMAGE`"},
		&cli.BoolFlag{Name: "force", Usage: "write the thin image even if nothing changed"},
	}
}

// targetFlags say where layers go.
func targetFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "repository", Aliases: []string{"r"},
			Usage: "fully qualified name (`FQRN`) of the repository, for example layers.example.org",
		},
		&cli.StringFlag{
			Name: "subdirectory", Aliases: []string{"s"},
			Usage: "`FOLDER` in the repository for the layers", DefaultText: "layers",
		},
		&cli.StringFlag{Name: "layout", Usage: "`LAYOUT` of the layers' folders: layers or ducc", Value: "layers"},
		&cli.StringFlag{
			Name: "target", Usage: "`TARGET` for the layers: native:DIR, cvmfs_server:FQRN or dir:DIR",
			DefaultText: "cvmfs_server:FQRN of --repository",
		},
	}
}

// chunkFlag is how large the chunks are that files of layers are cut into.
func chunkFlag() cli.Flag {
	return &cli.StringFlag{
		Name:        "chunk-size",
		Usage:       "average `SIZE` of the chunks that large files are cut into, as 128KiB; for native:DIR",
		DefaultText: "what DIR/publisher.json says",
	}
}

// chunkSize is what the flag says, in bytes; 0 where it isn't given.
func chunkSize(c *cli.Context) (int, error) {
	text := c.String("chunk-size")
	if text == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(text)
	if err != nil || n <= 0 || n > math.MaxInt32 {
		return 0, program.Usagef(c, "chunk size %q: want a size as 128KiB", text)
	}
	return int(n), nil
}

func refreshFlag() cli.Flag {
	return &cli.BoolFlag{Name: "refresh", Usage: "write what layers converted by older versions lack; name those" +
		" whose blobs must be read for it"}
}

func fetchFlag() cli.Flag {
	return &cli.BoolFlag{Name: "fetch", Usage: "with --refresh: read these blobs"}
}

// converter makes a converter as the flags say. repository is used where they name none.
func converter(c *cli.Context, repository string) (*convert.Converter, error) {
	if c.String("repository") != "" {
		repository = c.String("repository")
	}
	layout, err := convert.ParseLayout(c.String("layout"), c.String("subdirectory"))
	if err != nil {
		return nil, program.Usagef(c, "%v", err)
	}
	if c.String("target") == "" && repository == "" {
		return nil, program.Usagef(c,
			"no target: give --repository on a release manager machine, or --target native:DIR")
	}
	chunk, err := chunkSize(c)
	if err != nil {
		return nil, err
	}
	t, err := sink.Open(c.String("target"), sink.Options{
		FQRN: repository, Prefix: layout.FolderPrefix(), Chunk: chunk,
	})
	if err != nil {
		return nil, err
	}
	refresh := convert.NoRefresh
	switch {
	case c.Bool("fetch") && !c.Bool("refresh"):
		return nil, program.Usagef(c, "--fetch says how --refresh is done: give both")
	case c.Bool("fetch"):
		refresh = convert.RefreshAll
	case c.Bool("refresh"):
		refresh = convert.RefreshKnown
	}
	o := imageOptions(c)
	return &convert.Converter{
		Sink: t, Layout: layout, Input: o, Output: o, Parallel: c.Int("parallel"),
		Force: c.Bool("force"), Refresh: refresh, Recorder: recorder(c, t),
	}, nil
}

func makeThin(c *cli.Context) error {
	if err := needArgs(c); err != nil {
		return err
	}
	return makeThinOf(c, func(job *convert.Job) error { return setProfile(c, job) })
}

// makeThinOf converts the image that the flags name, once adapt has said how.
func makeThinOf(c *cli.Context, adapt func(*convert.Job) error) error {
	if c.String("input-reference") == "" {
		return program.Usagef(c, "no image to convert: give --input-reference")
	}
	input, err := reference(c, c.String("input-reference"))
	if err != nil {
		return err
	}
	job := convert.Job{Input: input}
	if c.IsSet("output-reference") {
		output, err := reference(c, c.String("output-reference"))
		if err != nil {
			return err
		}
		if output.Digested() {
			return program.Usagef(c, "output %s: a digest can't be chosen: give a tag", output)
		}
		job.Output = &output
	}
	if err := adapt(&job); err != nil {
		return err
	}
	conv, err := converter(c, "")
	if err != nil {
		return err
	}
	p := newProgress(c)
	conv.Progress = p.event
	summary, err := conv.Convert(c.Context, job)
	p.close()
	if err != nil {
		return err
	}
	return p.summary(summary)
}
