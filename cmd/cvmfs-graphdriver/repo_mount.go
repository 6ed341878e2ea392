package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/driver/options"
	"cvmfs-graphdriver/driver/repomount"
	"cvmfs-graphdriver/internal/program"
)

// repoMountCommand mounts a folder of a repository.
func repoMountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount a repository's newest revision, or a folder of it, read-only",
		ArgsUsage: "FQRN[/PATH] DIR",
		Description: `Stays in the foreground and unmounts on Ctrl-C or SIGTERM. Shows the revision that is the newest at the
time of the call. All names are read before the mount appears; content is fetched and verified when it is read.

The folder is shown as it is published, not as a layer of an image: whiteouts (.wh.…) and .cvmfscatalog are files,
owners are those of the repository. Extended attributes that are instructions to overlayfs are left out; the view erofs
does not show devices 0:0.`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{
				Name:  "view",
				Usage: "erofs (mounted by the kernel), fuse (served by this program) or auto: `VIEW`", Value: "auto",
			},
			&cli.StringFlag{Name: "cache", Usage: "`FOLDER` that keeps what was fetched; without it, nothing is kept"},
		}, repoFlags()...),
		Action: repoMount,
	}
}

func repoMount(c *cli.Context) (err error) {
	if c.NArg() != 2 {
		return program.Usagef(c, "want two arguments, FQRN[/PATH] and DIR")
	}
	fqrn, path := folderArg(c.Args().Get(0))
	want := c.String("view")
	if want != options.Auto && want != options.EROFS && want != options.FUSE {
		return program.Usagef(c, "--view: there is auto, erofs and fuse")
	}
	dir, err := repomount.MountPoint(c.Args().Get(1))
	if err != nil {
		return err
	}
	cache, leave, err := repomount.OpenCache(c.String("cache"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave()) }()
	r, err := openRepository(c, fqrn, filepath.Join(cache, "repository"))
	if err != nil {
		return err
	}
	v, err := r.Newest(c.Context)
	if err != nil {
		return err
	}
	m, err := repomount.Mount(c.Context, repomount.Config{
		Repository: r, Revision: v, FQRN: fqrn, Path: path, Dir: dir, Cache: cache, View: want, Log: logger(c),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	fmt.Fprintf(c.App.Writer, "cvmfs://%s%s, revision %d, is mounted on %s by %s\n", fqrn, path, v.Number, dir, m.By())
	return m.Wait(c.Context)
}
