// Command cvmfs-graphdriver-plugin is the Docker storage-driver plugin: layers are files, and the layers of thin images
// are read from CernVM-FS repositories as containers open their files.
//
// Without an argument it is the supervisor, process 1 of the plugin, which keeps what running containers depend on and
// starts the server, the same program with the argument "serve". "version" prints the version. Outside of a plugin
// nothing is started: it says what it is.
//
// What it takes from its environment: DEBUG=1 logs what a maintainer wants to know. CVMFS_EXT_CONFIG is the folder with
// the CernVM-FS configuration, /etc/cvmfs by default; PUSH_BACK_CONFIG that with the settings of push-back, the mount
// point of minio_ext_config by default. GOMEMLIMIT and GOGC tune the runtime. For tests, CVMFS_WITHOUT
// names, divided by commas, what not to use of the kernel: the words of overlayfs.ParseLack, and "resend" (of FUSE
// requests).
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	// The plugin's root file system has no certificates of authorities: these are Mozilla's.
	_ "golang.org/x/crypto/x509roots/fallback"

	"cvmfs-graphdriver/cvmfs/pac"
	"cvmfs-graphdriver/driver/supervise"
	"cvmfs-graphdriver/internal/hostfs"
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
	// mount point of minio_ext_config
	pushBackDir = "/minio_ext_config"
)

// byHand is for people who start the program by hand.
const byHand = `cvmfs-graphdriver-plugin is the Docker storage-driver plugin. The Docker engine starts it inside the plugin, without arguments.
Started by hand, it only prints information:

  cvmfs-graphdriver-plugin version   print the version
  cvmfs-graphdriver-plugin help      print this text

To make the plugin the storage driver of a host, run: cvmfs-graphdriver install
To show what is running on a host, run:               cvmfs-graphdriver status
`

// Exit codes, as those of the other programs.
const (
	exitFailed = 1
	exitUsage  = 2
)

// errUsage is a call that starts nothing.
var errUsage = errors.New("called wrongly")

func main() {
	pac.Main()
	log := slog.New(newHandler(os.Stdout, os.Stderr, os.Getenv("DEBUG")))
	err := run(context.Background(), os.Args[1:], log)
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "cvmfs-graphdriver-plugin: %v\n\n%s", err, byHand)
		os.Exit(exitUsage)
	case err != nil:
		log.Error("the plugin ends", "err", err)
		os.Exit(exitFailed)
	}
}

// lackVariable names what not to use of the kernel.
const lackVariable = "CVMFS_WITHOUT"

// noResend reports whether FUSE requests are not to be asked for again, as on a kernel that can't send them again.
func noResend() bool { return slices.Contains(strings.Split(os.Getenv(lackVariable), ","), "resend") }

// inPlugin reports whether this is a plugin's root file system: no host has that folder (ADR 3).
func inPlugin() bool {
	info, err := os.Stat(rootDir)
	return err == nil && info.IsDir()
}

// seen returns an error where nobody sees what is mounted in the folder that the engine shares with the plugin. An
// engine that starts after a kill ends the plugin that has outlived it and starts the next one, and meanwhile takes off
// what is mounted in the former one's folder, and the folder itself, which the next one may get unshared then (ADR 36).
// The engine starts a plugin anew that ends, once it has done with the end of the former one, and shares the folder
// first.
func seen(log *slog.Logger) error {
	switch unseen, err := hostfs.Unseen(rootDir); {
	case err != nil:
		log.Warn("whether the engine sees what is mounted here can't be told", "err", err)
	case unseen:
		return fmt.Errorf("the engine has unmounted the folder that it shares with the plugin, %s, and doesn't see "+
			"what is mounted there: it is to start the plugin anew", rootDir)
	}
	return nil
}

// supervised runs the supervisor. It looks again for a while, ever less often, whether it is seen, and ends if it
// isn't: the engine may be at the unmounting still when it starts the next plugin, which takes as long as the kernel
// writes back what is dirty below an overlay. Later a plugin has containers that run, and isn't ended.
func supervised(ctx context.Context, log *slog.Logger) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	unseen := make(chan error, 1)
	go func() {
		for pause := time.Second; pause <= lastPause; pause *= 2 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			if err := seen(log); err != nil {
				unseen <- err
				end()
				return
			}
		}
	}()
	err := supervise.Run(ctx, supervise.Config{
		Socket: socket, FuseDir: fuseDir, Args: []string{"serve"}, NoResend: noResend(), Log: log,
	})
	select {
	case why := <-unseen:
		return errors.Join(why, err)
	default:
		return err
	}
}

// lastPause is the longest between two looks, the last of which is two minutes after the start.
const lastPause = 64 * time.Second

func run(ctx context.Context, args []string, log *slog.Logger) error {
	switch {
	case len(args) == 0 && !inPlugin():
		return fmt.Errorf("%w: this is no plugin, there is no %s", errUsage, rootDir)
	case len(args) == 0:
		if err := seen(log); err != nil {
			return err
		}
		return supervised(ctx, log)
	case len(args) > 1:
		return fmt.Errorf("%w: arguments %.200q", errUsage, args)
	}
	switch args[0] {
	case "serve":
		err := serve(ctx, log)
		if errors.Is(err, supervise.ErrNotSupervised) {
			err = fmt.Errorf("%w: %w", errUsage, err)
		}
		return err
	case "version", "--version", "-version", "-v":
		_, err := fmt.Printf("cvmfs-graphdriver-plugin %s (%s)\n", version, commit)
		return err
	case "help", "--help", "-help", "-h":
		_, err := fmt.Print(byHand)
		return err
	}
	return fmt.Errorf("%w: argument %.200q", errUsage, args[0])
}
