// Package wish reads wish lists: which images a repository should have.
//
// A wish list is a YAML file of the form of the DUCC tool, version 1:
//
//	version: 1
//	user: robot
//	cvmfs_repo: layers.example.org
//	output_format: '$(scheme)://registry.example.org/thin/$(image)'
//	input:
//	  - 'https://registry-1.docker.io/library/debian:13'
//	  - 'https://registry-1.docker.io/library/python:3.*'
//
// With "profile: record" the start of each new image is recorded (docs/start-profiles.md), which needs root; DUCC knows no such key.
//
// A wish names an image with its registry, and its tag or digest: none is taken for granted. A tag may be a pattern:
// "*" stands for any run of characters, also none, "?" for exactly one, every other character for itself; the whole tag
// must fit.
//
// The variables of output_format are $(scheme), $(registry), $(repository), $(tag), $(digest), $(reference), which is
// ":TAG", "@DIGEST" or both, and $(image), which is repository and reference. They are those of the image a pattern led
// to. A thin image has a tag: where a digest would stand, "@sha256:…" becomes ":sha256-…".
package wish

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"cvmfs-graphdriver/cvmfs/fqrn"
)

// DefaultFormat is where thin images go if a list doesn't say.
const DefaultFormat = "$(scheme)://$(registry)/$(repository)_thin:$(tag)"

const (
	maxList   = 4 << 20 // bytes of a file
	maxWishes = 100_000
)

// List is a wish list.
type List struct {
	User       string // who pushes thin images
	Repository string // FQRN
	Format     string // of output references
	Record     bool   // a start profile is recorded of images that have none
	Wishes     []Wish
}

// Wish is an image, or a pattern of images.
type Wish struct {
	Text       string
	Scheme     string // https or http
	Registry   string // HOST[:PORT]
	Repository string
	Tag        string // may be a pattern; "" if there is a digest only
	Digest     string // "sha256:…"; ""
}

