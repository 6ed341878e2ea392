package daemonjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/aymanbagabas/go-udiff"
	"github.com/tailscale/hujson"
)

// Change is what is to become of a key.
type Change struct {
	Key   string
	Value json.RawMessage // nil: the key goes
}

// Set makes a change that gives a key a value.
func Set[T bool | string | []string](key string, value T) Change {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(value); err != nil {
		panic(err) // these types can be encoded
	}
	return Change{key, bytes.TrimSpace(b.Bytes())}
}

// Delete makes a change that takes a key away.
func Delete(key string) Change { return Change{Key: key} }

// Get returns the value the engine takes for a key: of several, also in other case, the last. A file that is no JSON
// has none.
func (f *File) Get(key string) (value json.RawMessage, ok bool) {
	object, err := f.object()
	if err != nil || object == nil {
		return nil, false
	}
	for _, m := range object.Members {
		if strings.EqualFold(name(m), key) {
			value, ok = raw(m.Value), true
		}
	}
	return value, ok
}

// Strings returns the value of a key that is a list of strings; what is of another shape, which Problems tells, is
// none.
func (f *File) Strings(key string) (list []string) {
	if value, ok := f.Get(key); ok {
		_ = json.Unmarshal(value, &list)
	}
	return list
}

// String returns the value of a key that is a text; "" if there is none, or it is of another shape.
func (f *File) String(key string) (text string) {
	if value, ok := f.Get(key); ok {
		_ = json.Unmarshal(value, &text)
	}
	return text
}

// object returns the file's object, nil if there is none in it.
func (f *File) object() (*hujson.Object, error) {
	t, err := take(f.content)
	if err != nil || len(t.body) == 0 {
		return nil, err
	}
	tree, problem := t.syntax()
	if problem != nil {
		return nil, errors.New(problem.String())
	}
	if tree.Value.Kind() == 'n' {
		return nil, nil
	}
	object, ok := tree.Value.(*hujson.Object)
	if !ok {
		return nil, errors.New("it holds no object, {…}")
	}
	return object, nil
}

// Edit returns the file with keys changed, and all else as it was. A new key is put last, in the manner of those that
// are there; one that comes several times is changed where the engine takes it from, and deleted everywhere. A value
// that is already what it is to be isn't touched. A file with comments or trailing commas, or that is no JSON, can't be
// edited.
func (f *File) Edit(changes ...Change) (*File, error) {
	next, err := f.edit(changes)
	if err != nil {
		return nil, fmt.Errorf("edit %s: %w", f.Path, err)
	}
	return next, nil
}

func (f *File) edit(changes []Change) (*File, error) {
	t, err := take(f.content)
	if err != nil {
		return nil, err
	}
	if len(t.body) == 0 || string(t.body) == "null" {
		return f.fill(t, changes)
	}
	tree, problem := t.syntax()
	if problem != nil {
		return nil, errors.New(problem.String())
	}
	if faults := t.place(unplain(tree)); len(faults) > 0 {
		return nil, errors.New(faults[0].String())
	}
	object, ok := tree.Value.(*hujson.Object)
	if !ok {
		return nil, errors.New("it holds no object, {…}")
	}
	e := editor{object, t.newline()}
	for _, c := range changes {
		if c.Value == nil {
			e.remove(c.Key)
		} else {
			e.set(c.Key, c.Value)
		}
	}
	return f.joined(t, tree.Pack())
}

// fill makes the first object of a file that has none.
func (f *File) fill(t text, changes []Change) (*File, error) {
	e := editor{new(hujson.Object), t.newline()}
	for _, c := range changes {
		if c.Value != nil {
			e.set(c.Key, c.Value)
		}
	}
	if len(e.object.Members) == 0 {
		return f, nil
	}
	if len(t.body) == 0 {
		// White space alone is no style to keep.
		t.before, t.after = t.before[:len(t.before)-len(bytes.TrimPrefix(t.before, []byte(byteOrderMark)))],
			[]byte(e.newline)
	}
	return f.joined(t, hujson.Value{Value: e.object}.Pack())
}

func (f *File) joined(t text, body []byte) (*File, error) {
	content, err := t.join(body)
	if err != nil {
		return nil, err
	}
	return f.with(content), nil
}

// editor changes an object of plain JSON.
type editor struct {
	object  *hujson.Object
	newline string
}

// last returns the index of the member that counts for a key, or -1.
func (e editor) last(key string) int {
	for i, m := range slices.Backward(e.object.Members) {
		if strings.EqualFold(name(m), key) {
			return i
		}
	}
	return -1
}

