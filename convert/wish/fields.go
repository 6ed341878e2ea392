package wish

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fields are those of a list's file.
type fields struct {
	version  int
	user     string
	repo     string
	format   string
	profile  string
	input    []string
	failures []error
}

// field is one key of the file: what it wants, in words, and where its value goes. A value may be missing, or null.
type field struct {
	key, wants string
	to         func(*fields) any
}

var known = []field{
	{"version", "a number", func(f *fields) any { return &f.version }},
	{"user", "a text", func(f *fields) any { return &f.user }},
	{"cvmfs_repo", "a text", func(f *fields) any { return &f.repo }},
	{"profile", "a text", func(f *fields) any { return &f.profile }},
	{"output_format", "a text", func(f *fields) any { return &f.format }},
	{"input", "a list of texts", func(f *fields) any { return &f.input }},
}

// readFields reads the file's fields, and tells of all that is wrong with them.
func readFields(b []byte) (*fields, error) {
	in := yaml.NewDecoder(bytes.NewReader(b))
	var root yaml.Node
	if err := in.Decode(&root); errors.Is(err, io.EOF) {
		return nil, errors.New("it is empty")
	} else if err != nil {
		return nil, err
	}
	if err := in.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it holds more than one document: give each list a file of its own")
	}
	if len(root.Content) != 1 || root.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("it holds no keys with values: want %s", keys())
	}
	var values map[string]yaml.Node
	if err := root.Decode(&values); err != nil {
		return nil, inOwnWords(err)
	}
	f := &fields{}
	for key, value := range values {
		f.set(key, value)
	}
	// a map's order is none
	slices.SortFunc(f.failures, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return f, errors.Join(f.failures...)
}

func (f *fields) set(key string, value yaml.Node) {
	at := slices.IndexFunc(known, func(k field) bool { return k.key == key })
	if at < 0 {
		f.failures = append(f.failures, fmt.Errorf("line %d: unknown key %.100q: the keys are %s", value.Line, key,
			keys()))
		return
	}
	if err := value.Decode(known[at].to(f)); err != nil {
		f.failures = append(f.failures, fmt.Errorf("line %d: %s: want %s", value.Line, key, known[at].wants))
	}
}

// inOwnWords says what is wrong with a file's keys without the names of this program's types.
func inOwnWords(err error) error {
	typed := new(yaml.TypeError)
	if !errors.As(err, &typed) {
		return err
	}
	var faults []error
	for _, text := range typed.Errors {
		if line, _, found := strings.Cut(text, ": cannot unmarshal"); found {
			text = line + ": a key must be a text"
		}
		faults = append(faults, errors.New(text))
	}
	return errors.Join(faults...)
}

// keys names all keys there are.
func keys() string {
	var all []string
	for _, k := range known {
		all = append(all, k.key)
	}
	return strings.Join(all, ", ")
}
