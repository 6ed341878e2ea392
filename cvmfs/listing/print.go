package listing

import (
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// shown is the path as listings write it.
func (i *Item) shown() string {
	if i.Path == "" {
		return "/"
	}
	return i.Path
}

// kinds are the names of file types and their letters in `ls -l`.
var kinds = map[uint32]struct {
	name   string
	letter byte
}{
	unix.S_IFREG:  {"file", '-'},
	unix.S_IFDIR:  {"dir", 'd'},
	unix.S_IFLNK:  {"symlink", 'l'},
	unix.S_IFIFO:  {"fifo", 'p'},
	unix.S_IFSOCK: {"socket", 's'},
	unix.S_IFCHR:  {"char", 'c'},
	unix.S_IFBLK:  {"block", 'b'},
}

func (i *Item) isDevice() bool { return i.Type() == unix.S_IFCHR || i.Type() == unix.S_IFBLK }

// WriteJSON writes an item as json.dumps(…, sort_keys=True, ensure_ascii=False) of Python would. expand puts variables
// into the targets of symbolic links.
func WriteJSON(w io.Writer, i *Item, expand func(string) string) error {
	return i.object(expand).write(w)
}

// object is what JSON says of an item.
func (i *Item) object(expand func(string) string) object {
	var o object
	if i.isDevice() {
		o.text("device", fmt.Sprintf("%d:%d", unix.Major(i.Rdev), unix.Minor(i.Rdev)))
	}
	o.number("gid", int64(i.GID))
	o.text("mode", fmt.Sprintf("%04o", i.Mode&0o7777))
	o.number("mtime", i.Mtime)
	o.number("nlink", int64(i.Nlink))
	o.text("path", i.shown())
	if i.SameAs != "" {
		o.text("same_inode_as", i.SameAs)
	}
	if i.Sum != nil {
		o.text("sha256", hex.EncodeToString(i.Sum))
	}
	if i.IsRegular() {
		o.number("size", i.Size)
	}
	if i.Type() == unix.S_IFLNK {
		o.text("target", expand(i.Target))
	}
	o.text("type", kinds[i.Type()].name)
	o.number("uid", int64(i.UID))
	if len(i.Xattrs) > 0 {
		var xattrs object
		for _, x := range i.Xattrs {
			xattrs.text(x.Name, hex.EncodeToString(x.Value))
		}
		o.object("xattrs_hex", xattrs)
	}
	return o
}

// appendJSON writes a string. UTF-8 stands for itself; any other byte becomes the lone surrogate U+DC80…U+DCFF as which
// Python's "surrogateescape" keeps it: the output is valid JSON, and who needs the name can have it back.
func appendJSON(b []byte, s string) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch escape := strings.IndexByte("\"\\\n\r\t\b\f", s[i]); {
		case escape >= 0:
			b = append(b, '\\', `"\nrtbf`[escape])
		case r < ' ':
			b = fmt.Appendf(b, `\u%04x`, r)
		case r == utf8.RuneError && n == 1:
			b = fmt.Appendf(b, `\udc%02x`, s[i])
		default:
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return append(b, '"')
}

// WritePlain writes an item as `ls -l` would: mode, links, owner, size or device, time (UTC), digest, path.
func WritePlain(w io.Writer, i *Item, expand func(string) string) error {
	size := strconv.FormatInt(i.Size, 10)
	if i.isDevice() {
		size = fmt.Sprintf("%d, %d", unix.Major(i.Rdev), unix.Minor(i.Rdev))
	}
	line := fmt.Sprintf("%s %3d %5d %5d %10s %s", modeString(i.Mode), i.Nlink, i.UID, i.GID, size,
		time.Unix(i.Mtime, 0).UTC().Format("2006-01-02 15:04"))
	if i.Sum != nil {
		line += " " + hex.EncodeToString(i.Sum)
	}
	line += " " + Quote(i.shown())
	if i.Type() == unix.S_IFLNK {
		line += " -> " + Quote(expand(i.Target))
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// Quote keeps a text that comes from elsewhere, such as a file's name, from controlling the terminal: it is quoted if
// it needs to be.
func Quote(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}

// modeString is the first column of `ls -l`.
func modeString(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	b[0] = kinds[mode&unix.S_IFMT].letter
	for i := range 9 {
		if mode&(0o400>>i) == 0 {
			b[1+i] = '-'
		}
	}
	special := func(bit uint32, at int, with, without byte) {
		if mode&bit == 0 {
			return
		}
		if b[at] == 'x' {
			b[at] = with
		} else {
			b[at] = without
		}
	}
	special(unix.S_ISUID, 3, 's', 'S')
	special(unix.S_ISGID, 6, 's', 'S')
	special(unix.S_ISVTX, 9, 't', 'T')
	return string(b)
}
