package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/publish"
)

// The bounds of the small server: a client that says nothing is sent away.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	lastRequests  = 10 * time.Second // that are on their way when it is ended
)

func publishServeCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "serve a repository over HTTP, for trying out", ArgsUsage: "DIR",
		Flags:  []cli.Flag{&cli.StringFlag{Name: "listen", Usage: "`HOST:PORT` to listen on", Value: "127.0.0.1:8000"}},
		Action: withRepository(publishServe),
	}
}

func publishServe(c *cli.Context, r *publish.Repository) error {
	files, err := publish.NewServer(r)
	if err != nil {
		return err
	}
	defer files.Close()
	listener, err := (&net.ListenConfig{}).Listen(c.Context, "tcp", c.String("listen"))
	if err != nil {
		return fmt.Errorf("serve %s: %w", r.FQRN(), err)
	}
	if _, err := fmt.Fprintf(c.App.Writer, "serving http://%s/cvmfs/%s\n", listener.Addr(), r.FQRN()); err != nil {
		return errors.Join(err, listener.Close())
	}
	return serveUntilDone(c.Context, &http.Server{
		Handler: files, ReadHeaderTimeout: headerTimeout,
		IdleTimeout: idleTimeout,
	}, listener)
}

// serveUntilDone serves until ctx ends, and then lets requests that are on their way end.
func serveUntilDone(ctx context.Context, server *http.Server, listener net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastRequests)
	defer cancel()
	if server.Shutdown(last) != nil {
		return server.Close()
	}
	return nil
}
