package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/listing"
)

// repoStatCommand shows an entry.
func repoStatCommand() *cli.Command {
	return &cli.Command{
		Name:      "stat",
		Usage:     "show all that is known of a file or folder",
		ArgsUsage: "FQRN PATH",
		Description: `Shows type, mode, owner, size, time, extended attributes, hard links in the same folder, where the content is in
the repository (an object, or chunks), its compression, and the catalog. No symbolic link is followed. The content is
not fetched.

With --json, prints one line with the keys of repo ls, and mtime_ns, hash, object (its place below the server's URL),
compression, chunks, hardlink_group, same_inode, external, hidden, catalog, and nested_catalog (the counters of the
catalog that begins here, and of those below).`,
		Flags:  append([]cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}}, repoFlags()...),
		Action: repoStat,
	}
}

func repoStat(c *cli.Context) (err error) {
	fqrn, path, err := placeArgs(c)
	if err != nil {
		return err
	}
	r, v, closeAll, err := newest(c, fqrn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	s, err := v.Stat(c.Context, path)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return listing.WriteStatJSON(c.App.Writer, s, r.Expand)
	}
	return listing.WriteStat(c.App.Writer, s, r.Expand)
}
