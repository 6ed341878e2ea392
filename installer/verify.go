package installer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/pkg/stdcopy"
)

const (
	// label marks the images and containers made to see whether they run.
	label = "cvmfs-graphdriver.test"
	// runWait is how long a container may take to end; one that hasn't ended then has been seen to run.
	runWait = 30 * time.Second
	// saidLimit bounds what is kept of what a container says, in bytes.
	saidLimit = 64 << 10
)

// runOwn loads an image made here, runs it and removes it. Nothing is pulled.
func (e *Engine) runOwn(ctx context.Context, program string) (err error) {
	token := rand.Text()
	ref := "cvmfs-graphdriver-test:" + strings.ToLower(token)
	archive, err := testArchive(program, ref)
	if err != nil {
		return fmt.Errorf("make a test image: %w", err)
	}
	defer func() { err = errors.Join(err, e.removeImage(context.WithoutCancel(ctx), ref)) }()
	if err := errors.Join(e.loadImage(ctx, archive), archive.Close()); err != nil {
		return err
	}
	_, err = e.run(ctx, ref, []string{token}, func(id string) error { return e.checkWord(ctx, id, token) })
	return err
}

// checkWord looks into a container of the test image for the word it was to write. What it says is no proof: engines
// lose what a process says that ends before they have opened its pipes, which is one in a hundred on a busy host.
func (e *Engine) checkWord(ctx context.Context, id, want string) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	archive, _, err := e.api.CopyFromContainer(ctx, id, wordFile)
	if err != nil {
		return fmt.Errorf("read what the test image wrote: %w", err)
	}
	defer archive.Close() // only read from
	r := tar.NewReader(archive)
	if _, err := r.Next(); err != nil {
		return fmt.Errorf("read what the test image wrote: %w", err)
	}
	got, err := io.ReadAll(io.LimitReader(r, saidLimit))
	if err != nil {
		return fmt.Errorf("read what the test image wrote: %w", err)
	}
	if string(got) != want {
		return fmt.Errorf("run the test image: it wrote %q, not the word it was given", shorten(string(got)))
	}
	return nil
}

// runImage runs an image, pulled if need be, with its own command. An image that was pulled stays. Whether it is thin
// isn't looked at.
func (e *Engine) runImage(ctx context.Context, ref string, _ bool) (outcome string, err error) {
	pulled, err := e.have(ctx, ref)
	if err != nil {
		return "", err
	}
	said, err := e.run(ctx, ref, nil, nil)
	if err != nil {
		return "", err
	}
	if pulled {
		ref += ", pulled,"
	}
	return runs(ref, said), nil
}

// runs tells of an image that has run.
func runs(ref, said string) string {
	if said = shorten(said); said != "" {
		return fmt.Sprintf("%s runs and says %q", ref, said)
	}
	return ref + " runs"
}

// run runs a container to its end, or for a while, and gives what it said, as far as the engine has it. It has no
// network and is removed afterwards. check, if it isn't nil, looks at one that has ended well.
func (e *Engine) run(ctx context.Context, ref string, args []string,
	check func(id string) error,
) (said string, err error) {
	made, err := e.api.ContainerCreate(ctx,
		&container.Config{Image: ref, Cmd: args, Labels: map[string]string{label: "1"}},
		// A log that can be read whatever the engine's own log driver is.
		&container.HostConfig{NetworkMode: "none", LogConfig: container.LogConfig{Type: "json-file"}}, nil, nil, "")
	if err != nil {
		return "", fmt.Errorf("create a container of %s: %w", ref, err)
	}
	defer func() { err = errors.Join(err, e.RemoveContainer(context.WithoutCancel(ctx), made.ID)) }()
	waiting, cancel := context.WithTimeout(ctx, runWait)
	defer cancel()
	ended, failed := e.api.ContainerWait(waiting, made.ID, container.WaitConditionNextExit)
	if err := e.api.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
		return "", fmt.Errorf("start a container of %s: %w", ref, err)
	}
	var code int64
	select {
	case end := <-ended:
		code = end.StatusCode
	case err := <-failed:
		if ctx.Err() != nil || waiting.Err() == nil {
			return "", fmt.Errorf("wait for a container of %s: %w", ref, err)
		}
	}
	said, err = e.said(ctx, made.ID)
	switch {
	case err != nil:
	case code != 0:
		err = endedWith(ref, code, said)
	case check != nil:
		err = check(made.ID)
	}
	return said, err
}

func endedWith(ref string, code int64, said string) error {
	return fmt.Errorf("run %s: it ended with %d and said %q", ref, code, shorten(said))
}

// said returns what a container has written to its output and its error output.
func (e *Engine) said(ctx context.Context, id string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	log, err := e.api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		return "", fmt.Errorf("read what a container said: %w", err)
	}
	defer log.Close() // only read from
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, io.LimitReader(log, saidLimit)); err != nil &&
		!errors.Is(err, io.ErrUnexpectedEOF) {
		return "", fmt.Errorf("read what a container said: %w", err)
	}
	return out.String(), nil
}

// clean removes containers and images that a run which was cut off has left.
func (e *Engine) clean(ctx context.Context) error {
	ours := filters.NewArgs(filters.Arg("label", label))
	containers, err := e.api.ContainerList(ctx, container.ListOptions{All: true, Filters: ours})
	if err != nil {
		return fmt.Errorf("look for test containers of an earlier run: %w", err)
	}
	for _, c := range containers {
		err = errors.Join(err, e.RemoveContainer(ctx, c.ID))
	}
	images, listErr := e.api.ImageList(ctx, image.ListOptions{Filters: ours})
	if listErr != nil {
		return errors.Join(err, fmt.Errorf("look for test images of an earlier run: %w", listErr))
	}
	for _, i := range images {
		err = errors.Join(err, e.removeImage(ctx, i.ID))
	}
	return err
}

// shorten makes what a container said fit into a line.
func shorten(said string) string {
	const limit = 120
	first, rest, _ := strings.Cut(strings.TrimSpace(said), "\n")
	if len(first) > limit {
		return strings.ToValidUTF8(first[:limit], "") + "…"
	}
	if rest != "" {
		first += " …"
	}
	return first
}
