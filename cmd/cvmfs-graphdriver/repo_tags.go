package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/listing"
	"cvmfs-graphdriver/internal/program"
)

// repoTagsCommand lists the names of revisions.
func repoTagsCommand() *cli.Command {
	return &cli.Command{
		Name:      "tags",
		Usage:     "list the tags of a repository, and its branches",
		ArgsUsage: "FQRN",
		Description: `Prints a line for each tag, the newest revision first: name, revision, time of the tag, root hash and
description. A repository without tags prints nothing.

With --json, prints one object: fqrn, tags (name, revision, time, root_hash, size, branch, description), branches (name,
parent, initial_revision).`,
		Flags:  append([]cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}}, repoFlags()...),
		Action: repoTags,
	}
}

func repoTags(c *cli.Context) (err error) {
	if c.NArg() != 1 {
		return program.Usagef(c, "want one argument, FQRN")
	}
	_, v, closeAll, err := newest(c, c.Args().First())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	h, err := v.Tags(c.Context)
	if err != nil {
		return err
	}
	tags := listing.TagsOf(h)
	if c.Bool("json") {
		return listing.WriteIndented(c.App.Writer, tags)
	}
	return tags.Write(c.App.Writer)
}
