package containerd

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/cio"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// TestNamespace is containerd's namespace in which images are run to see whether they do. It is there only as long as
// one runs, and all that is in it goes with it.
const TestNamespace = "cvmfs-graphdriver-test"

const (
	runWait   = 30 * time.Second // for a container to end; one that hasn't then has been seen to run
	outWait   = 10 * time.Second // for the last of what one said that has ended
	heldFor   = time.Hour        // what was made is held, if nobody removes it
	testWait  = 15 * time.Minute // for all of it: images may be large
	clearWait = 5 * time.Minute  // for its removal: containerd's collection also takes what others have let go of
	saidLimit = 64 << 10         // bytes that are kept of what a container says
)

// Run puts an image into containerd, has it unpacked by a snapshotter, runs a container of it to its end, or for a
// while, and removes it all, with what an earlier run has left that was killed. It returns what the container said and
// its exit code, 0 of one that was still running. Only one may be on its way at a time.
func (c *Client) Run(ctx context.Context, snapshotter string, t Trial) (said string, code int, err error) {
	if err := c.Clear(ctx); err != nil {
		return "", 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, testWait,
		fmt.Errorf("containerd has not run it within %s: a snapshotter or a disk may be stuck", testWait))
	defer cancel()
	defer func() { // also after Ctrl-C, which gRPC doesn't tell by the context's error
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		err = errors.Join(explain(err), c.Clear(context.WithoutCancel(ctx)))
	}()
	ctx, _, err = c.api.WithLease(in(ctx, TestNamespace), leases.WithID(TestNamespace), leases.WithExpiration(heldFor))
	if err != nil {
		return "", 0, fmt.Errorf("have containerd hold %s: %w", t.Name, err)
	}
	target, err := c.put(ctx, t.Image)
	if err != nil {
		return "", 0, fmt.Errorf("give containerd %s: %w", t.Name, err)
	}
	image := client.NewImage(c.api, images.Image{Name: t.Name, Target: target})
	if err := image.Unpack(ctx, snapshotter); err != nil {
		return "", 0, fmt.Errorf("unpack %s with the snapshotter %s: %w", t.Name, snapshotter, err)
	}
	id := "test-" + strings.ToLower(rand.Text())
	options, err := t.options(id)
	if err != nil {
		return "", 0, fmt.Errorf("create a container of %s: %w", t.Name, err)
	}
	container, err := c.api.NewContainer(ctx, id, client.WithSnapshotter(snapshotter),
		client.WithNewSnapshot(id, image), client.WithNewSpec(options...))
	if err != nil {
		return "", 0, fmt.Errorf("create a container of %s: %w", t.Name, err)
	}
	return c.runTask(ctx, container, t.Name)
}

// put puts an image's manifest and what that names into containerd's content store.
func (c *Client) put(ctx context.Context, image v1.Image) (target ocispec.Descriptor, err error) {
	layers, err := image.Layers()
	if err != nil {
		return target, err
	}
	for _, layer := range layers {
		if err := c.putLayer(ctx, layer); err != nil {
			return target, err
		}
	}
	config, err := image.RawConfigFile()
	if err == nil {
		_, err = c.putBlob(ctx, bytes.NewReader(config), digest.FromBytes(config), int64(len(config)))
	}
	if err != nil {
		return target, err
	}
	manifest, err := image.RawManifest()
	if err == nil {
		target, err = c.putBlob(ctx, bytes.NewReader(manifest), digest.FromBytes(manifest), int64(len(manifest)))
	}
	if err != nil {
		return target, err
	}
	kind, err := image.MediaType()
	target.MediaType = string(kind)
	return target, err
}

func (c *Client) putLayer(ctx context.Context, layer v1.Layer) error {
	sum, err := layer.Digest()
	if err != nil {
		return err
	}
	size, err := layer.Size()
	if err != nil {
		return err
	}
	blob, err := layer.Compressed()
	if err != nil {
		return err
	}
	_, err = c.putBlob(ctx, blob, digest.Digest(sum.String()), size)
	return errors.Join(err, blob.Close())
}

func (c *Client) putBlob(ctx context.Context, r io.Reader, sum digest.Digest, size int64) (
	d ocispec.Descriptor, err error,
) {
	d = ocispec.Descriptor{Digest: sum, Size: size}
	return d, content.WriteBlob(ctx, c.api.ContentStore(), TestNamespace+"-"+sum.Encoded(), r, d)
}

