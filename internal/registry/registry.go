// Package registry is how the project's programs reach container registries: what they send where, how long they wait,
// and what a refusal means to a user. What is read and written there is the callers' matter.
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// What a registry's refusal comes to, so that a caller decides on it.
var (
	ErrNoImage     = errors.New("no such image")
	ErrNoTag       = errors.New("no such tag")
	ErrCredentials = errors.New("access denied")
	ErrBusy        = errors.New("it takes no more requests for now")
)

const (
	dialTimeout   = 15 * time.Second
	headerTimeout = 60 * time.Second
	idleTimeout   = 60 * time.Second // without a byte of a body, either way
)

// Options say how registries are reached. The zero value has no credentials and speaks plain HTTP to this machine only.
type Options struct {
	Keychain  authn.Keychain // nil: none
	PlainHTTP bool           // registries may be asked without TLS
	Insecure  bool           // certificates of registries aren't checked
	UserAgent string

	Connections *Connections // to be used; nil: new ones
}

// Connections keeps connections open from one use of a registry to the next. The zero value has none yet. It is safe
// for concurrent use; what was sent over one, credentials too, doesn't matter for the next.
type Connections struct {
	mu                sync.Mutex
	checked, insecure *http.Transport
}

// transport returns that for connections whose certificates are checked, or aren't.
func (c *Connections) transport(insecure bool) *http.Transport {
	if c == nil {
		return newTransport(insecure)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := &c.checked
	if insecure {
		kept = &c.insecure
	}
	if *kept == nil {
		*kept = newTransport(insecure)
	}
	return *kept
}

func newTransport(insecure bool) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	t.ResponseHeaderTimeout = headerTimeout
	t.MaxIdleConnsPerHost = 16
	if insecure {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the user asked for it
	}
	return t
}

// Credentials are those of the options.
func (o Options) Credentials() authn.Keychain {
	if o.Keychain == nil {
		return authn.NewMultiKeychain()
	}
	return o.Keychain
}

// Transport is how registries are reached with these options. Every wait has a bound.
func (o Options) Transport() http.RoundTripper {
	return tlsOnly{patient{bounded{o.Connections.transport(o.Insecure), idleTimeout}, patience}, o.PlainHTTP}
}

// Remote are the options that the registry library needs for these.
func (o Options) Remote(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(o.Credentials()), remote.WithTransport(o.Transport()),
		remote.WithUserAgent(o.UserAgent),
	}
}

// tlsOnly refuses to speak without TLS to another machine unless it was asked for: credentials would be read by
// anybody.
type tlsOnly struct {
	base  http.RoundTripper
	plain bool
}

func (t tlsOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "http" && !t.plain && !loopback(r.URL.Hostname()) {
		return nil, fmt.Errorf("%s speaks plain HTTP: allow it with --plain-http or write http://", r.URL.Host)
	}
	return t.base.RoundTrip(r)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// bounded ends a request whose peer takes nothing of its body, or gives nothing of the answer's, for a while. The time
// a reader lets an answer wait doesn't count.
type bounded struct {
	base http.RoundTripper
	idle time.Duration
}

func (t bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	timer := time.AfterFunc(t.idle, func() { cancel(fmt.Errorf("no data for %v", t.idle)) })
	timer.Stop()
	sent := r.Clone(ctx)
	watched := func(body io.ReadCloser) io.ReadCloser { return &upload{body, timer, t.idle} }
	if r.Body != nil && r.Body != http.NoBody {
		sent.Body = watched(r.Body)
	}
	if r.GetBody != nil {
		sent.GetBody = func() (io.ReadCloser, error) {
			body, err := r.GetBody()
			if err != nil {
				return nil, err
			}
			return watched(body), nil
		}
	}
	answer, err := t.base.RoundTrip(sent)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		cancel(nil)
		return nil, err
	}
	answer.Body = &download{answer.Body, ctx, cancel, timer, t.idle}
	return answer, nil
}

// upload is a request's body. Between two reads the peer has to take what was read.
type upload struct {
	io.ReadCloser
	timer *time.Timer
	idle  time.Duration
}

func (u *upload) Read(p []byte) (int, error) {
	u.timer.Stop()
	n, err := u.ReadCloser.Read(p)
	if err == nil {
		u.timer.Reset(u.idle)
	}
	return n, err
}

func (u *upload) Close() error {
	u.timer.Stop()
	return u.ReadCloser.Close()
}

// download is an answer's body.
type download struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	idle   time.Duration
}

func (d *download) Read(p []byte) (int, error) {
	d.timer.Reset(d.idle)
	defer d.timer.Stop()
	n, err := d.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && d.ctx.Err() != nil {
		err = context.Cause(d.ctx)
	}
	return n, err
}

func (d *download) Close() error {
	d.cancel(nil)
	return d.ReadCloser.Close()
}

// Explain says what a failure of the registry library means, and what to do. It gives nil for nil.
func Explain(ref name.Reference, err error) error {
	if err == nil {
		return nil
	}
	host := ref.Context().RegistryStr()
	err = Said(err)
	var refusal *transport.Error
	switch {
	case errors.As(err, &refusal):
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, new(tls.RecordHeaderError)):
		return fmt.Errorf("registry %s speaks plain HTTP, not TLS: allow it with --plain-http or write http://: %w",
			host, err)
	default:
		return fmt.Errorf("registry %s: %w", host, err)
	}
	has := func(code transport.ErrorCode) bool {
		return slices.ContainsFunc(refusal.Errors, func(d transport.Diagnostic) bool { return d.Code == code })
	}
	switch {
	case refusal.StatusCode == http.StatusUnauthorized, refusal.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w by registry %s: check the name, or log in with: docker login %s: %w", ErrCredentials,
			host, host, err)
	case has(transport.NameUnknownErrorCode), refusal.StatusCode == http.StatusNotFound && asked(refusal, "/tags/list"):
		return fmt.Errorf("%w: registry %s has no %s: check the name: %w", ErrNoImage, host,
			ref.Context().RepositoryStr(), err)
	case has(transport.ManifestUnknownErrorCode), refusal.StatusCode == http.StatusNotFound && asked(refusal,
		"/manifests/"):
		return fmt.Errorf("%w: %s in registry %s has no %s: check the tag: %w", ErrNoTag, ref.Context().RepositoryStr(),
			host, ref.Identifier(), err)
	case refusal.StatusCode == http.StatusNotFound && refusal.Request != nil &&
		refusal.Request.Method == http.MethodPost:
		return fmt.Errorf("%w: the repository %s is missing in registry %s, which makes none by itself: make it first: %w",
			ErrNoImage, ref.Context().RepositoryStr(), host, err)
	case refusal.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: a part of it is missing in registry %s: %w", ErrNoImage, host, err)
	case refusal.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("registry %s: %w: log in, or try later: %w", host, ErrBusy, err)
	default:
		return fmt.Errorf("registry %s: %w", host, err)
	}
}

// asked reports whether what was refused is such a part of a registry.
func asked(refusal *transport.Error, part string) bool {
	return refusal.Request != nil && strings.Contains(refusal.Request.URL.Path, part)
}

// said is an error that repeats what a server said: its text is cut, and control characters don't reach the terminal.
type said struct{ error }

const maxSaid = 500 // bytes

// Said bounds and cleans the text of an error that repeats what a server said.
func Said(err error) error { return said{err} }

func (s said) Error() string {
	text := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s.error.Error())
	if len(text) > maxSaid {
		text = strings.ToValidUTF8(text[:maxSaid], "") + " …"
	}
	return strings.TrimSpace(text)
}

func (s said) Unwrap() error { return s.error }
