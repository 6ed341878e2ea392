package containerd

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Main returns a main file that imports a drop-in, and says of the snapshotter what a containerd of a version doesn't
// take from there. Not a byte is changed but for that; nil, no file, makes a new one.
func Main(main []byte, version, dropIn string, o Options) ([]byte, error) {
	if main == nil {
		main = fmt.Appendf(nil, "version = %d\n", newest(version))
	}
	d, err := parse(main)
	if err == nil && !d.imports(dropIn) {
		main, err = d.appendTo("imports", dropIn)
	}
	if err != nil || !first(version) {
		return main, err
	}
	tables, err := o.plugins(version, main)
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		for _, k := range slices.Backward(t.keys) { // a new one is put first
			if main, err = set(main, t.path, k); err != nil {
				return nil, fmt.Errorf("set %s of [%s]: %w", k.name, dotted(t.path), err)
			}
		}
	}
	return main, nil
}

// newest is the version of a main file that any containerd of a major version takes.
func newest(version string) int {
	if first(version) {
		return 2
	}
	return 3
}

// Version returns the version that a main file says, 0 for none.
func Version(main []byte) (int, error) {
	var says struct{ Version int }
	if err := toml.Unmarshal(main, &says); err != nil {
		return 0, fmt.Errorf("it is no TOML: %w", err)
	}
	return says.Version, nil
}

// document is a file's text with the places of what is in it.
type document struct {
	text    []byte
	entries []entry
	headers []header
}

// entry is a key with its value.
type entry struct {
	path       []string // of tables, and the key
	in         int      // the header it is below, -1 for none
	start, end int      // of its text
	value      int      // where its value starts
	inline     bool     // the value is a table
	elements   []int    // of a list: where each ends
}

// header is the line that begins a table.
type header struct {
	path  []string
	start int // of its line
	end   int // of its line, the newline not included
}

func parse(text []byte) (*document, error) {
	d := &document{text: text}
	p := unstable.Parser{}
	p.Reset(text)
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			path, at := keys(e.Key())
			start := bytes.LastIndexByte(text[:at.start], '\n') + 1
			d.headers = append(d.headers, header{path, start, d.lineEnd(at.end)})
		case unstable.KeyValue:
			d.add(e, d.above(), len(d.headers)-1)
		}
	}
	if err := p.Error(); err != nil {
		return nil, fmt.Errorf("it is no TOML: %w", err)
	}
	return d, nil
}

// above is the path of the table that the last header begins.
func (d *document) above() []string {
	if len(d.headers) == 0 {
		return nil
	}
	return d.headers[len(d.headers)-1].path
}

// add adds a key with its value, and those in the value.
func (d *document) add(n *unstable.Node, above []string, in int) {
	path, at := keys(n.Key())
	value := at.end + bytes.IndexByte(d.text[at.end:], '=') + 1
	value += len(d.text[value:]) - len(bytes.TrimLeft(d.text[value:], " \t"))
	e := entry{
		path: slices.Concat(above, path), in: in, start: int(n.Raw.Offset), end: int(n.Raw.Offset + n.Raw.Length),
		value: value, inline: n.Value().Kind == unstable.InlineTable,
	}
	children := n.Value().Children()
	for children.Next() {
		switch c := children.Node(); {
		case e.inline && c.Kind == unstable.KeyValue:
			defer d.add(c, e.path, in)
		case n.Value().Kind == unstable.Array && c.Kind != unstable.Comment:
			e.elements = append(e.elements, int(c.Raw.Offset+c.Raw.Length))
		}
	}
	d.entries = append(d.entries, e)
}

// span is a part of a text.
type span struct{ start, end int }

// keys returns the parts of a key, and where it is.
func keys(it unstable.Iterator) (path []string, at span) {
	at.start = -1
	for it.Next() {
		n := it.Node()
		path = append(path, string(n.Data))
		if at.start < 0 {
			at.start = int(n.Raw.Offset)
		}
		at.end = int(n.Raw.Offset + n.Raw.Length)
	}
	return path, at
}

// lineEnd is where the line of a place ends.
func (d *document) lineEnd(at int) int {
	n := bytes.IndexByte(d.text[at:], '\n')
	if n < 0 {
		return len(d.text)
	}
	if n > 0 && d.text[at+n-1] == '\r' {
		n--
	}
	return at + n
}

// newline is how the text ends its lines.
func (d *document) newline() string {
	if bytes.Contains(d.text, []byte("\r\n")) {
		return "\r\n"
	}
	return "\n"
}

func (d *document) entry(path []string) *entry {
	for i := range d.entries {
		if slices.Equal(d.entries[i].path, path) {
			return &d.entries[i]
		}
	}
	return nil
}

// imports reports whether the file imports another one already.
func (d *document) imports(file string) bool {
	var says struct{ Imports []string }
	if toml.Unmarshal(d.text, &says) != nil {
		return false
	}
	return slices.ContainsFunc(says.Imports, func(pattern string) bool {
		many := strings.Contains(pattern, "*") // other patterns are names
		if !filepath.IsAbs(pattern) {
			// As seen from the main file, which lies beside the folder of drop-ins; of many, containerd 1.6 sees none.
			return !many && filepath.Join(filepath.Dir(filepath.Dir(file)), pattern) == file
		}
		match, err := filepath.Match(pattern, file)
		return many && err == nil && match || filepath.Clean(pattern) == file
	})
}