func (e editor) set(key string, value json.RawMessage) {
	if i := e.last(key); i >= 0 {
		if v := &e.object.Members[i].Value; !equal(raw(*v), value) {
			v.Value = hujson.Literal(e.spaced(value))
		}
		return
	}
	m := hujson.ObjectMember{
		Name:  hujson.Value{Value: hujson.String(key)},
		Value: hujson.Value{Value: hujson.Literal(e.spaced(value))},
	}
	m.Name.BeforeExtra, m.Value.BeforeExtra = e.lead(), e.afterColon()
	if !e.hasMembers() && !bytes.Contains(e.object.AfterExtra, []byte("\n")) {
		e.object.AfterExtra = hujson.Extra(e.newline)
	}
	e.object.Members = append(e.object.Members, m)
}

func (e editor) hasMembers() bool { return len(e.object.Members) > 0 }

// lead is the white space before a new key: a new line, indented as the others are, or what stands between the others.
func (e editor) lead() hujson.Extra {
	if !e.hasMembers() {
		return hujson.Extra(e.newline + "  ")
	}
	members := e.object.Members
	for _, m := range slices.Backward(members) {
		if i := bytes.LastIndexByte(m.Name.BeforeExtra, '\n'); i >= 0 {
			return slices.Concat(hujson.Extra(e.newline), m.Name.BeforeExtra[i+1:])
		}
	}
	if len(members) == 1 {
		return e.afterColon()
	}
	return members[len(members)-1].Name.BeforeExtra
}

// afterColon is the white space between a new key's colon and its value.
func (e editor) afterColon() hujson.Extra {
	if !e.hasMembers() {
		return hujson.Extra(" ")
	}
	m := e.object.Members[len(e.object.Members)-1]
	if bytes.Contains(m.Value.BeforeExtra, []byte("\n")) {
		return hujson.Extra(" ")
	}
	return m.Value.BeforeExtra
}

// spaced returns a list the spaces after its commas that the file has after its colons.
func (e editor) spaced(value json.RawMessage) []byte {
	v, err := hujson.Parse(value)
	list, ok := v.Value.(*hujson.Array)
	if err != nil || !ok || len(e.afterColon()) == 0 {
		return value
	}
	for i := range list.Elements {
		if i > 0 && len(list.Elements[i].BeforeExtra) == 0 {
			list.Elements[i].BeforeExtra = hujson.Extra(" ")
		}
	}
	return v.Pack()
}

func (e editor) remove(key string) {
	for i := e.last(key); i >= 0; i = e.last(key) {
		members := e.object.Members
		if i == 0 && len(members) > 1 {
			members[1].Name.BeforeExtra = members[0].Name.BeforeExtra
		}
		members = slices.Delete(members, i, i+1)
		if len(members) > 0 {
			members[len(members)-1].Value.AfterExtra = nil // else it would be a trailing comma
		}
		e.object.Members = members
	}
}

// equal reports whether two values mean the same.
func equal(a, b json.RawMessage) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// Fixed returns the file without comments and trailing commas, in plain UTF-8, and all else as it was. An empty file
// becomes an empty object. What else is wrong with it stays.
func (f *File) Fixed() (*File, error) {
	if !f.Exists() {
		return f, nil
	}
	t, err := take(f.content)
	if err != nil {
		return nil, fmt.Errorf("fix %s: %w", f.Path, err)
	}
	t.before, t.utf16 = bytes.TrimPrefix(t.before, []byte(byteOrderMark)), false
	if len(t.body) == 0 {
		return f.with([]byte("{}" + t.newline())), nil
	}
	tree, problem := t.syntax()
	if problem != nil {
		return nil, fmt.Errorf("fix %s: %s", f.Path, problem)
	}
	plain(&tree)
	return f.joined(t, bytes.TrimSpace(tree.Pack()))
}

// plain takes comments and trailing commas from a tree.
func plain(tree *hujson.Value) {
	for v := range tree.All() {
		v.BeforeExtra, v.AfterExtra = uncommented(v.BeforeExtra), uncommented(v.AfterExtra)
		switch c := v.Value.(type) {
		case *hujson.Object:
			c.AfterExtra = closing(lastMember(c), c.AfterExtra)
		case *hujson.Array:
			c.AfterExtra = closing(lastElement(c), c.AfterExtra)
		}
	}
}

// closing returns the white space before a closing bracket, and takes away the comma after the last value.
func closing(last *hujson.Value, after hujson.Extra) hujson.Extra {
	if last != nil {
		last.AfterExtra = nil
	}
	return uncommented(after)
}

// uncommented takes the comments from white space: a line of nothing else goes as a whole, and so do the blanks before
// a comment that ends a line.
func uncommented(extra hujson.Extra) hujson.Extra {
	comments := commentsOf(extra)
	if len(comments) == 0 {
		return extra
	}
	var kept hujson.Extra
	at := 0
	for _, c := range comments {
		kept = append(kept, extra[at:c.start]...)
		at = c.end
		rest := bytes.TrimLeft(extra[at:], " \t")
		switch ends := bytes.HasPrefix(bytes.TrimLeft(rest, "\r"), []byte("\n")); {
		case !ends && (len(kept) == 0 || strings.ContainsRune(" \t\n", rune(kept[len(kept)-1]))):
			at = len(extra) - len(rest) // there is white space before it
		case ends:
			kept = bytes.TrimRight(kept, " \t")
			if at = len(extra) - len(rest); bytes.HasSuffix(kept, []byte("\n")) {
				at += bytes.IndexByte(rest, '\n') + 1
			}
		}
	}
	return append(kept, extra[at:]...)
}

