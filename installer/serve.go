package installer

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"cvmfs-graphdriver/bundle"
)

// serve has this process be a registry on loopback that holds a bundle, until stop. The engine speaks plain HTTP to it,
// as it does to every registry on loopback.
func serve(ctx context.Context, b *bundle.Bundle) (ref string, stop func() error, err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler:           registry.New(registry.Logger(log.New(io.Discard, "", 0))),
	}
	go server.Serve(listener) // ends with Close
	ref = listener.Addr().String() + "/cvmfs-graphdriver:latest"
	if _, err := bundle.Push(ctx, ref, []*bundle.Bundle{b}, bundle.Remote{}); err != nil {
		return "", nil, errors.Join(err, server.Close())
	}
	return ref, server.Close, nil
}
