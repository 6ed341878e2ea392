package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/internal/program"
	"cvmfs-graphdriver/rootfs"
)

// repoCommand looks into repositories, with no daemon.
func repoCommand() *cli.Command {
	return &cli.Command{
		Name:  "repo",
		Usage: "inspect CernVM-FS repositories",
		Subcommands: []*cli.Command{
			repoInfoCommand(), repoLsCommand(), repoStatCommand(), repoCatCommand(), repoTagsCommand(),
			repoVerifyCommand(), repoMountCommand(), repoShowconfigCommand(),
		},
		Action: program.OnlyCommands,
	}
}

// folderArg takes FQRN[/PATH] apart; the path is as package client spells it.
func folderArg(arg string) (fqrn, path string) {
	fqrn, path, _ = strings.Cut(arg, "/")
	if path = strings.TrimRight(path, "/"); path != "" {
		path = "/" + path
	}
	return fqrn, path
}

// placeArgs takes FQRN PATH, or FQRN/PATH.
func placeArgs(c *cli.Context) (fqrn, path string, err error) {
	switch c.NArg() {
	case 1:
		fqrn, path = folderArg(c.Args().Get(0))
	case 2:
		fqrn, path = folderArg(c.Args().Get(0) + "/" + strings.TrimLeft(c.Args().Get(1), "/"))
	default:
		err = program.Usagef(c, "want %s", c.Command.ArgsUsage)
	}
	return fqrn, path, err
}

// repoFlags say where a repository is and whom to trust.
func repoFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config-dir", Usage: "`FOLDER` with the CernVM-FS configuration", Value: config.HostDir},
		&cli.StringFlag{
			Name:  "server-url",
			Usage: "`URL` of the repository on a server (separate several with ;), instead of CVMFS_SERVER_URL",
		},
		&cli.StringFlag{
			Name:  "public-key",
			Usage: "`FILE` with a master public key (separate several with :), instead of the configured keys",
		},
		&cli.StringFlag{Name: "proxy", Usage: "DIRECT, or `PROXIES` in the format of CVMFS_HTTP_PROXY, instead of CVMFS_HTTP_PROXY"},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "write debug messages to stderr"},
	}
}

// openRepository opens a repository as configured, save for what the flags say otherwise. State is kept in dir.
func openRepository(c *cli.Context, fqrn, dir string) (*client.Repository, error) {
	g := config.Given{
		Servers: c.String("server-url"), PublicKeys: c.String("public-key"), Proxies: c.String("proxy"),
	}
	if g.Proxies != "" {
		if _, err := config.ParseProxies(g.Proxies); err != nil {
			return nil, program.Usagef(c, "--proxy: %v", err)
		}
	}
	cfg, err := configFolder(c, dir).LoadGiven(fqrn, g)
	if errors.Is(err, config.ErrNotConfigured) {
		return nil, fmt.Errorf("%w; or give --server-url, --public-key and --proxy", err)
	}
	if err != nil {
		return nil, err
	}
	log := logger(c)
	for _, f := range cfg.Findings {
		if log != nil {
			log.Warn("configuration", "kind", string(f.Kind), "note", f.String())
		}
	}
	return client.Open(cfg, client.Options{Dir: dir, UserAgent: c.App.Name + "/" + version, Log: log})
}

// configFolder is the configuration folder that the flags name. The configuration repository's files are kept in dir.
func configFolder(c *cli.Context, dir string) config.Folder {
	folder := c.String("config-dir")
	return config.Folder{
		Dir: folder, Shown: folder, Defaults: rootfs.Defaults,
		ConfigRepository: client.ConfigRepository(c.Context, client.Options{
			Dir: dir, UserAgent: c.App.Name + "/" + version, Log: logger(c),
		}),
	}
}

func logger(c *cli.Context) *slog.Logger {
	if !c.Bool("verbose") {
		return nil
	}
	return slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// newest opens a repository in a folder of its own, which close removes, and gives its newest revision.
func newest(c *cli.Context, fqrn string) (r *client.Repository, v *client.Revision, closeAll func() error, err error) {
	dir, err := os.MkdirTemp("", "cvmfs-graphdriver-")
	if err != nil {
		return nil, nil, nil, err
	}
	closeAll = func() error { return os.RemoveAll(dir) }
	if r, err = openRepository(c, fqrn, dir); err == nil {
		v, err = r.Newest(c.Context)
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, closeAll())
	}
	return r, v, closeAll, nil
}
