package ducc

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/convert/wish"
)

// user returns whose credentials are used for a registry; "" is nobody's.
func user(t *testing.T, o source.Options, registry string) string {
	t.Helper()
	r, err := name.NewRegistry(registry)
	if err != nil {
		t.Fatal(err)
	}
	auth, err := o.Keychain.Resolve(r)
	if err != nil {
		t.Fatal(err)
	}
	config, err := auth.Authorization()
	if err != nil {
		t.Fatal(err)
	}
	return config.Username + ":" + config.Password
}

func TestCredentialsOfTheEnvironment(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	for name, value := range map[string]string{
		"DUCC_AUTH_REGISTRIES":      "HUB, SITE,PROXIED",
		"DUCC_HUB_IDENT":            "https://registry-1.docker.io/v2/",
		"DUCC_HUB_USER":             "h",
		"DUCC_HUB_PASS":             "1",
		"DUCC_SITE_IDENT":           "registry.example.org:5000",
		"DUCC_SITE_USER":            "s",
		"DUCC_SITE_PASS":            "2",
		"DUCC_PROXIED_IDENT":        "other.example.org",
		"DUCC_PROXIED_PROXY":        "https://proxy.example.org",
		"DUCC_OUTPUT_REGISTRY_PASS": "3",
	} {
		t.Setenv(name, value)
	}
	list := &wish.List{
		User: "o", Format: "https://out.example.org/thin/$(image)",
		Wishes: []wish.Wish{{Scheme: "https", Registry: "registry.example.org", Repository: "a", Tag: "1"}},
	}
	var c convert.Converter
	if err := SetCredentials(&c, list); err != nil {
		t.Fatal(err)
	}
	got := []string{
		user(t, c.Input, "index.docker.io"), user(t, c.Input, "registry.example.org:5000"),
		user(t, c.Input, "other.example.org"), user(t, c.Output, "out.example.org"),
		user(t, c.Output, "registry.example.org:5000"),
	}
	if diff := cmp.Diff([]string{"h:1", "s:2", ":", "o:3", ":"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"other.example.org=https://proxy.example.org"}, c.Input.Mirrors); diff != "" {
		t.Errorf("mirrors (-want +got)\n%s", diff)
	}
}

func TestIncompleteCredentialsAreRefusedByName(t *testing.T) {
	t.Setenv("DUCC_AUTH_REGISTRIES", "HALF")
	t.Setenv("DUCC_HALF_IDENT", "registry.example.org")
	t.Setenv("DUCC_HALF_USER", "u")
	c := convert.Converter{Input: source.Options{Keychain: authn.DefaultKeychain}}
	if err := SetCredentials(&c, &wish.List{}); err == nil || !strings.Contains(err.Error(), "DUCC_HALF_PASS") {
		t.Errorf("%v, want an error that names DUCC_HALF_PASS", err)
	}
}
