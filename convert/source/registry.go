package source

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	dialTimeout   = 15 * time.Second
	headerTimeout = 60 * time.Second
	idleTimeout   = 60 * time.Second // without a byte of a body
	maxAttempts   = 5                // to open a blob, without much progress in between
)

// acceptable are the manifests this program reads.
var acceptable = []types.MediaType{types.OCIManifestSchema1, types.DockerManifestSchema2, types.OCIImageIndex, types.DockerManifestList}

// passing are the answers of servers that are worth asking again.
var passing = []int{
	http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

// retrying asks again after what passes. A server that doesn't answer in time isn't asked again: that would make a dead mirror cost
// its time limit over and over.
func retrying(base http.RoundTripper) http.RoundTripper {
	return transport.NewRetry(base, transport.WithRetryStatusCodes(passing...), transport.WithRetryPredicate(func(err error) bool {
		return errors.As(err, new(*transport.Error)) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrUnexpectedEOF)
	}))
}

// Transport is how registries are reached with these options.
func (o Options) Transport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	t.ResponseHeaderTimeout = headerTimeout
	t.MaxIdleConnsPerHost = 16
	if o.Insecure {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // the user asked for it
	}
	return tlsOnly{t, o.PlainHTTP}
}

// tlsOnly refuses to speak without TLS to another machine unless it was asked for: credentials would be read by anybody.
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

// RemoteOptions are what the registry library needs for these options.
func (o Options) RemoteOptions(ctx context.Context) []remote.Option {
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.NewMultiKeychain()
	}
	return []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(keychain), remote.WithTransport(o.Transport()), remote.WithUserAgent(o.UserAgent),
	}
}

// endpoint is a repository of a registry.
type endpoint struct {
	ref    name.Reference
	client *http.Client
}

// registry has the blobs of a repository, in the registry that was named and its mirrors.
type registry struct {
	endpoints []*endpoint
	named     []byte // the manifest the reference led to
}

// candidate is where an image may be.
type candidate struct {
	name.Reference
	plain bool // the registry may be asked without TLS
}

// candidates gives the references to try, mirrors first.
func candidates(ref Reference, o Options) ([]candidate, error) {
	plain := ref.PlainOK || o.PlainHTTP
	parsed, err := Reference{Kind: Registry, Name: ref.Name, PlainOK: plain}.Parsed()
	if err != nil {
		return nil, err
	}
	registry := parsed.Context().RegistryStr()
	var all []candidate
	for _, mirror := range o.Mirrors {
		of, address, found := strings.Cut(mirror, "=")
		if !found {
			of, address = name.DefaultRegistry, mirror
		}
		if of != registry {
			continue
		}
		host, plain, err := ParseRegistry(address)
		if err != nil {
			return nil, fmt.Errorf("mirror: %w", err)
		}
		plain = plain || o.PlainHTTP
		m, err := Reference{Kind: Registry, Name: host + strings.TrimPrefix(parsed.Name(), registry), PlainOK: plain}.Parsed()
		if err != nil {
			return nil, fmt.Errorf("mirror: %w", err)
		}
		all = append(all, candidate{m, plain})
	}
	return append(all, candidate{parsed, plain}), nil
}