// Undo returns the file with the keys back that lie otherwise in after than in before, two contents of it; nil is no
// file. It is for a file that was edited from before to after, and by somebody else since: their changes stay. kept are
// the keys that they changed too, which are left as they are.
func (f *File) Undo(before, after []byte) (undone *File, kept []string, err error) {
	was, is := f.with(before), f.with(after)
	if same(f.content, after) {
		return was, nil, nil
	}
	names, err := keysOf(was, is)
	if err != nil {
		return nil, nil, fmt.Errorf("undo the changes of %s: %w", f.Path, err)
	}
	var changes []Change
	for _, key := range names {
		old, had := was.Get(key)
		set, has := is.Get(key)
		now, there := f.Get(key)
		switch {
		case had == has && (!had || equal(old, set)): // we didn't change it
		case has == there && (!has || equal(set, now)): // and they neither
			changes = append(changes, Change{key, old})
		case had != there || had && !equal(old, now):
			kept = append(kept, key)
		}
	}
	undone, err = f.Edit(changes...)
	if err == nil && before == nil && !undone.hasKeys() {
		undone = was
	}
	return undone, kept, err
}

// undoLines is Undo by lines. Where somebody has changed the same ones since, all stays.
func (f *File) undoLines(before, after []byte) (undone *File, kept []string, err error) {
	content, ok := UndoLines(f.content, before, after)
	if !ok {
		return f, []string{"lines that the install has changed"}, nil
	}
	if before == nil && len(bytes.TrimSpace(content)) == 0 {
		content = nil
	}
	return f.with(content), nil, nil
}

// UndoLines takes back from a text the change that led from one to another. What was changed besides stays; ok tells
// that nobody has changed the same lines, without which nothing is taken back.
func UndoLines(now, before, after []byte) (undone []byte, ok bool) {
	edits, ok := udiff.Merge(udiff.Lines(string(after), string(before)), udiff.Lines(string(after), string(now)))
	if !ok {
		return now, false
	}
	undone, err := udiff.ApplyBytes(after, edits)
	if err != nil {
		return now, false
	}
	return undone, true
}

// keysOf returns the keys of files, each once.
func keysOf(files ...*File) ([]string, error) {
	var found []string
	for _, f := range files {
		object, err := f.object()
		if err != nil {
			return nil, err
		}
		if object == nil {
			continue
		}
		for _, m := range object.Members {
			if key := name(m); !slices.ContainsFunc(found, func(s string) bool { return strings.EqualFold(s, key) }) {
				found = append(found, key)
			}
		}
	}
	return found, nil
}

func (f *File) hasKeys() bool {
	object, err := f.object()
	return err != nil || object != nil && len(object.Members) > 0
}

// Wishes are what the engine is to do.
type Wishes struct {
	Driver      string   // storage-driver
	StorageOpts []string // name=value, for this driver; without a value, the option goes
	DataRoot    string   // "": where it is
	Debug       *bool    // nil: as it is
}

// Wanted returns the changes that make the engine do what is wished with a storage-driver plugin.
func (f *File) Wanted(w Wishes) []Change {
	changes := []Change{Set("experimental", true), Set("storage-driver", w.Driver)}
	if opts := DriverOptions(f.Strings("storage-opts"), w.StorageOpts); len(opts) > 0 {
		changes = append(changes, Set("storage-opts", opts))
	} else {
		changes = append(changes, Delete("storage-opts"))
	}
	if w.DataRoot != "" {
		// Engines before 24 take graph for data-root, and refuse both.
		changes = append(changes, Delete("graph"), Set("data-root", w.DataRoot))
	}
	switch {
	case w.Debug == nil:
	case *w.Debug:
		changes = append(changes, Set("debug", true))
	default:
		changes = append(changes, Delete("debug"))
	}
	return changes
}

// Diff is the unified diff of two contents of a file; "" if they are equal. No file is /dev/null.
func Diff(from, to *File) string {
	label := func(f *File) string {
		if !f.Exists() {
			return "/dev/null"
		}
		return f.Target
	}
	readable := func(f *File) string {
		t, err := take(f.content)
		if err != nil {
			return string(f.content)
		}
		return string(slices.Concat(t.before, t.body, t.after)) // UTF-16 too
	}
	return udiff.Unified(label(from), label(to), readable(from), readable(to))
}
