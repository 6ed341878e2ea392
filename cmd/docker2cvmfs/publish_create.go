package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/internal/program"
)

func publishCreateCommand() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "create a publisher's folder with keys and an empty repository", ArgsUsage: "DIR FQRN",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "hash", Usage: "hash `ALGORITHM`: sha1 or shake128", Value: "sha1"},
			&cli.StringFlag{Name: "compression", Usage: "`METHOD` to compress files: zlib or none", Value: "zlib"},
			&cli.StringFlag{
				Name:        "storage",
				Usage:       "`URL` of a bucket to publish to: s3://BUCKET/PREFIX[?endpoint=URL&region=NAME&acl=NAME]",
				DefaultText: "DIR/www",
			},
			&cli.StringFlag{
				Name: "keys", Usage: "`FOLDER` of the keys; existing keys are used",
				DefaultText: "DIR/keys",
			},
			&cli.StringFlag{
				Name: "chunk-size", Usage: "average `SIZE` of the chunks that large files are cut into",
				Value: "128KiB",
			},
			&cli.DurationFlag{
				Name: "ttl", Usage: "how long clients wait before they look for a newer revision, as a `DURATION`",
				Value: 4 * time.Minute,
			},
		},
		Action: publishCreate,
	}
}

func publishCreate(c *cli.Context) error {
	if err := needArgs(c, "DIR", "FQRN"); err != nil {
		return err
	}
	ttl := c.Duration("ttl")
	if ttl < time.Second {
		return program.Usagef(c, "ttl of %v", ttl)
	}
	chunk, err := chunkSize(c)
	if err != nil {
		return err
	}
	dir, fqrn := c.Args().Get(0), c.Args().Get(1)
	s := publish.Settings{
		FQRN: fqrn, Algorithm: c.String("hash"), Compression: c.String("compression"), Storage: c.String("storage"),
		Keys: c.String("keys"), AvgChunk: chunk,
		TTL: int(ttl / time.Second),
	}
	if err := publish.Create(c.Context, dir, s, publish.Options{}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: created in %s\n", fqrn, dir)
	return err
}
