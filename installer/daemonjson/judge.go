package daemonjson

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"
)

// maxProblems bounds what is told about a file.
const maxProblems = 100

// Problem is something for which the engine would reject a file.
type Problem struct {
	Line, Column int // from 1; columns are characters
	Text         string
	Fixable      bool // Fixed mends it
}

// String returns the place and the text.
func (p Problem) String() string {
	return fmt.Sprintf("line %d, column %d: %s", p.Line, p.Column, p.Text)
}

// Problems tells everything for which an engine of a version, as in 20.10.24+dfsg1, would reject the file, in the order
// of the file; "" is the newest engine. All engines want plain JSON of one object, keys that they know, spelled exactly
// so, and values of the right type. Of a key that comes twice they take the last. They take a file that isn't there.
// From 23 on they take white space alone, a byte order mark and UTF-16, and refuse bytes that are no UTF-8; before that
// it is the other way round.
func (f *File) Problems(version string) []Problem {
	if !f.Exists() {
		return nil
	}
	major := major(version)
	t, err := take(f.content)
	if err != nil {
		return []Problem{{1, 1, err.Error(), false}}
	}
	found := t.encodingProblems(major)
	if len(t.body) == 0 {
		return found
	}
	tree, problem := t.syntax()
	if problem != nil {
		return append(found, *problem)
	}
	faults := unplain(tree)
	object, ok := tree.Value.(*hujson.Object)
	switch {
	case ok:
		faults = append(faults, unknown(object, major)...)
		faults = append(faults, misshapen(object, major)...)
	case tree.Value.Kind() != 'n': // null is as good as nothing
		faults = append(faults, fault{tree.StartOffset, "the file must hold one object, {…}", false})
	}
	found = append(found, t.place(faults)...)
	slices.SortStableFunc(found, func(a, b Problem) int { return cmp.Or(a.Line-b.Line, a.Column-b.Column) })
	return found
}

// fault is a problem at an offset of the body.
type fault struct {
	offset  int
	text    string
	fixable bool
}

// place makes problems of faults, in the order of the file; of very many the first.
func (t text) place(faults []fault) []Problem {
	slices.SortStableFunc(faults, func(a, b fault) int { return a.offset - b.offset })
	var problems []Problem
	for _, f := range faults[:min(len(faults), maxProblems)] {
		line, column := t.position(f.offset)
		problems = append(problems, Problem{line, column, f.text, f.fixable})
	}
	return problems
}

// problem makes one that stands at an offset of the body and can't be fixed.
func (t text) problem(offset int, format string, args ...any) Problem {
	line, column := t.position(offset)
	return Problem{line, column, fmt.Sprintf(format, args...), false}
}

func (t text) encodingProblems(major int) []Problem {
	const before23 = "an engine before 23 doesn't take it (--fix mends it)"
	var found []Problem
	if major < 23 {
		switch {
		case t.utf16:
			found = append(found, Problem{1, 1, "the file is in UTF-16: " + before23, true})
		case t.marked():
			found = append(found, Problem{1, 1, "the file begins with a byte order mark: " + before23, true})
		}
		if len(t.body) == 0 {
			found = append(found, Problem{1, 1, "the file is empty: " + before23, true})
		}
		return found
	}
	if i := invalidUTF8(t.body); i >= 0 {
		found = append(found, t.problem(i, "the byte 0x%02x is no UTF-8 (save the file in UTF-8)", t.body[i]))
	}
	return found
}

