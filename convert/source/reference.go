package source

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Kind is where a reference points to.
type Kind int

// The kinds of references.
const (
	Registry Kind = iota
	Daemon
	Archive
	Layout
)

// Reference names an image.
type Reference struct {
	Kind     Kind
	Name     string // in a registry: "host/repository:tag" or "…@sha256:…"; in a daemon and an archive: its name, or ""
	Path     string // file of an archive, folder of a layout
	Tag      string // in a layout; "" if it has one image only
	PlainOK  bool   // the user wrote http://
	Explicit bool   // a tag or a digest was written
}

// schemes are what a reference may begin with.
var schemes = []struct {
	prefix string
	kind   Kind
	plain  bool
}{
	{"docker://", Registry, false},
	{"https://", Registry, false},
	{"http://", Registry, true},
	{"docker-daemon:", Daemon, false},
	{"docker-archive:", Archive, false},
	{"oci:", Layout, false},
}

// Parse reads a reference. registry, if not "", is where images without a scheme are, as in
// "https://registry-1.docker.io/v2".
func Parse(text, registry string) (Reference, error) {
	ref, err := parse(text, registry)
	if err != nil {
		return ref, fmt.Errorf("image %.300q: %w", text, err)
	}
	return ref, nil
}

func parse(text, registry string) (Reference, error) {
	if text == "" {
		return Reference{}, errors.New("no name: want [docker://]REGISTRY/REPOSITORY:TAG, docker-daemon:NAME, docker-archive:FILE or oci:DIR")
	}
	for _, s := range schemes {
		rest, found := strings.CutPrefix(text, s.prefix)
		switch {
		case !found:
		case rest == "":
			return Reference{}, fmt.Errorf("nothing follows %s", s.prefix)
		case s.kind == Registry:
			return parseRegistry(rest, s.plain)
		case s.kind == Daemon:
			return Reference{Kind: Daemon, Name: rest}, nil
		default:
			return parsePath(s.kind, rest)
		}
	}
	if registry == "" {
		return parseRegistry(text, false)
	}
	host, plain, err := ParseRegistry(registry)
	if err != nil {
		return Reference{}, err
	}
	return parseRegistry(host+"/"+text, plain)
}

// ParseRegistry reads a registry's address, "[http[s]://]HOST[:PORT][/v2]".
func ParseRegistry(text string) (host string, plain bool, err error) {
	address := text
	if !strings.Contains(text, "://") {
		address = "https://" + text
	}
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return "", false, fmt.Errorf("registry %.200q is no address", text)
	case u.User != nil:
		return "", false, errors.New("a registry's address holds no user and password here: use docker login")
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "",
		strings.Trim(u.Path, "/") != "" && strings.Trim(u.Path, "/") != "v2":
		return "", false, fmt.Errorf("registry %.200q: want https://HOST[:PORT][/v2]", text)
	}
	return u.Host, u.Scheme == "http", nil
}

// component is what stands between the slashes of a repository's name, as registries define it. The registry library
// takes more, ".." for one; names become paths.
var component = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`)

func parseRegistry(text string, plain bool) (Reference, error) {
	if strings.Contains(text, "://") {
		return Reference{}, errors.New("a scheme this program doesn't know")
	}
	// A tag beside a digest is for people: the digest decides.
	if before, digest, found := strings.Cut(text, "@"); found {
		if slash, colon := strings.LastIndexByte(before, '/'), strings.LastIndexByte(before, ':'); colon > slash {
			text = before[:colon] + "@" + digest
		}
	}
	parsed, err := name.ParseReference(text)
	if err != nil {
		return Reference{}, err
	}
	for part := range strings.SplitSeq(parsed.Context().RepositoryStr(), "/") {
		if !component.MatchString(part) {
			return Reference{}, fmt.Errorf("repository %.200q: %.100q is no part of a name",
				parsed.Context().RepositoryStr(), part)
		}
	}
	slash := strings.LastIndexByte(text, '/')
	explicit := strings.ContainsAny(text[slash+1:], ":@")
	return Reference{Kind: Registry, Name: parsed.Name(), PlainOK: plain, Explicit: explicit}, nil
}

// parsePath cuts "PATH[:NAME]" at the first colon: neither has one in its path as the tools write it.
func parsePath(kind Kind, text string) (Reference, error) {
	path, rest, found := strings.Cut(text, ":")
	if path == "" || found && rest == "" {
		return Reference{}, errors.New("want PATH or PATH:NAME; a path that holds a colon can't be named")
	}
	ref := Reference{Kind: kind, Path: path, Explicit: true}
	if kind == Archive {
		ref.Name = rest
	} else {
		ref.Tag = rest
	}
	return ref, nil
}

// String writes the reference as Parse reads it.
func (r Reference) String() string {
	switch r.Kind {
	case Daemon:
		return "docker-daemon:" + r.Name
	case Archive:
		return joinName("docker-archive:"+r.Path, r.Name)
	case Layout:
		return joinName("oci:"+r.Path, r.Tag)
	default:
		return "docker://" + r.Name
	}
}

func joinName(path, name string) string {
	if name == "" {
		return path
	}
	return path + ":" + name
}

// Parsed is a registry's reference as the registry library has it.
func (r Reference) Parsed() (name.Reference, error) {
	if r.Kind != Registry {
		return nil, fmt.Errorf("%s is in no registry", r)
	}
	var options []name.Option
	if r.PlainOK {
		options = append(options, name.Insecure)
	}
	return name.ParseReference(r.Name, options...)
}

// Digested reports whether a registry's reference names its image by a digest.
func (r Reference) Digested() bool { return r.Kind == Registry && strings.Contains(r.Name, "@") }
