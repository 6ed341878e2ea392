// Command docker2cvmfs turns container images into thin images, whose layers lie unpacked in a CernVM-FS repository,
// and publishes such repositories.
//
// It exits with 0 when all was done, 1 when something failed, 2 when it was called wrongly, and 3 when the host or the
// repository doesn't qualify for what was asked.
package main

import (
	"context"
	"io"
	"os"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/cvmfs/pac"
	"cvmfs-graphdriver/driver/record"
	"cvmfs-graphdriver/internal/program"
)

// Set by the linker: -X main.version=… -X main.commit=….
var (
	version = "dev"
	commit  = ""
)

// memoryLimit is where the garbage collector works harder, unless GOMEMLIMIT says otherwise, in bytes.
const memoryLimit = 150 << 20

func main() {
	pac.Main()
	record.Main()
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	program.Main(run)
}

// run is the program without its process: it gives the exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	return program.Run(ctx, &cli.App{
		Name:  "docker2cvmfs",
		Usage: "convert container images to thin images with their layers in CernVM-FS",
		Flags: imageFlags(),
		Commands: []*cli.Command{
			pullCommand(), thinCommand(), makeThinCommand(), convertCommand(), loopCommand(), gcCommand(),
			profileCommand(), publishCommand(), receiveCommand(),
			manifestCommand(), configCommand(),
			program.VersionCommand(version, commit),
		},
		Writer:    out,
		ErrWriter: errOut,
	}, args, sink.ErrUnfit)
}
