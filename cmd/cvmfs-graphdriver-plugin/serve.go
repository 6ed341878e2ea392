package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/graphdriver"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/supervise"
	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/pushback"
	"cvmfs-graphdriver/rootfs"
)

// serve is the server's life: it takes over from the supervisor and answers the kernel and the engine until SIGTERM.
func serve(ctx context.Context, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	in, err := supervise.Inherited()
	if err != nil {
		return err
	}
	n, err := node.Open(nodeConfig(in.Generation, log))
	if err != nil {
		return err
	}
	defer func() {
		if err := n.Close(); err != nil {
			log.Warn("close the object store", "err", err)
		}
	}()
	driver, err := graphdriver.Open(graphdriver.Config{Node: n, Log: log})
	if err != nil {
		return err
	}
	// The kernel first: mounting an overlay asks the object file system.
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() {
		err := fusewire.Serve(in.Fuse, n.Tree(), fusewire.Config{Init: in.Init, Journal: in.Journal, Log: log})
		end(fmt.Errorf("the object file system has ended: %w", cmp.Or(err, errUnmounted)))
	}()
	go n.Run(ctx)
	go driver.Run(ctx)
	log.Info("serving", "version", version, "commit", commit)
	server := graphdriver.NewServer(graphdriver.ServerConfig{
		Driver: driver, Control: control.NewHandler(ctx, control.Config{Node: n, Log: log}), Log: log,
	})
	err = server.Serve(ctx, in.Listener)
	driver.CloseIdle()
	if err != nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// errUnmounted: only the supervisor unmounts, when the plugin ends.
var errUnmounted = errors.New("unmounted")

// nodeConfig is the node inside the plugin.
func nodeConfig(generation string, log *slog.Logger) node.Config {
	return node.Config{
		Root: rootDir, Run: runDir, Generation: generation,
		Kernel:        &overlayfs.Kernel{Lack: overlayfs.ParseLack(os.Getenv(lackVariable)), Scratch: runDir},
		Configuration: cmp.Or(os.Getenv("CVMFS_EXT_CONFIG"), configDir), Defaults: defaults,
		PushBack: cmp.Or(os.Getenv("PUSH_BACK_CONFIG"), pushBackDir) + "/" + pushback.FileName,
		Agent:    "cvmfs-graphdriver-plugin/" + version, Version: version, Commit: commit, Log: log,
	}
}

// defaults reads our own CernVM-FS configuration.
func defaults() ([]byte, error) {
	b, err := os.ReadFile(rootfs.DefaultConf)
	if errors.Is(err, fs.ErrNotExist) {
		return rootfs.Defaults, nil // not in a bundle's root file system
	}
	return b, err
}
