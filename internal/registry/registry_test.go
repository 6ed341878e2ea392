package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

func TestPlainHTTPIsSpokenOnRequestOnly(t *testing.T) {
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer s.Close()
	proxy := func(r *http.Request) { r.URL.Host = s.Listener.Addr().String() }
	for _, c := range []struct {
		plain bool
		want  bool
	}{{false, false}, {true, true}} {
		before := asked.Load()
		r := httptest.NewRequest(http.MethodGet, "http://10.1.2.3/v2/", nil)
		r.RequestURI = ""
		_, err := tlsOnly{redirected{proxy}, c.plain}.RoundTrip(r)
		if got := asked.Load() > before; got != c.want || (err == nil) != c.want {
			t.Errorf("plain %v: %v", c.plain, err)
		}
	}
}

// redirected sends requests to another server.
type redirected struct{ to func(*http.Request) }

func (r redirected) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	r.to(req)
	return http.DefaultTransport.RoundTrip(req)
}

// quiet is a server that reads so many bytes of a request, or answers so many, and then nothing until the client goes.
func quiet(t *testing.T, answers bool) (address string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !answers {
			http.NewResponseController(w).EnableFullDuplex()
			io.CopyN(io.Discard, r.Body, 10)
			<-t.Context().Done() // it isn't read that the client goes
			return
		}
		w.Write([]byte("so far"))
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(s.CloseClientConnections)
	t.Cleanup(s.Close)
	return s.URL
}

// endless is a body without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
func (endless) Close() error               { return nil }

func TestAPeerThatStallsIsGivenUp(t *testing.T) {
	client := &http.Client{Transport: bounded{http.DefaultTransport.(*http.Transport).Clone(), 100 * time.Millisecond}}
	t.Run("reading the request", func(t *testing.T) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, quiet(t, false), endless{})
		if err != nil {
			t.Fatal(err)
		}
		if answer, err := client.Do(r); err == nil || !strings.Contains(err.Error(), "no data for 100ms") {
			t.Errorf("%v, %v", answer, err)
		}
	})
	t.Run("answering", func(t *testing.T) {
		answer, err := client.Get(quiet(t, true))
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if said, err := io.ReadAll(answer.Body); string(said) != "so far" || err == nil ||
			!strings.Contains(err.Error(), "no data for 100ms") {
			t.Errorf("%q, %v", said, err)
		}
	})
}

func TestAReaderThatTakesItsTimeIsNotThePeersFault(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Write(append(body, body...))
	}))
	defer s.Close()
	const idle = 50 * time.Millisecond
	client := &http.Client{Transport: bounded{http.DefaultTransport, idle}}
	answer, err := client.Post(s.URL, "", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	<-time.After(3 * idle) // the time is what is tested
	if said, err := io.ReadAll(answer.Body); string(said) != "xx" || err != nil {
		t.Errorf("%q, %v", said, err)
	}
}

func TestARequestEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, quiet(t, true), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := Options{}.Transport().RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	cancel()
	if _, err := io.ReadAll(answer.Body); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestARegistryWithoutTLSIsToldAsSuch(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	ref, err := name.ParseReference("registry.example.org:5000/a/b:1")
	if err != nil {
		t.Fatal(err)
	}
	at := "https://" + s.Listener.Addr().String()
	_, asked := (&http.Client{Transport: Options{}.Transport()}).Get(at)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, sent := Options{}.Transport().RoundTrip(r)
	for _, err := range []error{asked, sent} {
		if err == nil || !strings.Contains(Explain(ref, err).Error(), "--plain-http") {
			t.Errorf("%v", Explain(ref, err))
		}
	}
}

func TestRefusalsAreExplained(t *testing.T) {
	ref, err := name.ParseReference("registry.example.org/a/b:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := Explain(ref, nil); err != nil {
		t.Errorf("nothing is explained as %v", err)
	}
	manifest := httptest.NewRequest(http.MethodGet, "https://registry.example.org/v2/a/b/manifests/1", nil)
	tags := httptest.NewRequest(http.MethodGet, "https://registry.example.org/v2/a/b/tags/list", nil)
	for _, c := range []struct {
		refusal transport.Error
		is      error
		says    string
	}{
		{transport.Error{StatusCode: 401}, ErrCredentials, "docker login registry.example.org"},
		{transport.Error{StatusCode: 403}, ErrCredentials, "docker login registry.example.org"},
		{
			transport.Error{StatusCode: 404, Errors: []transport.Diagnostic{{Code: transport.NameUnknownErrorCode}}},
			ErrNoImage, "has no a/b",
		},
		{
			transport.Error{
				StatusCode: 404, Errors: []transport.Diagnostic{{Code: transport.ManifestUnknownErrorCode}},
			},
			ErrNoTag, "has no 1",
		},
		{transport.Error{StatusCode: 404, Request: manifest}, ErrNoTag, "has no 1"},
		{transport.Error{StatusCode: 404}, ErrNoImage, "a part of it is missing"},
		{transport.Error{StatusCode: 404, Request: tags}, ErrNoImage, "has no a/b"},
		{transport.Error{StatusCode: 429}, nil, "no more requests"},
		{transport.Error{StatusCode: 500}, nil, "registry registry.example.org"},
	} {
		err := Explain(ref, &c.refusal)
		if c.is != nil && !errors.Is(err, c.is) || !errors.As(err, new(*transport.Error)) ||
			!strings.Contains(err.Error(), c.says) {
			t.Errorf("%d: %v", c.refusal.StatusCode, err)
		}
	}
	evil := Explain(ref, &transport.Error{
		StatusCode: 500,
		Errors:     []transport.Diagnostic{{Message: "\x1b[2J" + strings.Repeat("no ", 10_000)}},
	})
	if text := evil.Error(); len(text) > 2*maxSaid || strings.Contains(text, "\x1b") {
		t.Errorf("%d bytes: %.200q", len(text), text)
	}
}
