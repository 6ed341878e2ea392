// Command cvmfs-graphdriver-plugin is the Docker storage-driver plugin: layers are files, and the layers of thin images are read
// from CernVM-FS repositories as containers open their files.
//
// Without an argument it is the supervisor, process 1 of the plugin, which keeps what running containers depend on and starts the
// server, the same program with the argument "serve". "version" prints the version.
//
// What it takes from its environment: DEBUG=1 logs what a maintainer wants to know. CVMFS_EXT_CONFIG is the folder with the
// CernVM-FS configuration, /etc/cvmfs by default. GOMEMLIMIT and GOGC tune the runtime. For tests, CVMFS_WITHOUT names, divided by
// commas, what not to use of the kernel: the words of overlayfs.ParseLack, and "resend" (of FUSE requests).
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	// The plugin's root file system has no certificates of authorities: these are Mozilla's.
	_ "golang.org/x/crypto/x509roots/fallback"

	"cvmfs-graphdriver/driver/supervise"
	"cvmfs-graphdriver/rootfs"
)

// Set by the linker.
var (
	version = "development"
	commit  = "unknown"
)

// Places inside the plugin.
const (
	rootDir   = rootfs.PropagatedMount // what the engine sees
	runDir    = "/run/cvmfs"
	fuseDir   = runDir + "/fuse"
	socket    = "/run/docker/plugins/plugin.sock"
	configDir = "/etc/cvmfs"
)

func main() {
	log := slog.New(newHandler(os.Stdout, os.Stderr, os.Getenv("DEBUG")))
	if err := run(context.Background(), os.Args[1:], log); err != nil {
		log.Error("the plugin ends", "err", err)
		os.Exit(1)
	}
}

// lackVariable names what not to use of the kernel.
const lackVariable = "CVMFS_WITHOUT"

// noResend reports whether FUSE requests are not to be asked for again, as on a kernel that can't send them again.
func noResend() bool { return slices.Contains(strings.Split(os.Getenv(lackVariable), ","), "resend") }

func run(ctx context.Context, args []string, log *slog.Logger) error {
	switch {
	case len(args) == 0:
		return supervise.Run(ctx, supervise.Config{
			Socket: socket, FuseDir: fuseDir, Args: []string{"serve"}, NoResend: noResend(), Log: log,
		})
	case len(args) == 1 && args[0] == "serve":
		return serve(ctx, log)
	case len(args) == 1 && args[0] == "version":
		_, err := fmt.Printf("cvmfs-graphdriver-plugin %s (%s)\n", version, commit)
		return err
	}
	return fmt.Errorf("arguments %q: want none, %q or %q", args, "serve", "version")
}