// Elsewhere returns a main file of a folder as it is read in another one: what it imports is where it was.
func Elsewhere(main []byte, folder string) ([]byte, error) {
	var says struct{ Imports []string }
	if err := toml.Unmarshal(main, &says); err != nil {
		return nil, fmt.Errorf("it is no TOML: %w", err)
	}
	if !slices.ContainsFunc(says.Imports, func(i string) bool { return !filepath.IsAbs(i) }) {
		return main, nil
	}
	for i, name := range says.Imports {
		if !filepath.IsAbs(name) {
			says.Imports[i] = filepath.Join(folder, name)
		}
	}
	return set(main, nil, key{"imports", says.Imports})
}

// appendTo returns the text with one more element of a list of texts that is in no table, and may be missing.
func (d *document) appendTo(list, element string) ([]byte, error) {
	var says map[string]any
	if err := toml.Unmarshal(d.text, &says); err != nil {
		return nil, err
	}
	was, ok := says[list].([]any)
	if !ok && says[list] != nil {
		return nil, fmt.Errorf("%s is no list", list)
	}
	e := d.entry([]string{list})
	if e == nil {
		return set(d.text, nil, key{list, []string{element}})
	}
	at, text := e.value+1, literal(element)
	if len(e.elements) > 0 {
		at, text = e.elements[len(e.elements)-1], ", "+text
	}
	return d.replaced(at, at, text, map[string]any{list: append(slices.Clone(was), any(element))})
}

// set returns a text in which a key of a table has a value.
func set(text []byte, table []string, k key) ([]byte, error) {
	d, err := parse(text)
	if err != nil {
		return nil, err
	}
	path := append(slices.Clone(table), k.name)
	want := nested(path, k.value)
	if e := d.entry(path); e != nil {
		return d.replaced(e.value, e.end, literal(k.value), want)
	}
	start, line := d.place(table, k)
	return d.replaced(start, start, line, want)
}

// place finds where a key that isn't there is to go, and its text.
func (d *document) place(table []string, k key) (at int, text string) {
	newline := d.newline()
	said := " = " + literal(k.value)
	// In a table that a key of another one has as its value.
	for n := len(table); n > 0; n-- {
		if e := d.entry(table[:n]); e != nil && e.inline {
			text = " " + dotted(append(slices.Clone(table[n:]), k.name)) + said
			if rest := bytes.TrimSpace(d.text[e.value+1 : e.end-1]); len(rest) > 0 {
				text += ","
			}
			return e.value + 1, text
		}
	}
	// Beside keys that reach into the table from the one they are in.
	for _, e := range d.entries {
		if e.in < 0 || len(e.path) <= len(table) || !slices.Equal(e.path[:len(table)], table) {
			continue
		}
		if h := d.headers[e.in]; len(h.path) < len(table) {
			return d.line(h, newline, dotted(append(slices.Clone(table[len(h.path):]), k.name))+said)
		}
	}
	for _, h := range d.headers {
		if slices.Equal(h.path, table) {
			return d.line(h, newline, k.name+said)
		}
	}
	if len(table) > 0 {
		return d.atEnd(newline, fmt.Sprintf("[%s]%s  %s%s%[2]s", dotted(table), newline, k.name, said))
	}
	for _, e := range slices.Backward(d.entries) {
		if e.in < 0 && len(e.path) == 1 {
			return d.lineEnd(e.end), newline + k.name + said
		}
	}
	return 0, k.name + said + newline
}

// line is a line behind that of a header.
func (d *document) line(h header, newline, said string) (at int, text string) {
	line := d.text[h.start:h.end]
	indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
	return h.end, newline + string(indent) + "  " + said
}

func (d *document) atEnd(newline, said string) (at int, text string) {
	if len(d.text) > 0 && !bytes.HasSuffix(d.text, []byte("\n")) {
		text = newline
	}
	return len(d.text), text + newline + said
}

// replaced returns the text with a part replaced. It is an error if that says anything else than is wanted besides.
func (d *document) replaced(start, end int, by string, want map[string]any) ([]byte, error) {
	text := slices.Concat(d.text[:start], []byte(by), d.text[end:])
	var before, after map[string]any
	if err := toml.Unmarshal(d.text, &before); err != nil {
		return nil, fmt.Errorf("it is no TOML: %w", err)
	}
	if err := toml.Unmarshal(text, &after); err != nil {
		return nil, fmt.Errorf("it is written in a way that can't be edited (%w): set it by hand", err)
	}
	if before == nil {
		before = map[string]any{}
	}
	if err := merge(before, want); err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(before, after) {
		return nil, errors.New("it is written in a way that can't be edited: set it by hand")
	}
	return text, nil
}

// nested is the value at a path, as tables.
func nested(path []string, value any) map[string]any {
	if texts, ok := value.([]string); ok {
		var list []any
		for _, t := range texts {
			list = append(list, t)
		}
		value = list
	}
	for _, name := range slices.Backward(path) {
		value = map[string]any{name: value}
	}
	return value.(map[string]any)
}

// merge puts values into tables.
func merge(into, from map[string]any) error {
	for name, value := range from {
		table, ok := value.(map[string]any)
		if !ok {
			into[name] = value
			continue
		}
		if into[name] == nil {
			into[name] = map[string]any{}
		}
		below, ok := into[name].(map[string]any)
		if !ok {
			return fmt.Errorf("%s is no table: set it by hand", name)
		}
		if err := merge(below, table); err != nil {
			return err
		}
	}
	return nil
}
