package ducc

import (
	"fmt"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/convert/wish"
)

// registries are credentials by registry, "HOST[:PORT]".
type registries map[string]authn.AuthConfig

// Resolve returns a registry's credentials; it is the method of [authn.Keychain].
func (r registries) Resolve(resource authn.Resource) (authn.Authenticator, error) {
	if auth, found := r[resource.RegistryStr()]; found {
		return authn.FromConfig(auth), nil
	}
	return authn.Anonymous, nil
}

// SetCredentials has a converter use the credentials of the environment before those of the user's docker login: for
// the originals, and for the thin images of a wish list.
func SetCredentials(conv *convert.Converter, list *wish.List) error {
	if err := setInput(&conv.Input); err != nil {
		return err
	}
	return setOutput(&conv.Output, list)
}

// setInput takes the registries that DUCC_AUTH_REGISTRIES names.
func setInput(o *source.Options) error {
	credentials := registries{}
	for id := range strings.SplitSeq(os.Getenv("DUCC_AUTH_REGISTRIES"), ",") {
		if id = strings.TrimSpace(id); id == "" {
			continue
		}
		of := func(what string) string { return os.Getenv("DUCC_" + id + "_" + what) }
		ident, user, password, proxy := of("IDENT"), of("USER"), of("PASS"), of("PROXY")
		if ident == "" || (user == "" || password == "") && proxy == "" {
			return fmt.Errorf("DUCC_AUTH_REGISTRIES names %.100q: "+
				"set DUCC_%[1]s_IDENT, and DUCC_%[1]s_USER with DUCC_%[1]s_PASS, or DUCC_%[1]s_PROXY", id)
		}
		host, err := canonical(ident)
		if err != nil {
			return fmt.Errorf("DUCC_%s_IDENT: %w", id, err)
		}
		if user != "" && password != "" {
			credentials[host] = authn.AuthConfig{Username: user, Password: password}
		}
		if proxy != "" {
			o.Mirrors = append(o.Mirrors, host+"="+proxy)
		}
	}
	o.Keychain = authn.NewMultiKeychain(credentials, authn.DefaultKeychain)
	return nil
}

// setOutput takes the password of the list's user.
func setOutput(o *source.Options, list *wish.List) error {
	password := os.Getenv("DUCC_OUTPUT_REGISTRY_PASS")
	if password == "" || list.User == "" {
		return nil
	}
	credentials, err := outputRegistries(list)
	if err != nil {
		return err
	}
	for host := range credentials {
		credentials[host] = authn.AuthConfig{Username: list.User, Password: password}
	}
	o.Keychain = authn.NewMultiKeychain(credentials, authn.DefaultKeychain)
	return nil
}

// outputRegistries are those a list's thin images go to.
func outputRegistries(list *wish.List) (registries, error) {
	hosts := registries{}
	for _, w := range list.Wishes {
		if w.Pattern() {
			w = w.Tagged("x")
		}
		text, err := w.Output(list.Format)
		if err != nil {
			return nil, err
		}
		ref, err := source.Parse(text, "")
		if err != nil {
			return nil, err
		}
		parsed, err := ref.Parsed()
		if err != nil {
			return nil, err
		}
		hosts[parsed.Context().RegistryStr()] = authn.AuthConfig{}
	}
	return hosts, nil
}

// canonical returns a registry as references name it.
func canonical(address string) (string, error) {
	host, _, err := source.ParseRegistry(address)
	if err != nil {
		return "", err
	}
	if host == "registry-1.docker.io" || host == "docker.io" {
		host = name.DefaultRegistry
	}
	r, err := name.NewRegistry(host)
	if err != nil {
		return "", err
	}
	return r.RegistryStr(), nil
}
