package source

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"cvmfs-graphdriver/internal/registry"
)

// openDaemon asks the Docker daemon for an image. The archive comes in no useful order, so that it is kept in an
// unnamed file.
func openDaemon(ctx context.Context, ref Reference, want *selector) (*Image, error) {
	daemon, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("docker daemon: %w", err)
	}
	defer daemon.Close()
	found, err := daemon.ImageInspect(ctx, ref.Name)
	if err != nil {
		return nil, explainDaemon(ref, err)
	}
	// By its id this image alone comes; by the name of a repository all its tags would.
	stream, err := daemon.ImageSave(ctx, []string{found.ID})
	if err != nil {
		return nil, explainDaemon(ref, err)
	}
	f, err := spool(ctx, stream)
	if err = errors.Join(err, stream.Close()); err != nil {
		return nil, err
	}
	return loadArchive(ctx, f, "", want)
}

// explainDaemon says what a daemon's refusal means, and what to do.
func explainDaemon(ref Reference, err error) error {
	switch {
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%w: the daemon has no %s: docker images lists what it has: %w", ErrNoImage, ref.Name,
			registry.Said(err))
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("no Docker daemon answers (DOCKER_HOST names another): %w", err)
	default:
		return fmt.Errorf("docker daemon: %w", registry.Said(err))
	}
}
