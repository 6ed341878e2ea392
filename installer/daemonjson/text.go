package daemonjson

import (
	"bytes"
	"fmt"
	"slices"
	"unicode"
	"unicode/utf8"

	"github.com/tailscale/hujson"
	encoding "golang.org/x/text/encoding/unicode"
)

const (
	byteOrderMark = "\ufeff"
	maxNesting    = 10000 // brackets in a file, and so levels; where the engine's decoder gives up
)

// text is a file's content taken apart: before + body + after, in UTF-8. The body begins and ends with what isn't white
// space and is empty if there is nothing else; before includes the byte order mark of UTF-8.
type text struct {
	before, body, after []byte

	utf16 bool
	order encoding.Endianness // of UTF-16
}

// take takes a content apart. As for the engine, a byte order mark tells UTF-16.
func take(content []byte) (text, error) {
	var t text
	switch {
	case bytes.HasPrefix(content, []byte("\xfe\xff")):
		t.utf16, t.order = true, encoding.BigEndian
	case bytes.HasPrefix(content, []byte("\xff\xfe")):
		t.utf16, t.order = true, encoding.LittleEndian
	}
	if t.utf16 {
		decoded, err := encoding.UTF16(t.order, encoding.ExpectBOM).NewDecoder().Bytes(content)
		if err != nil {
			return t, fmt.Errorf("decode UTF-16: %w", err)
		}
		content = decoded
	}
	rest := bytes.TrimLeftFunc(bytes.TrimPrefix(content, []byte(byteOrderMark)), unicode.IsSpace)
	t.before = content[:len(content)-len(rest)]
	t.body = bytes.TrimRightFunc(rest, unicode.IsSpace)
	t.after = rest[len(t.body):]
	return t, nil
}

// join is the content that has another body.
func (t text) join(body []byte) ([]byte, error) {
	content := slices.Concat(t.before, body, t.after)
	if !t.utf16 {
		return content, nil
	}
	return encoding.UTF16(t.order, encoding.UseBOM).NewEncoder().Bytes(content)
}

// marked reports whether the content begins with a byte order mark.
func (t text) marked() bool { return t.utf16 || bytes.HasPrefix(t.before, []byte(byteOrderMark)) }

// position is where the byte of the body at an offset stands: line, and column in characters, both from 1.
func (t text) position(offset int) (line, column int) {
	lead := bytes.TrimPrefix(slices.Concat(t.before, t.body[:offset]), []byte(byteOrderMark))
	line = 1 + bytes.Count(lead, []byte("\n"))
	return line, 1 + utf8.RuneCount(lead[bytes.LastIndexByte(lead, '\n')+1:])
}

// tree parses the body, in which comments and trailing commas may stand.
func (t text) tree() (hujson.Value, error) {
	if bytes.Count(t.body, []byte("["))+bytes.Count(t.body, []byte("{")) > maxNesting {
		return hujson.Value{}, fmt.Errorf("more than %d brackets: that is no engine's configuration", maxNesting)
	}
	// The parser wants a line feed after a comment that ends the file.
	v, err := hujson.Parse(append(slices.Clone(t.body), '\n'))
	if err == nil {
		v.AfterExtra = v.AfterExtra[:len(v.AfterExtra)-1]
	}
	return v, err
}

// newline is how the content ends its lines.
func (t text) newline() string {
	if bytes.Contains(slices.Concat(t.before, t.body, t.after), []byte("\r\n")) {
		return "\r\n"
	}
	return "\n"
}
