package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"cvmfs-graphdriver/internal/registry"
)

// maxAttempts is how often a blob is opened without much progress in between.
const maxAttempts = 5

// acceptable are the manifests this program reads.
var acceptable = []types.MediaType{
	types.OCIManifestSchema1, types.DockerManifestSchema2, types.OCIImageIndex,
	types.DockerManifestList,
}

// passing are the answers of servers that are worth asking again.
var passing = []int{
	http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable,
	http.StatusGatewayTimeout,
}

// retrying asks again after what passes. A server that doesn't answer in time isn't asked again: that would make a dead
// mirror cost its time limit over and over.
func retrying(base http.RoundTripper) http.RoundTripper {
	return transport.NewRetry(base, transport.WithRetryStatusCodes(passing...),
		transport.WithRetryPredicate(func(err error) bool {
			return errors.As(err, new(*transport.Error)) || errors.Is(err, syscall.ECONNRESET) ||
				errors.Is(err, io.ErrUnexpectedEOF)
		}))
}

// access is how registries are reached with these options.
func (o Options) access() registry.Options {
	return registry.Options{
		Keychain: o.Keychain, PlainHTTP: o.PlainHTTP, Insecure: o.Insecure, UserAgent: o.UserAgent,
		Connections: o.Connections,
	}
}

// Access is how the registry of a reference is reached with these options, and the reference as the registry library
// has it.
func (o Options) Access(ref Reference) (registry.Options, name.Reference, error) {
	o.PlainHTTP = o.PlainHTTP || ref.PlainOK
	ref.PlainOK = o.PlainHTTP
	parsed, err := ref.Parsed()
	return o.access(), parsed, err
}

// endpoint is a repository of a registry.
type endpoint struct {
	ref    name.Reference
	client *http.Client
}

// hosts have the blobs of a repository: the registry that was named and its mirrors.
type hosts struct {
	endpoints []*endpoint
	named     []byte // the manifest the reference led to
}

// candidate is where an image may be.
type candidate struct {
	name.Reference
	plain bool // the registry may be asked without TLS
}

// candidates returns the references to try, mirrors first.
func candidates(ref Reference, o Options) ([]candidate, error) {
	plain := ref.PlainOK || o.PlainHTTP
	parsed, err := Reference{Kind: Registry, Name: ref.Name, PlainOK: plain}.Parsed()
	if err != nil {
		return nil, err
	}
	named := parsed.Context().RegistryStr()
	var all []candidate
	for _, mirror := range o.Mirrors {
		of, address, found := strings.Cut(mirror, "=")
		if !found {
			of, address = name.DefaultRegistry, mirror
		}
		if of != named {
			continue
		}
		host, plain, err := ParseRegistry(address)
		if err != nil {
			return nil, fmt.Errorf("mirror: %w", err)
		}
		plain = plain || o.PlainHTTP
		m, err := Reference{
			Kind: Registry, Name: host + strings.TrimPrefix(parsed.Name(), named),
			PlainOK: plain,
		}.Parsed()
		if err != nil {
			return nil, fmt.Errorf("mirror: %w", err)
		}
		all = append(all, candidate{m, plain})
	}
	return append(all, candidate{parsed, plain}), nil
}

