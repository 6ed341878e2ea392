package source

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"cvmfs-graphdriver/test/testutil"
)

func TestCredentialsAreUsedAndNotTold(t *testing.T) {
	registry := testutil.NewRegistry(t, "me", "secret")
	original, err := random.Image(1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	name := registry.Push(t, "a:1", original, &authn.Basic{Username: "me", Password: "secret"})
	ref, err := Parse(name, "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(t.Context(), ref, Options{Keychain: login{Username: "me", Password: "secret"}})
	if digest, _ := original.Digest(); err != nil || got.Digest != digest {
		t.Errorf("right ones: %v", err)
	}
	for _, o := range []Options{{}, {Keychain: login{Username: "me", Password: "mistyped"}}} {
		_, err := Open(t.Context(), ref, o)
		if !errors.Is(err, ErrCredentials) || strings.Contains(err.Error(), "mistyped") {
			t.Errorf("error %v", err)
		}
	}
}
