package main

import (
	"errors"
	"fmt"
	"net"

	"github.com/urfave/cli/v2"

	"cvmfs-graphdriver/cvmfs/publish"
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
	return files.Serve(c.Context, listener)
}
