package listing

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/hash"
)

// WriteStatJSON writes an entry as WriteJSON does, with what only catalogs know: mtime_ns, hash, compression, chunks,
// objects, hardlink_group, same_inode, external, hidden, catalog and nested_catalog.
func WriteStatJSON(w io.Writer, s *client.Stat, expand func(string) string) error {
	o := (&Item{Node: &s.Node}).object(expand)
	if s.MtimeN != 0 {
		o.number("mtime_ns", int64(s.MtimeN))
	}
	if s.IsRegular() {
		o.text("compression", s.Compression.String())
		o.text("hash", s.Digest.String())
	}
	if len(s.Chunks) > 0 {
		var chunks [][]byte
		for _, c := range s.Chunks {
			var chunk object
			chunk.number("offset", c.Offset)
			chunk.number("size", c.Size)
			chunk.text("hash", c.Digest.String())
			chunk.text("object", c.Digest.Path(hash.Chunk))
			chunks = append(chunks, chunk.append(nil))
		}
		o.list("chunks", chunks)
	}
	if place := objectOf(s.Entry); place != "" {
		o.text("object", place)
	}
	if s.Group != 0 {
		o.number("hardlink_group", int64(s.Group))
		var same [][]byte
		for _, path := range s.Same {
			same = append(same, appendJSON(nil, path))
		}
		o.list("same_inode", same)
	}
	for name, flag := range map[string]catalog.Flags{"external": catalog.External, "hidden": catalog.Hidden} {
		if s.Flags&flag != 0 {
			o.raw(name, []byte("true"))
		}
	}
	var c object
	c.text("path", slashed(s.Mount))
	c.text("hash", s.Catalog.String())
	o.object("catalog", c)
	if s.Path == s.Mount {
		b, err := json.Marshal(countsOf(s.Statistics))
		if err != nil {
			return err
		}
		o.raw("nested_catalog", b)
	}
	return o.write(w)
}

// objectOf is where the object of a whole file lies below the repository's URL; "" where there is none.
func objectOf(e *catalog.Entry) string {
	if !e.IsRegular() || e.Digest.IsZero() || len(e.Chunks) > 0 || e.Flags&catalog.External != 0 {
		return ""
	}
	return e.Digest.Path(hash.File)
}

func slashed(path string) string {
	if path == "" {
		return "/"
	}
	return path
}

// WriteStat writes an entry for people, a line for each thing that is known.
func WriteStat(w io.Writer, s *client.Stat, expand func(string) string) error {
	i := &Item{Node: &s.Node}
	t := table{}
	t.line("path", "%s", Quote(i.shown()))
	t.line("type", "%s", kinds[i.Type()].name)
	t.line("mode", "%04o (%s)", s.Mode&0o7777, modeString(s.Mode))
	t.line("owner", "%d:%d", s.UID, s.GID)
	switch {
	case i.isDevice():
		t.line("device", "%d, %d", unix.Major(s.Rdev), unix.Minor(s.Rdev))
	case s.Type() == unix.S_IFLNK:
		t.line("target", "%s", Quote(expand(s.Target)))
	case s.IsRegular():
		t.line("size", "%d bytes", s.Size)
	}
	t.line("modified", "%s", time.Unix(s.Mtime, int64(s.MtimeN)).UTC().Format(time.RFC3339Nano))
	t.links(s)
	t.content(s.Entry)
	for _, x := range s.Xattrs {
		t.line("xattr", "%s = %s", Quote(x.Name), xattrText(x.Value))
	}
	t.line("catalog", "%s of %s", s.Catalog, Quote(slashed(s.Mount)))
	if s.Path == s.Mount {
		t.line("nested catalog", "begins here; in it and below: %s", countsOf(s.Statistics))
	}
	return t.write(w)
}

func (t *table) links(s *client.Stat) {
	switch {
	case s.Group == 0:
		t.line("links", "%d", s.Nlink)
	case len(s.Same) == 0:
		t.line("links", "%d, hard-link group %d", s.Nlink, s.Group)
	default:
		var same []string
		for _, path := range s.Same {
			same = append(same, Quote(path))
		}
		t.line("links", "%d, hard-link group %d, with %s", s.Nlink, s.Group, strings.Join(same, ", "))
	}
}

func (t *table) content(e *catalog.Entry) {
	if !e.IsRegular() {
		return
	}
	t.line("compression", "%s", e.Compression)
	switch {
	case e.Flags&catalog.External != 0:
		t.line("content", "external, outside of the repository's object store")
	case len(e.Chunks) == 0:
		t.line("object", "%s", objectOf(e))
	}
	for _, c := range e.Chunks {
		t.line("chunk", "%s: %d bytes at %d", c.Digest.Path(hash.Chunk), c.Size, c.Offset)
	}
}

// xattrText is a value as text, if it is printable, or in hexadecimal digits.
func xattrText(value []byte) string {
	text := strings.TrimSuffix(string(value), "\x00")
	if strings.ContainsFunc(text, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }) {
		return fmt.Sprintf("0x%x", value)
	}
	return fmt.Sprintf("%q", text)
}

// table is lines with a name in front.
type table struct{ strings.Builder }

func (t *table) line(name, format string, args ...any) {
	fmt.Fprintf(t, "%-15s "+format+"\n", append([]any{name}, args...)...)
}

func (t *table) write(w io.Writer) error {
	_, err := io.WriteString(w, t.String())
	return err
}
