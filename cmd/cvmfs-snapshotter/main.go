// Command cvmfs-snapshotter is a snapshotter for containerd, and so for Docker's image store, nerdctl and Kubernetes:
// the layers of thin images are read from CernVM-FS repositories as containers open their files.
//
// Without a command it is the supervisor, which keeps what running containers depend on and starts the server, the same
// program with the command "serve". It exits with 0 when it was told to end, 1 when something failed, 2 when it was
// called wrongly, and 3 when the host doesn't qualify.
//
// GOMEMLIMIT and GOGC tune the runtime. For tests, CVMFS_WITHOUT names, divided by commas, what not to use of the
// kernel: the words of overlayfs.ParseLack, and "resend" (of FUSE requests).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	// A host may have no certificates of authorities: these are Mozilla's.
	_ "golang.org/x/crypto/x509roots/fallback"

	"cvmfs-graphdriver/cvmfs/pac"
	"cvmfs-graphdriver/driver/supervise"
	"cvmfs-graphdriver/internal/hostfs"
	"cvmfs-graphdriver/internal/program"
)

// Set by the linker: -X main.version=… -X main.commit=….
var (
	version = "development"
	commit  = "unknown"
)

func main() {
	pac.Main()
	program.Main(run)
}

// run is the program without its process: it gives the exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	return program.Run(ctx, &cli.App{
		Name:  "cvmfs-snapshotter",
		Usage: "a containerd snapshotter that runs thin images from CernVM-FS",
		Description: "Run it as a service of the host, before containerd. A file with the settings, JSON, has the names of the " +
			"flags as its keys, and \"storage-opts\" as a list; a flag counts for more.",
		Flags: append(flags(), &cli.BoolFlag{Name: "version", Usage: "print the version"}),
		Commands: []*cli.Command{
			{Name: serveCommand, Usage: "what the supervisor starts", Hidden: true, Action: withConfig(serve)},
			program.VersionCommand(version, commit),
		},
		Action: func(c *cli.Context) error {
			switch {
			case c.NArg() > 0:
				return program.OnlyCommands(c)
			case c.Bool("version"):
				return program.VersionCommand(version, commit).Run(c)
			}
			return withConfig(func(ctx context.Context, cfg *config, log *slog.Logger) error {
				return superviseServer(ctx, cfg, log, args[1:])
			})(c)
		},
		Writer: out, ErrWriter: errOut,
	}, args, errUnfit)
}

// serveCommand is the command of the server.
const serveCommand = "serve"

// errUnfit is a host on which the snapshotter can't run.
var errUnfit = errors.New("this host isn't fit")

// withConfig makes an action of something that needs the configuration and a log.
func withConfig(do func(context.Context, *config, *slog.Logger) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		cfg, err := readConfig(c)
		if err != nil {
			return err
		}
		level := slog.LevelInfo
		if cfg.Debug {
			level = slog.LevelDebug
		}
		log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
		return do(c.Context, cfg, log)
	}
}

// superviseServer is the supervisor's life; args are those the program was called with, and the server is.
func superviseServer(ctx context.Context, cfg *config, log *slog.Logger, args []string) error {
	if err := os.MkdirAll(cfg.path("run"), 0o711); err != nil {
		return err
	}
	// containerd, its shims and dockerd mount what is returned to them, each in its own mount namespace. In one that
	// doesn't see what is mounted here, containers could not start.
	switch shared, err := hostfs.Shared(cfg.path("run")); {
	case err != nil:
		return err
	case !shared:
		return fmt.Errorf("%w: mounts below %s are seen by nobody else, as the mount it lies on isn't shared: run \"mount "+
			"--make-rshared /\", and take PrivateMounts, PrivateTmp, ProtectSystem and their like out of the service's unit",
			errUnfit, cfg.Root)
	}
	return supervise.Run(ctx, supervise.Config{
		Socket: cfg.Address, FuseDir: cfg.path("run", "fuse"), Args: append(slices.Clone(args), serveCommand),
		Keep:     true,
		NoResend: slices.Contains(strings.Split(os.Getenv(lackVariable), ","), "resend"), Log: log,
	})
}

// lackVariable names what not to use of the kernel.
const lackVariable = "CVMFS_WITHOUT"

func (c *config) path(elem ...string) string { return filepath.Join(c.Root, filepath.Join(elem...)) }