// pipes is the folder of what a container's output goes through, where containerd's socket is: it sees the same there.
func (c *Client) pipes() string { return filepath.Join(filepath.Dir(c.socket), TestNamespace) }

// runTask runs what a container is made for. It may have ended or not when this returns.
func (c *Client) runTask(ctx context.Context, container client.Container, name string) (
	said string, code int, err error,
) {
	if err := os.MkdirAll(c.pipes(), 0o700); err != nil {
		return "", 0, err
	}
	var out output
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithFIFODir(c.pipes()), cio.WithStreams(nil, &out, &out)))
	if err != nil {
		return "", 0, fmt.Errorf("create a container of %s: %w", name, err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callWait)
		defer cancel()
		_, _ = task.Delete(ctx, client.WithProcessKill) // what fails is done again when all is removed
	}()
	ended, err := task.Wait(ctx)
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		return "", 0, fmt.Errorf("start a container of %s: %w", name, err)
	}
	select {
	case status := <-ended:
		exit, _, err := status.Result()
		if err != nil {
			return out.String(), 0, fmt.Errorf("wait for a container of %s: %w", name, err)
		}
		code = int(exit)
		out.await(task.IO())
	case <-time.After(runWait):
	}
	return out.String(), code, nil
}

// output is what a container says, to both its outputs: the first of it.
type output struct {
	mu   sync.Mutex
	said bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.said.Write(b[:min(len(b), saidLimit-o.said.Len())])
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.said.String()
}

// await waits for the last of it, though not for ever: a shim that was killed tells no end.
func (o *output) await(pipes cio.IO) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		pipes.Wait()
	}()
	select {
	case <-done:
	case <-time.After(outWait):
	}
}

// Clear removes the namespace of images that are run, with all that is in it, and the folders that containerd leaves of
// one.
func (c *Client) Clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(in(ctx, TestNamespace), clearWait)
	defer cancel()
	err := c.clear(ctx)
	if err == nil {
		err = os.RemoveAll(c.pipes())
	}
	if err == nil {
		err = c.clearFolders(ctx)
	}
	if err != nil {
		return fmt.Errorf("remove containerd's namespace %s, in which images are run to test them: %w (the next run "+
			"tries again)", TestNamespace, err)
	}
	return nil
}

// clearFolders removes the empty folders in which containerd had those of the namespace's containers: in its root, and
// in its state, where its socket is.
func (c *Client) clearFolders(ctx context.Context) error {
	answer, err := c.api.IntrospectionService().Plugins(ctx)
	if err != nil {
		return fmt.Errorf("ask containerd for its root: %w", err)
	}
	places := []string{filepath.Dir(c.socket)}
	for _, p := range answer.Plugins {
		if root := p.Exports["root"]; p.Type == "io.containerd.content.v1" && root != "" {
			places = append(places, filepath.Dir(root))
		}
	}
	for _, place := range places {
		err := os.Remove(filepath.Join(place, "io.containerd.runtime.v2.task", TestNamespace))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

func (c *Client) clear(ctx context.Context) error {
	all, err := c.api.NamespaceService().List(ctx)
	if err != nil || !slices.Contains(all, TestNamespace) {
		return err
	}
	found, err := c.api.Containers(ctx)
	if err != nil {
		return err
	}
	for _, container := range found {
		task, err := container.Task(ctx, nil)
		if err == nil {
			_, err = task.Delete(ctx, client.WithProcessKill)
		}
		if notThere(err) != nil {
			return fmt.Errorf("end the container %s: %w", container.ID(), err)
		}
		if err := notThere(container.Delete(ctx)); err != nil {
			return fmt.Errorf("remove the container %s: %w", container.ID(), err)
		}
	}
	named, err := c.api.ImageService().List(ctx) // by others: what is run here gets no name
	if err != nil {
		return err
	}
	for _, image := range named {
		if err := notThere(c.api.ImageService().Delete(ctx, image.Name)); err != nil {
			return fmt.Errorf("remove the image %s: %w", image.Name, err)
		}
	}
	held, err := c.api.LeasesService().List(ctx)
	if err != nil {
		return err
	}
	for _, lease := range held {
		if err := notThere(c.api.LeasesService().Delete(ctx, lease)); err != nil {
			return err
		}
	}
	// Blobs and snapshots are held by nothing any more.
	if err := c.collect(ctx); err != nil {
		return err
	}
	return notThere(c.api.NamespaceService().Delete(ctx, TestNamespace))
}
