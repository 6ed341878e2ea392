package main

import (
	"bufio"
	"errors"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/listing"
	"cvmfs-graphdriver/internal/program"
)

// repoLsCommand lists what is in a repository.
func repoLsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ls",
		Usage:     "list the content of a repository's newest revision",
		ArgsUsage: "FQRN[/PATH]",
		Description: `Lists a folder, or everything below it with -R, sorted by the bytes of the paths. Verifies signatures and catalogs, and with
--content each file. Keeps nothing: each call shows what the servers have at that time.

With --json, each line is an object with sorted keys: device ("MAJOR:MINOR"), gid, mode (octal), mtime, nlink, path, same_inode_as
(the first path of a hard-link group), sha256 (with --content), size (files), target (symbolic links, variables replaced), type,
uid, xattrs_hex. Bytes that aren't UTF-8 are written as \udc80 to \udcff, which is what Python's os.fsencode takes.`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"R"}, Usage: "list everything below"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per line"},
			&cli.BoolFlag{Name: "content", Usage: "read every file and print its SHA-256"},
		}, repoFlags()...),
		Action: repoLs,
	}
}

func repoLs(c *cli.Context) (err error) {
	if c.NArg() != 1 {
		return program.Usagef(c, "want one argument, FQRN[/PATH]")
	}
	fqrn, path := folderArg(c.Args().First())
	r, v, closeAll, err := newest(c, fqrn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	out := bufio.NewWriterSize(c.App.Writer, 64<<10)
	write := listing.WritePlain
	if c.Bool("json") {
		write = listing.WriteJSON
	}
	err = listing.List(c.Context, v, path, listing.Options{Recursive: c.Bool("recursive"), Content: c.Bool("content")},
		func(i *listing.Item) error {
			shown, node, entry := *i, *i.Node, *i.Entry // the walk goes on with the item's own
			entry.Mode = r.ShownMode(entry.Mode)
			shown.Node, node.Entry = &node, &entry
			return write(out, &shown, r.Expand)
		})
	return errors.Join(err, out.Flush())
}
