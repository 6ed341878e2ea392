package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxAnswer is the most bytes of an answer, or of a line.
const maxAnswer = 64 << 20

// ErrUnknown is the error of a command that a node doesn't know, or not with all that was asked.
var ErrUnknown = errors.New("the node that runs doesn't know this: it is older than this program, and wants an upgrade")

// ErrSilent is the error of a command to a node that can't be reached.
var ErrSilent = errors.New("no node answers")

// Client speaks to the node at a socket.
type Client struct {
	socket    string
	transport http.Transport
}

// NewClient makes a client. It makes no connection; each command makes one of its own, and lets it go.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.transport = http.Transport{DisableKeepAlives: true, DialContext: c.dial}
	return c
}

// dial connects to the socket. Its path may be longer than the address of a socket (108 bytes, unix(7)): that of a
// plugin is.
func (c *Client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	dir, err := os.OpenFile(filepath.Dir(c.socket), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close() // only a reference
	return new(net.Dialer).DialContext(ctx, "unix",
		fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(c.socket)))
}

// Ask asks a node.
func (q Question[Q, A]) Ask(ctx context.Context, c *Client, request Q) (a A, err error) {
	body, err := c.send(ctx, string(q), request)
	if err != nil {
		return a, err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxAnswer+1))
	if err == nil && len(text) > maxAnswer {
		err = fmt.Errorf("longer than %d bytes", maxAnswer)
	}
	if err == nil {
		err = json.Unmarshal(text, &a)
	}
	if err != nil {
		return a, fmt.Errorf("read the answer of the node to %s: %w", q, err)
	}
	return a, nil
}

// Do has a node do a task, and calls back with what it tells meanwhile. When ctx ends the node ends the task, too.
func (t Task[Q, P, A]) Do(ctx context.Context, c *Client, request Q, progress func(P)) (a A, err error) {
	body, err := c.send(ctx, string(t), request)
	if err != nil {
		return a, err
	}
	defer body.Close()
	in := bufio.NewScanner(body)
	in.Buffer(nil, maxAnswer)
	for in.Scan() {
		var said line[P, A]
		if err := json.Unmarshal(in.Bytes(), &said); err != nil {
			return a, fmt.Errorf("read what the node tells of %s: %w", t, err)
		}
		switch {
		case said.Err != "":
			return a, errors.New(said.Err)
		case said.Answer != nil:
			return *said.Answer, nil
		case said.Progress != nil && progress != nil:
			progress(*said.Progress)
		}
	}
	if err := ctx.Err(); err != nil {
		return a, err
	}
	return a, fmt.Errorf("the node broke off while it was at %s: %w", t, errors.Join(in.Err(), io.ErrUnexpectedEOF))
}

// send sends a command, and returns the body of the answer if it is taken.
func (c *Client) send(ctx context.Context, name string, request any) (io.ReadCloser, error) {
	text, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node"+Prefix+name, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	response, err := c.transport.RoundTrip(r)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the node's socket %s is root's: run this as root", c.socket)
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("%w at %s: %w", ErrSilent, c.socket, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("%w at %s: %w", ErrSilent, c.socket, err)
	case response.StatusCode == http.StatusOK:
		return response.Body, nil
	}
	defer response.Body.Close()
	return nil, refused(name, response)
}

// refused reads why a node refuses a command.
func refused(name string, response *http.Response) error {
	var said refusal
	text, err := io.ReadAll(io.LimitReader(response.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(text, &said)
	}
	switch response.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w", name, ErrUnknown)
	case http.StatusBadRequest:
		return fmt.Errorf("%s: %w (%s)", name, ErrUnknown, said.Err)
	}
	if err != nil || said.Err == "" {
		return fmt.Errorf("%s: the node answers with status %d", name, response.StatusCode)
	}
	return errors.New(said.Err)
}
