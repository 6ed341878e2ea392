package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// Start is how an image is run, and when it is ready: when the program has ended, unless Line or Port is set.
type Start struct {
	Command []string      // nil: the image's own
	Env     []string      // "NAME=value"
	Network string        // the engine's
	Line    string        // text of a line that the program writes
	Port    uint16        // TCP port that it answers at
	Within  time.Duration // until it is ready
}

const (
	// label marks the containers that are made here.
	label = "cvmfs-graphdriver.bench"
	// saidLimit bounds what is kept of what a program says, in bytes.
	saidLimit = 4 << 10
	// dialEvery is how often a port is tried.
	dialEvery = 5 * time.Millisecond
)

// run runs an image until it is ready, and returns how many seconds that took, with making the container. The container
// is removed.
func (b *bench) run(ctx context.Context, image string) (seconds float64, err error) {
	name := "cvmfs-graphdriver-bench-" + strings.ToLower(rand.Text()) // known, however making it ends
	defer func() {
		cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWait)
		defer cancel()
		err = errors.Join(err, b.Engine.RemoveContainer(cleaning, name))
	}()
	if err := b.free(ctx); err != nil {
		return 0, fmt.Errorf("run %s: %w", image, err)
	}
	late := fmt.Errorf("it wasn't ready within %v: give it longer by --within, and say by --until-line or --until-port "+
		"when a program is ready that doesn't end", b.Start.Within)
	running, cancel := context.WithTimeoutCause(ctx, b.Start.Within, late)
	defer cancel()
	begin := time.Now()
	if err := b.start(running, image, name); err != nil {
		if running.Err() != nil {
			err = context.Cause(running)
		}
		return 0, fmt.Errorf("run %s: %w", image, explainFull(err))
	}
	return time.Since(begin).Seconds(), nil
}

// start makes a container and starts it, and returns when it is ready.
func (b *bench) start(ctx context.Context, image, name string) error {
	api := b.Engine.Client()
	_, err := api.ContainerCreate(ctx,
		&container.Config{
			Image: image, Cmd: b.Start.Command, Env: b.Start.Env, Labels: map[string]string{label: "1"},
			AttachStdout: true, AttachStderr: true,
		},
		&container.HostConfig{
			NetworkMode: container.NetworkMode(b.Start.Network), LogConfig: container.LogConfig{Type: "none"},
		}, nil, nil, name)
	if err != nil {
		return fmt.Errorf("create a container: %w", err)
	}
	streams, err := api.ContainerAttach(ctx, name, container.AttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return fmt.Errorf("attach to the container: %w", err)
	}
	said := newOutput(b.Start.Line)
	var reader sync.WaitGroup
	reader.Go(func() { said.read(streams.Reader) })
	defer reader.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer streams.Close()
	ended, failed := api.ContainerWait(ctx, name, container.WaitConditionNextExit)
	if err := api.ContainerStart(ctx, name, container.StartOptions{}); err != nil {
		return fmt.Errorf("start the container: %w", err)
	}
	answers := make(chan error, 1)
	if b.Start.Port != 0 {
		reader.Go(func() { answers <- b.answers(ctx, name) })
	}
	select {
	case end := <-ended:
		return said.judge(ctx, end, b.Start)
	case err := <-failed:
		return fmt.Errorf("wait for the container: %w", err)
	case <-said.seen:
		return nil
	case err := <-answers:
		return err
	}
}

// free makes sure that nobody else answers at the port that is waited for, if it is this host's.
func (b *bench) free(ctx context.Context) error {
	if b.Start.Port == 0 || !container.NetworkMode(b.Start.Network).IsHost() {
		return nil
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(loopback, b.Start.Port).String())
	if err != nil {
		return ctx.Err()
	}
	c.Close() // nothing was said
	return fmt.Errorf("something else answers at port %d of this host: choose another network by --network",
		b.Start.Port)
}

// loopback is where a container in the host's network is reached.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// answers returns when a container's port can be connected to.
func (b *bench) answers(ctx context.Context, name string) error {
	c, err := b.Engine.Client().ContainerInspect(ctx, name)
	if err != nil {
		return fmt.Errorf("look for the container's address: %w", err)
	}
	addr := address(&c)
	if !addr.IsValid() {
		return fmt.Errorf("the container has no address in network %s: name another one by --network", b.Start.Network)
	}
	to := netip.AddrPortFrom(addr, b.Start.Port).String()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
		if err == nil {
			c.Close() // nothing was said
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(dialEvery):
		}
	}
}

// address is where a container is reached from this host.
func address(c *container.InspectResponse) netip.Addr {
	if c.HostConfig != nil && c.HostConfig.NetworkMode.IsHost() {
		return loopback
	}
	if c.NetworkSettings == nil {
		return netip.Addr{}
	}
	for _, n := range c.NetworkSettings.Networks {
		for _, text := range []string{n.IPAddress, n.GlobalIPv6Address} {
			if a, err := netip.ParseAddr(text); err == nil {
				return a
			}
		}
	}
	return netip.Addr{}
}

// output is what a program says.
type output struct {
	line string        // what it is to say
	seen chan struct{} // closed when it has
	over chan struct{} // closed when it has said all

	mu   sync.Mutex
	text strings.Builder // the first of it
}

func newOutput(line string) *output {
	return &output{line: line, seen: make(chan struct{}), over: make(chan struct{})}
}

// read reads both outputs of a container, which has no terminal, to their end.
func (o *output) read(from io.Reader) {
	defer close(o.over)
	_, _ = stdcopy.StdCopy(&stream{o: o}, &stream{o: o}, from) // what breaks it off, breaks off the start as well
}

// stream is one of a program's outputs.
type stream struct {
	o    *output
	last []byte // the end of what was written, which may begin what is looked for
}

// Write looks for what is to be said. It keeps no whole line: a program may write as much as it likes without an end.
func (s *stream) Write(b []byte) (int, error) {
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	if room := saidLimit - s.o.text.Len(); room > 0 {
		s.o.text.Write(b[:min(room, len(b))])
	}
	if s.o.line == "" {
		return len(b), nil
	}
	s.last = append(s.last, b...)
	if bytes.Contains(s.last, []byte(s.o.line)) {
		close(s.o.seen)
		s.o.line, s.last = "", nil
		return len(b), nil
	}
	s.last = append(s.last[:0], s.last[max(0, len(s.last)-len(s.o.line)+1):]...)
	return len(b), nil
}

// lastWords is how long the end of what a program said may take to arrive after the program's own end.
const lastWords = 5 * time.Second

// judge says what the end of a program means for its start.
func (o *output) judge(ctx context.Context, end container.WaitResponse, s Start) error {
	select {
	case <-o.over:
	case <-ctx.Done():
	case <-time.After(lastWords):
	}
	if end.Error != nil {
		return errors.New(end.Error.Message)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	said := strings.ToValidUTF8(strings.TrimSpace(o.text.String()), "")
	switch {
	case end.StatusCode != 0:
		return fmt.Errorf("it ended with exit code %d and said %q", end.StatusCode, said)
	case o.line != "":
		return fmt.Errorf("it ended without writing %q; it said %q", o.line, said)
	case s.Port != 0 && s.Line == "":
		return fmt.Errorf("it ended before anything answered at port %d; it said %q", s.Port, said)
	}
	return nil
}
