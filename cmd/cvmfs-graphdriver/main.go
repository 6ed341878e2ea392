// Command cvmfs-graphdriver is the host's side of the Docker storage plugin for images that lie unpacked in CernVM-FS.
//
// It exits with 0 when all was done, 1 when something failed, 2 when it was called wrongly, 3 when the host doesn't
// qualify for what was asked, and 4 when something failed and what had been changed of the host is undone.
package main

import (
	"context"
	"io"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/pac"
	"cvmfs-graphdriver/installer/preflight"
	"cvmfs-graphdriver/internal/program"
)

// Set by the linker: -X main.version=… -X main.commit=….
var (
	version = "dev"
	commit  = ""
)

func main() {
	pac.Main()
	program.Main(run)
}

// run is the program without its process: it gives the exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	return program.Run(ctx, &cli.App{
		Name:  "cvmfs-graphdriver",
		Usage: "run Docker images with unpacked layers in CernVM-FS",
		Commands: []*cli.Command{
			installCommand(), upgradeCommand(), uninstallCommand(), testCommand(), statusCommand(), doctorCommand(),
			reloadCommand(), cacheCommand(), thinCommand(), benchCommand(),
			bundleCommand(),
			repoCommand(), program.VersionCommand(version, commit), helloCommand(),
		},
		Writer:    out,
		ErrWriter: errOut,
	}, args, preflight.ErrUnfit)
}
