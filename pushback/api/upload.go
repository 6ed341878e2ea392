package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Layer is a layer that a node sends, with what it says of it.
type Layer struct {
	Digest string // of the archive
	DiffID string
	Size   int64  // bytes of the archive
	Node   string // who sends it
	Image  string // origin of the image that it was made on
}

// Upload sends a layer's archive to the service itself, going on where a former attempt broke off; what the service has
// already, or publishes, isn't sent. Its answer is the layer's status then. A refusal is an [*Error]. A connection that
// breaks, and a service that isn't ready, are met by trying again, a few times for each byte that is there.
func (c *Client) Upload(ctx context.Context, l Layer, archive io.ReaderAt) (*Answer, error) {
	a, err := c.upload(ctx, l, archive)
	if err != nil {
		return nil, fmt.Errorf("send layer %s to %s: %w", l.Digest, c.layers.Host, err)
	}
	return a, nil
}

func (c *Client) upload(ctx context.Context, l Layer, archive io.ReaderAt) (*Answer, error) {
	best, failed := int64(-1), 0
	for {
		offset, a, err := c.attempt(ctx, l, archive)
		if err == nil {
			return a, nil
		}
		if offset > best {
			best, failed = offset, 0
		}
		failed++
		if ctx.Err() != nil || failed >= attempts || !again(err) {
			return nil, err
		}
		pause := firstPause << failed
		if refused, ok := errors.AsType[*Error](err); ok {
			pause = max(pause, refused.After)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// again reports whether what went wrong may soon go better: all but a final refusal. One of a part's place is none:
// somebody else sends the same layer. One for longer is: a node's rate is used up.
func again(err error) bool {
	refused, ok := errors.AsType[*Error](err)
	return !ok || refused.After <= longest && (refused.Temporary() || refused.Code == http.StatusConflict)
}

// attempt sends what the service lacks, and returns how much it had before.
func (c *Client) attempt(ctx context.Context, l Layer, archive io.ReaderAt) (int64, *Answer, error) {
	a, err := c.ask(ctx, l.Digest)
	if err != nil {
		return 0, nil, err
	}
	if a.Status == Publishing || a.Status == Done {
		return l.Size, a, nil
	}
	offset, err := c.offset(ctx, l.Digest)
	if err != nil {
		return 0, nil, err
	}
	if offset >= l.Size {
		return 0, nil, fmt.Errorf("the service has %d bytes of it, of %d", offset, l.Size)
	}
	a, err = c.put(ctx, l, archive, offset)
	return offset, a, err
}

// offset returns how many bytes of a layer's archive the service has.
func (c *Client) offset(ctx context.Context, digest string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	q, err := c.request(ctx, http.MethodHead, c.layers.JoinPath(digest), nil)
	if err != nil {
		return 0, err
	}
	header, _, err := c.do(q)
	if refused, ok := errors.AsType[*Error](err); ok && refused.Code == http.StatusNotFound {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	offset, err := strconv.ParseInt(header.Get(HeaderOffset), 10, 64)
	if err != nil || offset < 0 {
		return 0, fmt.Errorf("%s %.50q: want a number of bytes", HeaderOffset, header.Get(HeaderOffset))
	}
	return offset, nil
}

var errStall = errors.New("the service takes nothing and answers nothing")

// put sends the rest of an archive.
func (c *Client) put(ctx context.Context, l Layer, archive io.ReaderAt, offset int64) (*Answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(c.stall, func() { cancel(fmt.Errorf("%w for %v", errStall, c.stall)) })
	defer timer.Stop()
	rest := io.NewSectionReader(archive, offset, l.Size-offset)
	q, err := c.request(ctx, http.MethodPut, c.layers.JoinPath(l.Digest), watched{rest, timer, c.stall})
	if err != nil {
		return nil, err
	}
	q.ContentLength = l.Size - offset
	for name, value := range map[string]string{
		"Content-Type": ContentType, "Content-Range": fmt.Sprintf("bytes %d-%d/%d", offset, l.Size-1, l.Size),
		HeaderNode: l.Node, HeaderImage: l.Image, HeaderDiffID: l.DiffID,
	} {
		if value != "" {
			q.Header.Set(name, value)
		}
	}
	_, b, err := c.do(q)
	if err != nil {
		return nil, err
	}
	return ParseJSON(l.Digest, b)
}

// watched is a body that puts off the end of waiting as long as it is read.
type watched struct {
	io.Reader
	timer *time.Timer
	pause time.Duration
}

func (w watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.pause)
	return w.Reader.Read(p)
}