// invalidUTF8 gives the offset of the first byte that is no UTF-8, or -1.
func invalidUTF8(b []byte) int {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// syntax parses the body, or tells what is wrong with it besides comments and trailing commas.
func (t text) syntax() (hujson.Value, *Problem) {
	tree, err := t.tree()
	if err == nil {
		return tree, nil
	}
	// The engine's own words, unless they are about a comment.
	var syntax *json.SyntaxError
	if plain := json.Unmarshal(t.body, new(any)); errors.As(plain, &syntax) {
		at := int(syntax.Offset) - 1 // the byte it stumbled over
		if strings.HasPrefix(syntax.Error(), "unexpected end") {
			at = len(t.body)
		}
		if at == len(t.body) || t.body[at] != '/' {
			p := t.problem(at, "this is no JSON: %v (mend it)", syntax)
			return tree, &p
		}
	}
	p := Problem{Line: 1, Column: 1, Text: fmt.Sprintf("this is no JSON: %v (mend it)", err)}
	var line, column int
	if _, scan := fmt.Sscanf(err.Error(), "hujson: line %d, column %d:", &line, &column); scan == nil {
		_, said, _ := strings.Cut(err.Error(), ": ")
		_, said, _ = strings.Cut(said, ": ")
		p = t.problem(offsetOf(t.body, line, column), "this is no JSON: %s (mend it)", said)
	}
	return tree, &p
}

// offsetOf returns the offset of a line and a column in bytes, both from 1.
func offsetOf(b []byte, line, column int) int {
	offset := 0
	for ; line > 1; line-- {
		offset += bytes.IndexByte(b[offset:], '\n') + 1
	}
	return min(offset+column-1, len(b))
}

// unplain tells the comments and trailing commas.
func unplain(tree hujson.Value) []fault {
	var found []fault
	comments := func(extra hujson.Extra, offset int) {
		for _, c := range commentsOf(extra) {
			found = append(found, fault{offset + c.start, "a comment: the engine takes none (--fix removes it)", true})
		}
	}
	inside := func(last *hujson.Value, after hujson.Extra, end int) {
		if last != nil && last.AfterExtra != nil {
			comma := last.EndOffset + len(last.AfterExtra)
			found = append(found,
				fault{comma, "a comma before the closing bracket: the engine takes none (--fix removes it)", true})
		}
		comments(after, end-1-len(after))
	}
	for v := range tree.All() {
		comments(v.BeforeExtra, v.StartOffset-len(v.BeforeExtra))
		comments(v.AfterExtra, v.EndOffset)
		switch c := v.Value.(type) {
		case *hujson.Object:
			inside(lastMember(c), c.AfterExtra, v.EndOffset)
		case *hujson.Array:
			inside(lastElement(c), c.AfterExtra, v.EndOffset)
		}
	}
	return found
}

func lastMember(o *hujson.Object) *hujson.Value {
	if len(o.Members) == 0 {
		return nil
	}
	return &o.Members[len(o.Members)-1].Value
}

func lastElement(a *hujson.Array) *hujson.Value {
	if len(a.Elements) == 0 {
		return nil
	}
	return &a.Elements[len(a.Elements)-1]
}

// span is a part of some bytes.
type span struct{ start, end int }

// commentsOf finds the comments in white space. The line feed that ends one isn't part of it, nor the return before
// that.
func commentsOf(extra hujson.Extra) []span {
	var found []span
	for i := 0; i < len(extra); {
		var end int
		switch {
		case bytes.HasPrefix(extra[i:], []byte("//")):
			end = len(extra)
			if n := bytes.IndexByte(extra[i:], '\n'); n >= 0 {
				end = i + n
			}
			end = i + len(bytes.TrimRight(extra[i:end], "\r"))
		case bytes.HasPrefix(extra[i:], []byte("/*")):
			end = i + bytes.Index(extra[i:], []byte("*/")) + len("*/")
		default:
			i++
			continue
		}
		found = append(found, span{i, end})
		i = end
	}
	return found
}

// name is a key as it is meant.
func name(m hujson.ObjectMember) string { return m.Name.Value.(hujson.Literal).String() }

// raw is a value as plain JSON.
func raw(v hujson.Value) json.RawMessage {
	v = v.Clone()
	v.BeforeExtra, v.AfterExtra = nil, nil
	v.Standardize()
	return v.Pack()
}

// unknown tells the keys that the engine doesn't know. What engines before 20.10 knew isn't known here.
func unknown(object *hujson.Object, major int) []fault {
	if major < 20 {
		return nil
	}
	var found []fault
	for _, m := range object.Members {
		candidates := []hujson.ObjectMember{m}
		if inner, ok := m.Value.Value.(*hujson.Object); ok && !flat[name(m)] {
			candidates = inner.Members
		}
		for _, c := range candidates {
			if !taken(name(c), major) {
				found = append(found, fault{c.Name.StartOffset, unknownText(name(c), major), false})
			}
		}
	}
	return found
}

func unknownText(name string, major int) string {
	if k, ok := keys[name]; ok && major >= k.until && k.until > 0 {
		text := fmt.Sprintf("%q: engines from %d on don't know this key (remove it", name, k.until)
		if name == "graph" {
			text += `; it is "data-root" now`
		}
		return text + ")"
	} else if ok {
		return fmt.Sprintf("%q: engines before %d don't know this key (remove it)", name, k.since)
	}
	for known := range keys {
		if strings.EqualFold(known, name) {
			return fmt.Sprintf("%q: the engine doesn't know this key (write %q)", name, known)
		}
	}
	return fmt.Sprintf("%q: the engine doesn't know this key (remove it, or mend its spelling)", name)
}

// misshapen tells the values of another type than the engine wants. Here the case of a key doesn't count for it.
func misshapen(object *hujson.Object, major int) []fault {
	var found []fault
	for _, m := range object.Members {
		lower := strings.ToLower(name(m)) // all keys are in lower case
		if shape := keys[lower].shape; taken(lower, major) && !shape.fits(raw(m.Value)) {
			found = append(found, fault{m.Value.StartOffset, fmt.Sprintf("%q must be %s", name(m), shape.name), false})
		}
	}
	return found
}