func openRegistry(ctx context.Context, ref Reference, platform *v1.Platform, o Options) (*Image, error) {
	refs, err := candidates(ref, o)
	if err != nil {
		return nil, err
	}
	in := &registry{}
	var failures []error
	for _, r := range refs {
		e, err := connect(ctx, r, o)
		if err != nil {
			failures = append(failures, explain(r, err))
			continue
		}
		in.endpoints = append(in.endpoints, e)
	}
	for n, e := range in.endpoints {
		d, err := in.find(ctx, e)
		if err == nil {
			in.endpoints = in.endpoints[n:] // those before it don't have the image
			return load(ctx, in, d, platform)
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

// find asks which manifest the endpoint's reference leads to.
func (g *registry) find(ctx context.Context, e *endpoint) (v1.Descriptor, error) {
	if digest, ok := e.ref.(name.Digest); ok {
		h, err := v1.NewHash(digest.DigestStr())
		if err != nil {
			return v1.Descriptor{}, err
		}
		d := v1.Descriptor{Digest: h}
		g.named, err = e.manifest(ctx, d)
		return d, err
	}
	raw, media, err := e.fetch(ctx, e.ref.Identifier())
	if err != nil {
		return v1.Descriptor{}, err
	}
	h, n, err := v1.SHA256(bytes.NewReader(raw))
	g.named = raw
	return v1.Descriptor{Digest: h, Size: n, MediaType: media}, err
}

// connect finds out how a registry wants to be spoken to.
func connect(ctx context.Context, ref candidate, o Options) (*endpoint, error) {
	o.PlainHTTP = ref.plain
	repository := ref.Context()
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.NewMultiKeychain()
	}
	auth, err := authn.Resolve(ctx, keychain, repository)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", repository.RegistryStr(), err)
	}
	base := retrying(transport.NewUserAgent(o.Transport(), o.UserAgent))
	t, err := transport.NewWithContext(ctx, repository.Registry, auth, base, []string{repository.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	return &endpoint{ref.Reference, &http.Client{Transport: t}}, nil
}

// get asks for something of the repository.
func (e *endpoint) get(ctx context.Context, path string, header http.Header, codes ...int) (*http.Response, error) {
	repository := e.ref.Context()
	address := repository.Scheme() + "://" + repository.RegistryStr() + "/v2/" + repository.RepositoryStr() + path
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	r.Header = header
	answer, err := e.client.Do(r)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(answer, codes...); err != nil {
		return nil, errors.Join(err, answer.Body.Close())
	}
	return answer, nil
}

// fetch asks for a manifest by tag or digest.
func (e *endpoint) fetch(ctx context.Context, identifier string) ([]byte, types.MediaType, error) {
	header := http.Header{}
	for _, m := range acceptable {
		header.Add("Accept", string(m))
	}
	answer, err := e.get(ctx, "/manifests/"+identifier, header, http.StatusOK)
	if err != nil {
		return nil, "", explain(e.ref, err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(answer.Body, maxManifest+1))
	if err == nil && len(raw) > maxManifest {
		err = fmt.Errorf("more than %d bytes", maxManifest)
	}
	if err != nil {
		return nil, "", fmt.Errorf("manifest from %s: %w", e.ref.Context().RegistryStr(), err)
	}
	media, _, _ := strings.Cut(answer.Header.Get("Content-Type"), ";")
	return raw, types.MediaType(strings.TrimSpace(media)), nil
}

func (e *endpoint) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	raw, _, err := e.fetch(ctx, d.Digest.String())
	if err == nil {
		err = checkBytes(raw, d)
	}
	return raw, err
}

func (g *registry) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if checkBytes(g.named, d) == nil {
		return g.named, nil
	}
	return anyOf(g, func(e *endpoint) ([]byte, error) { return e.manifest(ctx, d) })
}

// anyOf takes what the first of a registry's endpoints gives.
func anyOf[T any](g *registry, ask func(*endpoint) (T, error)) (T, error) {
	var failures []error
	for _, e := range g.endpoints {
		got, err := ask(e)
		if err == nil {
			return got, nil
		}
		failures = append(failures, err)
	}
	return *new(T), errors.Join(failures...)
}

func (g *registry) blob(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	return anyOf(g, func(e *endpoint) (io.ReadCloser, error) { return e.blob(ctx, d, offset) })
}

func (g *registry) attempts() int { return maxAttempts }

// blob asks for a blob from an offset on.
func (e *endpoint) blob(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	header := http.Header{}
	if offset > 0 { // with its end: some registries take no open range
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, d.Size-1))
	}
	answer, err := e.get(ctx, "/blobs/"+d.Digest.String(), header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		cancel(nil)
		return nil, explain(e.ref, err)
	}
	body := &idleBody{ReadCloser: answer.Body, cancel: cancel, ctx: ctx}
	skip := offset
	if answer.StatusCode == http.StatusPartialContent {
		if !strings.HasPrefix(answer.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
			return nil, errors.Join(fmt.Errorf("%w: asked for bytes from %d on, got %.100q", ErrDamaged, offset, answer.Header.Get("Content-Range")), body.Close())
		}
		skip = 0
	}
	if _, err := io.CopyN(io.Discard, body, skip); err != nil { // a server that knows no ranges
		return nil, errors.Join(err, body.Close())
	}
	return body, nil
}

// idleBody gives up a body that brings nothing for a while. The time a reader lets it wait doesn't count.
type idleBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (b *idleBody) Read(p []byte) (int, error) {
	stop := time.AfterFunc(idleTimeout, func() { b.cancel(fmt.Errorf("no data for %v", idleTimeout)) })
	defer stop.Stop()
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	return n, err
}

func (b *idleBody) Close() error {
	b.cancel(nil)
	return b.ReadCloser.Close()
}

// explain says what a registry's refusal means, and what to do.
func explain(ref name.Reference, err error) error {
	host := ref.Context().RegistryStr()
	err = said{err}
	var refusal *transport.Error
	if !errors.As(err, &refusal) {
		return fmt.Errorf("registry %s: %w", host, err)
	}
	has := func(code transport.ErrorCode) bool {
		return slices.ContainsFunc(refusal.Errors, func(d transport.Diagnostic) bool { return d.Code == code })
	}
	switch {
	case refusal.StatusCode == http.StatusUnauthorized, refusal.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w by registry %s: check the name, or log in with: docker login %s: %w", ErrCredentials, host, host, err)
	case has(transport.NameUnknownErrorCode):
		return fmt.Errorf("%w: registry %s has no %s: check the name: %w", ErrNoImage, host, ref.Context().RepositoryStr(), err)
	case has(transport.ManifestUnknownErrorCode), refusal.StatusCode == http.StatusNotFound && refusal.Request != nil && strings.Contains(refusal.Request.URL.Path, "/manifests/"):
		return fmt.Errorf("%w: %s in registry %s has no %s: check the tag: %w", ErrNoTag, ref.Context().RepositoryStr(), host, ref.Identifier(), err)
	case refusal.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: a part of it is missing in registry %s: %w", ErrNoImage, host, err)
	case refusal.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("registry %s takes no more requests for now: log in, or try later: %w", host, err)
	default:
		return fmt.Errorf("registry %s: %w", host, err)
	}
}

// said is an error that repeats what a server said: its text is cut, and control characters don't reach the terminal.
type said struct{ error }

const maxSaid = 500 // bytes

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

// Explain says what a failure of the registry library means, and what to do. It gives nil for nil.
func Explain(ref name.Reference, err error) error {
	if err == nil {
		return nil
	}
	return explain(ref, err)
}

// Tags lists the tags of a registry's repository, "HOST/NAME".
func Tags(ctx context.Context, repository string, o Options) ([]string, error) {
	var options []name.Option
	if o.PlainHTTP {
		options = append(options, name.Insecure)
	}
	r, err := name.NewRepository(repository, options...)
	if err != nil {
		return nil, err
	}
	tags, err := remote.List(r, o.RemoteOptions(ctx)...)
	if err != nil {
		return nil, fmt.Errorf("list tags of %s: %w", r, explain(r.Tag("*"), err))
	}
	slices.Sort(tags)
	return tags, nil
}
