package testutil

import (
	"io"
	"log"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry is an image registry in the test's process, which misbehaves as its Faulty says.
type Registry struct {
	*Faulty
	Host string // "127.0.0.1:port"
}

// NewRegistry runs an empty registry. If user isn't "", it wants that user and the password.
func NewRegistry(t testing.TB, user, password string) *Registry {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, p, _ := r.BasicAuth()
		if user != "" && (u != user || p != password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}`, http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	}))
	return &Registry{s, s.URL[len("http://"):]}
}

// Push puts an image or a list of images into the registry as "repository:tag" and gives its whole name.
func (r *Registry) Push(t testing.TB, as string, what remote.Taggable, auth authn.Authenticator) string {
	t.Helper()
	ref, err := name.ParseReference(r.Host + "/" + as)
	if err != nil {
		t.Fatal(err)
	}
	if auth == nil {
		auth = authn.Anonymous
	}
	switch what := what.(type) {
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, what, remote.WithAuth(auth))
	case v1.Image:
		err = remote.Write(ref, what, remote.WithAuth(auth))
	default:
		t.Fatalf("%T can't be pushed", what)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}
