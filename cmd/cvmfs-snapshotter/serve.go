package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/driver/node"
	"cvmfs-graphdriver/driver/snapshotter"
	"cvmfs-graphdriver/driver/supervise"
	"cvmfs-graphdriver/internal/fusewire"
	"cvmfs-graphdriver/internal/overlayfs"
	"cvmfs-graphdriver/rootfs"
)

// serve is the server's life: it takes over from the supervisor and answers the kernel and containerd until ctx ends.
func serve(ctx context.Context, cfg *config, log *slog.Logger) error {
	in, err := supervise.Inherited()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	server, drained := snapshotter.NewServer(log), make(chan struct{})
	group.Go(func() error {
		defer close(drained)
		return server.Serve(ctx, in.Listener)
	})
	group.Go(func() error { return answer(ctx, cfg, in, server, drained, log) })
	return group.Wait()
}

// answer opens what the host has, has the server answer by it, and closes it when the last call has been answered.
func answer(
	ctx context.Context, cfg *config, in *supervise.Inheritance, server *snapshotter.Server, drained <-chan struct{},
	log *slog.Logger,
) error {
	n, err := node.Open(nodeConfig(cfg, in.Generation, log))
	if err != nil {
		return err
	}
	defer func() {
		if err := n.Close(); err != nil {
			log.Warn("close the object store", "err", err)
		}
	}()
	containerd, err := connect(cfg.Containerd)
	if err != nil {
		return err
	}
	defer containerd.Close()
	// Before the kernel is answered: containers that outlived a former server ask for what their images name. And the
	// kernel before containerd: mounting an overlay asks the object file system.
	s, err := snapshotter.Open(snapshotter.Config{Node: n, Settings: cfg.settings, Containerd: containerd, Log: log})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		ended <- fusewire.Serve(in.Fuse, n.Tree(), fusewire.Config{Init: in.Init, Journal: in.Journal, Log: log})
	}()
	server.Ready(s, snapshotter.NewDiffer(s, containerd))
	log.Info("serving", "version", version, "commit", commit, "view", n.ViewInUse())
	go n.Run(ctx)
	go s.Run(ctx)
	go command(ctx, cfg, n, log)
	select {
	case err := <-ended:
		return fmt.Errorf("the object file system has ended: %w", cmp.Or(err, errUnmounted))
	case <-drained:
		return nil
	}
}

// connect returns a connection to containerd, which isn't made yet. As containerd's own clients do, it asks soon again
// for one that isn't there, however long it has been away: by default that would be after two minutes, and whoever
// pulls meanwhile is refused.
func connect(socket string) (*grpc.ClientConn, error) {
	again := backoff.DefaultConfig
	again.BaseDelay, again.MaxDelay = 100*time.Millisecond, time.Second
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize)))
}

// command answers commands until ctx ends. Containers don't depend on it: where it can't, that is told and no more.
func command(ctx context.Context, cfg *config, n *node.Node, log *slog.Logger) {
	if err := control.NewHandler(ctx, control.Config{Node: n, Log: log}).Serve(ctx, cfg.Control); err != nil {
		log.Error("cvmfs-graphdriver finds no node here", "err", err)
	}
}

// errUnmounted: only the supervisor unmounts, when it ends.
var errUnmounted = errors.New("unmounted")

func nodeConfig(cfg *config, generation string, log *slog.Logger) node.Config {
	return node.Config{
		Root: cfg.Root, Run: cfg.path("run"), Generation: generation, Nested: true,
		Kernel:        &overlayfs.Kernel{Lack: overlayfs.ParseLack(os.Getenv(lackVariable)), Scratch: cfg.path("run")},
		Configuration: cfg.Configuration, Defaults: func() ([]byte, error) { return rootfs.Defaults, nil },
		PushBack: cfg.PushBack,
		Agent:    "cvmfs-snapshotter/" + version, Version: version, Commit: commit, Log: log,
	}
}
