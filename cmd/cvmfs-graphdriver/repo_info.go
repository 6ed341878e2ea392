package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/listing"
	"cvmfs-graphdriver/internal/program"
)

// repoInfoCommand tells of a repository and its servers.
func repoInfoCommand() *cli.Command {
	return &cli.Command{
		Name:      "info",
		Usage:     "show the newest revision, who signed it, its size, and how servers and proxies answered",
		ArgsUsage: "FQRN",
		Description: `Asks for the newest revision, verifies it, and shows what is known of it. The sizes are the publisher's own
counters. Times are those that servers and proxies took to begin their answers, connecting included; servers that were
not needed were not asked.

With --json, prints one object: fqrn, revision, published, root_hash, ttl (seconds), certificate (SHA-1 fingerprint),
whitelist_expires, history_hash, metainfo_hash, garbage_collectable, content, servers and proxies (name, answers,
failures, seconds, error).`,
		Flags:  append([]cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}}, repoFlags()...),
		Action: repoInfo,
	}
}

func repoInfo(c *cli.Context) (err error) {
	if c.NArg() != 1 {
		return program.Usagef(c, "want one argument, FQRN")
	}
	r, v, closeAll, err := newest(c, c.Args().First())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	i, err := listing.InfoOf(c.Context, r, v)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return listing.WriteIndented(c.App.Writer, i)
	}
	return i.Write(c.App.Writer)
}
