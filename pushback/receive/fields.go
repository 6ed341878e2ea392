package receive

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"go.yaml.in/yaml/v3"
)

// field is one key of a section: what it wants, in words, and where its value goes. A value may be missing, or null.
type field struct {
	key, wants string
	set        func(*yaml.Node) error
}

// errWanted says that a value isn't what is wanted; which that is the field says.
var errWanted = errors.New("not what is wanted")

// fault is what is wrong with a line.
type fault struct {
	line int
	text string
}

// faults are all that is wrong with a file.
type faults struct{ all []fault }

func (f *faults) add(line int, format string, args ...any) {
	f.all = append(f.all, fault{line, fmt.Sprintf(format, args...)})
}

// err tells all faults, by line.
func (f *faults) err() error {
	slices.SortStableFunc(f.all, func(a, b fault) int { return a.line - b.line })
	var errs []error
	for _, a := range f.all {
		errs = append(errs, fmt.Errorf("line %d: %s", a.line, a.text))
	}
	return errors.Join(errs...)
}

// document reads the one document of a file.
func document(b []byte) (*yaml.Node, error) {
	in := yaml.NewDecoder(bytes.NewReader(b))
	var root yaml.Node
	if err := in.Decode(&root); errors.Is(err, io.EOF) {
		return nil, errors.New("it is empty")
	} else if err != nil {
		return nil, err
	}
	if err := in.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it holds more than one document")
	}
	return root.Content[0], nil
}

// grants are keys without which more is allowed than with them: one that has lost its value isn't taken for none.
var grants = []string{
	"nodes", "name", "images", "prefixes", "approval", "archive", "queue", "layers_per_hour", "bytes_per_day",
	"event_sender", "metrics_reader",
}

// section reads a mapping of keys.
func (f *faults) section(n *yaml.Node, fields []field) {
	if n = resolved(n); n.Kind != yaml.MappingNode {
		f.add(n.Line, "want keys with values: %s", keys(fields))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], resolved(n.Content[i+1])
		at := slices.IndexFunc(fields, func(k field) bool { return k.key == key.Value })
		switch {
		case at < 0 || key.Kind != yaml.ScalarNode:
			f.add(key.Line, "unknown key %.100q: the keys are %s", key.Value, keys(fields))
		case seen[key.Value]:
			f.add(key.Line, "%s is there twice", key.Value)
		case value.Tag == "!!null" && slices.Contains(grants, key.Value):
			f.add(key.Line, "%s: want %s, or leave it out", key.Value, cmp.Or(fields[at].wants, "a value"))
		case value.Tag == "!!null":
		default:
			if err := fields[at].set(value); errors.Is(err, errWanted) {
				f.add(value.Line, "%s: want %s", key.Value, fields[at].wants)
			} else if err != nil {
				f.add(value.Line, "%s: %v", key.Value, err)
			}
		}
		seen[key.Value] = true
	}
}

func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func keys(fields []field) string {
	var all []string
	for _, k := range fields {
		all = append(all, k.key)
	}
	return strings.Join(all, ", ")
}

// decoded is a value as YAML has it.
func decoded[T any](key, wants string, to *T) field {
	return field{key, wants, func(n *yaml.Node) error {
		if n.Decode(to) != nil {
			return errWanted
		}
		return nil
	}}
}

func text(key string, to *string) field {
	return field{key, "a text", func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode {
			return errWanted
		}
		*to = n.Value
		return nil
	}}
}

func texts(key string, to *[]string) field { return decoded(key, "a list of texts", to) }
func yes(key string, to *bool) field       { return decoded(key, "true or false", to) }

func count(key string, to *int) field {
	return field{key, "a number from 1", func(n *yaml.Node) error {
		if n.Decode(to) != nil || *to < 1 {
			return errWanted
		}
		return nil
	}}
}

func size(key string, to *int64) field {
	return field{key, "a size, as in 4GiB", func(n *yaml.Node) error {
		bytes, err := humanize.ParseBytes(n.Value)
		if err != nil || n.Kind != yaml.ScalarNode || bytes == 0 || bytes > math.MaxInt64 {
			return errWanted
		}
		*to = int64(bytes)
		return nil
	}}
}

func pause(key string, to *time.Duration) field {
	return field{key, "a time, as in 30s, 10m or 720h", func(n *yaml.Node) error {
		d, err := time.ParseDuration(n.Value)
		if err != nil || n.Kind != yaml.ScalarNode || d <= 0 {
			return errWanted
		}
		*to = d
		return nil
	}}
}
