package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// Stack names an engine whose images are in a containerd of its own, by versions: Docker's major one and containerd's
// minor one. Those that Debian sid has move on with it.
type Stack struct{ Docker, Containerd string }

// The stacks there are: each containerd with each engine. The newest engine is tried most.
var (
	Stack29on21 = Stack{"29", "2.1"}
	Stack28on21 = Stack{"28", "2.1"}
	Stack29on17 = Stack{"29", "1.7"}
	Stack29on24 = Stack{"29", "2.4"}
)

func (s Stack) String() string {
	return fmt.Sprintf("docker %s on containerd %s", s.Docker, s.Containerd)
}

// Find returns the stack's tools, from the cache folder; errors.Is(err, ErrNotFetched) when [FetchAll] would help. Its
// client is the newest there is, with buildx, and its runc, too.
func (s Stack) Find(ctx context.Context, cache string) (*Tools, error) {
	below := func(names ...string) string { return filepath.Join(append([]string{cache}, names...)...) }
	newest := below(sid.folder)
	dockerd, known := map[string]string{
		"28": filepath.Join(newest, "usr/sbin/dockerd"),
		"29": below(dockerdBuild.folder, "bin/dockerd"),
	}[s.Docker]
	containerds, also := map[string]string{
		"1.7": below(newer.folder, "usr/bin"),
		"2.1": filepath.Join(newest, "usr/bin"),
		"2.4": below(containerdBuild.folder, "bin"),
	}[s.Containerd]
	if !known || !also {
		return nil, fmt.Errorf("there is no %v", s)
	}
	t := &Tools{
		Dockerd: dockerd, Docker: filepath.Join(newest, "usr/bin/docker"),
		path:       []string{containerds, filepath.Join(newest, "usr/sbin"), filepath.Join(newest, "usr/bin")},
		containerd: filepath.Join(containerds, "containerd"),
		crictl:     below(crictlBuild.folder, "bin/crictl"),
		plugins:    filepath.Join(newest, "usr/libexec/docker/cli-plugins"),
	}
	var err error
	// What their programs link with beside libc, where the machine lacks it, came with the oldest.
	if t.libs, err = Libraries(below(oldest.folder)); err == nil {
		err = t.try(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%v: %w: %w", s, ErrNotFetched, err)
	}
	return t, nil
}

// Fetch brings what the stack consists of into the cache folder, as the function [Fetch] does for the oldest engine.
func (s Stack) Fetch(ctx context.Context, cache string, progress io.Writer) (*Tools, error) {
	if t, err := s.Find(ctx, cache); err == nil || !errors.Is(err, ErrNotFetched) {
		return t, err
	}
	_, err := Fetch(ctx, cache, progress)
	err = errors.Join(err, fetchSid(ctx, cache, progress))
	if s.Docker == Stack29on21.Docker {
		err = errors.Join(err, dockerdBuild.fetch(ctx, cache, progress))
	}
	switch s.Containerd {
	case Stack29on17.Containerd:
		err = errors.Join(err, fetchNewer(ctx, cache, progress))
	case Stack29on24.Containerd:
		err = errors.Join(err, containerdBuild.fetch(ctx, cache, progress))
	}
	if err != nil {
		return nil, err
	}
	return s.Find(ctx, cache)
}