func openRegistry(ctx context.Context, ref Reference, want *selector, o Options) (*Image, error) {
	refs, err := candidates(ref, o)
	if err != nil {
		return nil, err
	}
	in := &hosts{}
	var failures []error
	for _, r := range refs {
		e, err := connect(ctx, r, o)
		if err != nil {
			failures = append(failures, registry.Explain(r, err))
			continue
		}
		in.endpoints = append(in.endpoints, e)
	}
	for n, e := range in.endpoints {
		d, err := in.find(ctx, e)
		if err == nil {
			in.endpoints = in.endpoints[n:] // those before it don't have the image
			return load(ctx, in, d, want)
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

// find asks which manifest the endpoint's reference leads to.
func (g *hosts) find(ctx context.Context, e *endpoint) (v1.Descriptor, error) {
	if digest, ok := e.ref.(name.Digest); ok {
		h, err := v1.NewHash(digest.DigestStr())
		if err != nil {
			return v1.Descriptor{}, err
		}
		d := v1.Descriptor{Digest: h}
		g.named, err = e.manifest(ctx, d)
		return d, e.missing(ctx, err)
	}
	raw, media, err := e.fetch(ctx, e.ref.Identifier())
	if err != nil {
		return v1.Descriptor{}, e.missing(ctx, err)
	}
	h, n, err := v1.SHA256(bytes.NewReader(raw))
	g.named = raw
	return v1.Descriptor{Digest: h, Size: n, MediaType: media}, err
}

// missing tells a tag that isn't there from a repository that isn't: many registries answer both in the same way, but
// not where they are asked for the tags there are.
func (e *endpoint) missing(ctx context.Context, err error) error {
	if !errors.Is(err, ErrNoTag) {
		return err
	}
	repository := e.ref.Context()
	answer, tagsErr := e.get(ctx, "/tags/list", nil, http.StatusOK)
	if tagsErr == nil {
		return errors.Join(err, answer.Body.Close())
	}
	if tagsErr = registry.Explain(e.ref, tagsErr); errors.Is(tagsErr, ErrNoImage) {
		return tagsErr
	}
	return fmt.Errorf("%w; or there is no repository %s: the registry doesn't tell", err, repository.RepositoryStr())
}

// connect finds out how a registry wants to be spoken to.
func connect(ctx context.Context, ref candidate, o Options) (*endpoint, error) {
	o.PlainHTTP = ref.plain
	repository := ref.Context()
	auth, err := authn.Resolve(ctx, o.access().Credentials(), repository)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", repository.RegistryStr(), err)
	}
	base := retrying(transport.NewUserAgent(o.access().Transport(), o.UserAgent))
	t, err := transport.NewWithContext(ctx, repository.Registry, auth, base,
		[]string{repository.Scope(transport.PullScope)})
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
		return nil, "", registry.Explain(e.ref, err)
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

func (g *hosts) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if checkBytes(g.named, d) == nil {
		return g.named, nil
	}
	return anyOf(g, func(e *endpoint) ([]byte, error) { return e.manifest(ctx, d) })
}

// anyOf takes what the first of a registry's endpoints gives.
func anyOf[T any](g *hosts, ask func(*endpoint) (T, error)) (T, error) {
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

func (g *hosts) blob(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	return anyOf(g, func(e *endpoint) (io.ReadCloser, error) { return e.blob(ctx, d, offset) })
}

func (g *hosts) attempts() int { return maxAttempts }

// blob asks for a blob from an offset on.
func (e *endpoint) blob(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	header := http.Header{}
	if offset > 0 { // with its end: some registries take no open range
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, d.Size-1))
	}
	answer, err := e.get(ctx, "/blobs/"+d.Digest.String(), header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return nil, registry.Explain(e.ref, err)
	}
	body := answer.Body
	skip := offset
	if answer.StatusCode == http.StatusPartialContent {
		if !strings.HasPrefix(answer.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
			return nil, errors.Join(fmt.Errorf("%w: asked for bytes from %d on, got %.100q", ErrDamaged, offset,
				answer.Header.Get("Content-Range")), body.Close())
		}
		skip = 0
	}
	if _, err := io.CopyN(io.Discard, body, skip); err != nil { // a server that knows no ranges
		return nil, errors.Join(err, body.Close())
	}
	return body, nil
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
	tags, err := remote.List(r, o.access().Remote(ctx)...)
	if err != nil {
		return nil, fmt.Errorf("list tags of %s: %w", r, registry.Explain(r.Tag("*"), err))
	}
	slices.Sort(tags)
	return tags, nil
}
