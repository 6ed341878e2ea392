package main

import (
	"errors"
	"io"
	"math"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/internal/program"
)

// repoCatCommand prints a file.
func repoCatCommand() *cli.Command {
	return &cli.Command{
		Name:      "cat",
		Usage:     "print the content of a file",
		ArgsUsage: "FQRN PATH",
		Description: `Prints bytes that were verified. Of a file in chunks, only those with bytes of the range are fetched, one after
the other; a file that is one object is fetched whole first. More than 1 MiB is kept in the folder for temporary files
until it is printed. If a chunk can't be had, what comes before it was printed, and the exit code is 1.`,
		Flags: append([]cli.Flag{
			&cli.Int64Flag{Name: "offset", Usage: "begin at this `BYTE`"},
			&cli.Int64Flag{Name: "length", Usage: "print no more than so many `BYTES`", Value: math.MaxInt64, DefaultText: "all"},
		}, repoFlags()...),
		Action: repoCat,
	}
}

func repoCat(c *cli.Context) (err error) {
	fqrn, path, err := placeArgs(c)
	if err != nil {
		return err
	}
	offset, length := c.Int64("offset"), c.Int64("length")
	if offset < 0 || length < 0 {
		return program.Usagef(c, "--offset and --length can't be negative")
	}
	_, v, closeAll, err := newest(c, fqrn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	content, err := v.OpenPath(c.Context, path, offset, length)
	if err != nil {
		return err
	}
	defer content.Close() // was only read from
	_, err = io.Copy(c.App.Writer, content)
	return err
}
