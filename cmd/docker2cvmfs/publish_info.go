package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/publish"
)

func publishInfoCommand() *cli.Command {
	return &cli.Command{
		Name: "info", Usage: "show revision, whitelist expiry, tags and size of a repository", ArgsUsage: "DIR",
		Flags:  []cli.Flag{jsonFlag()},
		Action: withRepository(publishInfo),
	}
}

func publishInfo(c *cli.Context, r *publish.Repository) error {
	i, err := r.Info(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c, i)
	}
	expires := i.Expires.Format(time.RFC3339)
	if i.Expired {
		expires += " (over: sign it anew with publish resign)"
	}
	n := i.Counters
	_, err = fmt.Fprintf(c.App.Writer,
		"repository  %s\nstorage     %s\nrevision    %d of %s\nroot        %s\nwhitelist   until %s\n"+
			"certificate %s\ntags        %d\ncontent     %s in %d files, %d folders, %d symbolic links\n",
		i.FQRN, i.Storage, i.Revision, i.Published.Format(time.RFC3339), i.Root, expires,
		i.Certificate, i.Tags, size(n.FileSize), n.Regular, n.Dir, n.Symlink)
	return err
}
