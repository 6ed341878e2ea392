package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// The bounds of a client's waiting.
const (
	askTimeout = 30 * time.Second // for an answer to what carries no archive
	stall      = time.Minute      // without a byte of an archive being taken, or an answer to it
	attempts   = 5                // to send an archive, without a byte more being there
	firstPause = 500 * time.Millisecond
	longest    = 2 * time.Minute // that is waited where a service says when to ask again
	maxAnswer  = 64 << 10        // bytes
)

// Options say how a service is spoken to.
type Options struct {
	Token     string      // who asks; "": nobody in particular, as in 2017
	TLS       *tls.Config // nil: what the system trusts
	PlainHTTP bool        // the token may be sent to another host without TLS
	Folder    string      // of the bucket that layers lie in, for the service to look there
	UserAgent string
}

// Client speaks to a service. It may be used concurrently.
type Client struct {
	status *url.URL // ends with a slash
	layers *url.URL
	o      Options
	http   *http.Client
	stall  time.Duration
}

// NewClient returns the client of the service with this status URL. It asks the service nothing.
func NewClient(statusURL string, o Options) (*Client, error) {
	u, err := url.Parse(strings.TrimRight(statusURL, "/") + "/")
	switch {
	case err != nil: // the cause would show what may be a secret
		return nil, errors.New("status URL: not an address")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("status URL: want https://HOST[:PORT]/status")
	case u.User != nil:
		return nil, errors.New("status URL: an address holds no credentials: give a token")
	case o.Token != "" && u.Scheme == "http" && !o.PlainHTTP && !loopback(u.Hostname()):
		return nil, fmt.Errorf("status URL: a token isn't sent without TLS: use https://%s, or allow plain HTTP",
			u.Host)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = o.TLS.Clone() // transports change theirs
	transport.ResponseHeaderTimeout = stall
	return &Client{
		status: u, layers: u.JoinPath("..", LayersPath), o: o, stall: stall,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Error is a service's refusal.
type Error struct {
	Code   int           // of HTTP
	Reason string        // in the service's words
	After  time.Duration // when to ask again; 0: not said
}

func (e *Error) Error() string {
	return strings.TrimRight(fmt.Sprintf("the service answers %d %s: %.1000s", e.Code, http.StatusText(e.Code),
		e.Reason), ": ")
}

// Temporary reports whether the same request may be taken later.
func (e *Error) Temporary() bool { return e.Code == http.StatusTooManyRequests || e.Code >= 500 }

// Status asks what became of a layer. A refusal is an [*Error].
func (c *Client) Status(ctx context.Context, digest string) (*Answer, error) {
	a, err := c.ask(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("ask %s for the status of layer %s: %w", c.status.Host, digest, err)
	}
	return a, nil
}

func (c *Client) ask(ctx context.Context, digest string) (*Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	q, err := c.request(ctx, http.MethodGet, c.status.JoinPath(digest), nil)
	if err != nil {
		return nil, err
	}
	if c.o.Folder != "" {
		q.Header.Set(HeaderFolder, url.PathEscape(c.o.Folder))
	}
	header, b, err := c.do(q)
	if err != nil {
		return nil, err
	}
	if isJSON(header) {
		return ParseJSON(digest, b)
	}
	return ParseText(digest, string(b))
}

func isJSON(h http.Header) bool {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.TrimSpace(kind) == "application/json"
}

func (c *Client) request(ctx context.Context, method string, to *url.URL, body io.Reader) (*http.Request, error) {
	q, err := http.NewRequestWithContext(ctx, method, to.String(), body)
	if err != nil {
		return nil, err
	}
	q.Header.Set("Accept", "application/json")
	q.Header.Set("User-Agent", cmp.Or(c.o.UserAgent, "cvmfs-graphdriver"))
	if c.o.Token != "" {
		q.Header.Set("Authorization", "Bearer "+c.o.Token)
	}
	return q, nil
}

// do sends a request and reads the answer. Everything but success is an [*Error].
func (c *Client) do(q *http.Request) (http.Header, []byte, error) {
	answer, err := c.http.Do(q)
	if err != nil {
		if cause := context.Cause(q.Context()); cause != nil && q.Context().Err() != nil {
			err = cause
		}
		return nil, nil, err
	}
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err = errors.Join(err, answer.Body.Close()); err != nil {
		return nil, nil, err
	}
	if len(b) > maxAnswer {
		return nil, nil, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	if answer.StatusCode >= 300 {
		return nil, nil, refusal(answer, b)
	}
	return answer.Header, b, nil
}

func refusal(answer *http.Response, b []byte) error {
	e := &Error{Code: answer.StatusCode, Reason: strings.TrimSpace(string(b))}
	if isJSON(answer.Header) {
		var a Answer
		if json.Unmarshal(b, &a) == nil && a.Reason != "" {
			e.Reason = a.Reason
		}
	}
	if to := answer.Header.Get("Location"); to != "" {
		e.Reason = fmt.Sprintf("it is elsewhere, at %.300q: give that address", to)
	}
	e.Reason = readable(e.Reason)
	if seconds, err := strconv.ParseInt(answer.Header.Get("Retry-After"), 10, 32); err == nil && seconds > 0 {
		e.After = time.Duration(seconds) * time.Second
	}
	return e
}