// ReadFile reads a wish list's file.
func ReadFile(file string) (*List, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	list, err := Read(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

// ReadFiles reads the files of all wish lists of a repository. Those of several repositories are [ErrMixed].
func ReadFiles(files []string) ([]*List, error) {
	var lists []*List
	for _, file := range files {
		l, err := ReadFile(file)
		if err != nil {
			return nil, err
		}
		lists = append(lists, l)
		if first := lists[0].Repository; l.Repository != first {
			return nil, fmt.Errorf("%w: %s has %s, %s has %s", ErrMixed, files[0], first, file, l.Repository)
		}
	}
	return lists, nil
}

// ErrMixed means that wish lists are for several repositories.
var ErrMixed = errors.New("the wish lists are for several repositories")

// Read reads a wish list.
func Read(r io.Reader) (*List, error) {
	l, err := read(r)
	if err != nil {
		return nil, fmt.Errorf("wish list: %w", err)
	}
	return l, nil
}

func read(r io.Reader) (*List, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxList+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxList {
		return nil, fmt.Errorf("more than %d bytes", maxList)
	}
	raw, err := readFields(b)
	if err != nil {
		return nil, err
	}
	switch {
	case raw.version != 1:
		return nil, fmt.Errorf("version %d: this program reads version 1", raw.version)
	case len(raw.input) == 0:
		return nil, errors.New("input: no images")
	case len(raw.input) > maxWishes:
		return nil, fmt.Errorf("input: %d images, the limit is %d", len(raw.input), maxWishes)
	}
	if err := fqrn.Check(raw.repo); err != nil {
		return nil, fmt.Errorf("cvmfs_repo: %w", err)
	}
	if raw.profile != "" && raw.profile != "record" {
		return nil, fmt.Errorf("profile %.40q: want record, or nothing", raw.profile)
	}
	l := &List{User: raw.user, Repository: raw.repo, Format: raw.format, Record: raw.profile == "record"}
	if l.Format == "" {
		l.Format = DefaultFormat
	}
	return l, l.addWishes(raw.input)
}

// addWishes reads all wishes, so that one run tells of all that are wrong, of each fault once. The same wish twice is
// one.
func (l *List) addWishes(texts []string) error {
	var wrong []error
	seen, told := map[string]bool{}, map[string]bool{}
	for _, text := range texts {
		w, err := Parse(text)
		if err == nil && !w.Pattern() {
			_, err = w.Output(l.Format)
		}
		if err != nil {
			if !told[err.Error()] { // what is wrong with output_format is so for each wish
				told[err.Error()] = true
				wrong = append(wrong, err)
			}
			continue
		}
		if !seen[w.String()] {
			seen[w.String()] = true
			l.Wishes = append(l.Wishes, w)
		}
	}
	return errors.Join(wrong...)
}

var digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Parse reads "[SCHEME://]REGISTRY/REPOSITORY[:TAG][@DIGEST]".
func Parse(text string) (Wish, error) {
	w, err := parse(text)
	if err != nil {
		return w, fmt.Errorf("wish %.300q: %w", text, err)
	}
	return w, nil
}

func parse(text string) (Wish, error) {
	w := Wish{Text: text, Scheme: "https"}
	rest := text
	if scheme, after, found := strings.Cut(text, "://"); found {
		w.Scheme, rest = scheme, after
	}
	if w.Scheme != "https" && w.Scheme != "http" && w.Scheme != "docker" {
		return w, fmt.Errorf("scheme %.20q: want https or http", w.Scheme)
	}
	if w.Scheme == "docker" {
		w.Scheme = "https"
	}
	host, rest, found := strings.Cut(rest, "/")
	if !found || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return w, errors.New("no registry: want REGISTRY/REPOSITORY:TAG, as in registry-1.docker.io/library/debian:13")
	}
	w.Registry = host
	rest, w.Digest, found = strings.Cut(rest, "@")
	if found && !digest.MatchString(w.Digest) {
		return w, fmt.Errorf("digest %.100q: want sha256: and 64 hex digits", w.Digest)
	}
	w.Repository, w.Tag, found = strings.Cut(rest, ":")
	switch {
	case found && (w.Tag == "" || strings.Contains(w.Tag, ":")), w.Repository == "":
		return w, errors.New("want REGISTRY/REPOSITORY[:TAG][@DIGEST]")
	case w.Tag == "" && w.Digest == "":
		return w, errors.New("neither tag nor digest: write one, as in :latest or :*")
	case w.Pattern() && w.Digest != "":
		return w, errors.New("a pattern of tags and a digest exclude each other")
	}
	tag := strings.Map(func(r rune) rune {
		if r == '*' || r == '?' {
			return 'x'
		}
		return r
	}, w.Tag)
	if tag == "" {
		tag = "x"
	}
	if _, err := name.NewTag(w.Registry+"/"+w.Repository+":"+tag, name.StrictValidation); err != nil {
		return w, err
	}
	return w, nil
}

// Pattern reports whether the wish is for several images.
func (w Wish) Pattern() bool { return strings.ContainsAny(w.Tag, "*?") }

// Matches reports whether a tag fits the wish's.
func (w Wish) Matches(tag string) bool { return glob(w.Tag, tag) }

// glob matches a whole text in time linear in both but for the last star.
func glob(pattern, text string) bool {
	p, s, star, from := 0, 0, -1, 0
	for s < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, s
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[s]):
			p, s = p+1, s+1
		case star >= 0:
			from++
			p, s = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// Tagged is the wish for one of the images a pattern leads to.
func (w Wish) Tagged(tag string) Wish {
	w.Tag = tag
	w.Text = w.String()
	return w
}

// reference is ":TAG", "@DIGEST" or both.
func (w Wish) reference() string {
	r := ""
	if w.Tag != "" {
		r = ":" + w.Tag
	}
	if w.Digest != "" {
		r += "@" + w.Digest
	}
	return r
}

// String writes the wish with its scheme.
func (w Wish) String() string {
	return w.Scheme + "://" + w.Registry + "/" + w.Repository + w.reference()
}

var variable = regexp.MustCompile(`\$\([^)]*\)?`)

// Output returns where the thin image of a wish goes.
func (w Wish) Output(format string) (string, error) {
	var unknown error
	out := variable.ReplaceAllStringFunc(format, func(v string) string {
		value, found := map[string]string{
			"$(scheme)": w.Scheme, "$(registry)": w.Registry, "$(repository)": w.Repository, "$(tag)": w.tagOut(),
			"$(digest)":    w.Digest,
			"$(reference)": w.reference(), "$(image)": w.Repository + w.reference(),
		}[v]
		if !found {
			unknown = fmt.Errorf("output_format: unknown variable %.50q", v)
		}
		return value
	})
	if unknown != nil {
		return "", unknown
	}
	// A thin image can't have the digest of another: it has a tag.
	before, d, found := strings.Cut(out, "@sha256:")
	switch last := before[strings.LastIndexByte(before, '/')+1:]; {
	case found && !strings.Contains(last, ":"):
		out = before + ":sha256-" + d
	case found:
		out = before
	}
	_, rest, found := strings.Cut(out, "://")
	if !found {
		rest = out
	}
	if _, err := name.NewTag(rest); err != nil {
		return "", fmt.Errorf("output_format gives %.300q: %w", out, err)
	}
	return out, nil
}

// tagOut is the tag, or what stands for it where there is a digest only.
func (w Wish) tagOut() string {
	if w.Tag == "" {
		return strings.Replace(w.Digest, ":", "-", 1)
	}
	return w.Tag
}
