package conformance

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/go-archive"
)

// item is an entry of an archive to be made. A Size of 0 is filled in.
type item struct {
	tar.Header
	body string
}

// moment is the time of everything whose time doesn't matter.
var moment = time.Unix(1_600_000_000, 0)

func regular(name, body string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: moment}, body}
}

func folder(name string) item {
	return item{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: moment}, ""}
}

func link(kind byte, name, target string) item {
	return item{tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777, ModTime: moment}, ""}
}

func special(kind byte, name string, major, minor int64) item {
	return item{
		tar.Header{Typeflag: kind, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor, ModTime: moment},
		"",
	}
}

// whiteout is the entry that hides a name.
func whiteout(name string) item {
	return regular(path.Join(path.Dir(name), archive.WhiteoutPrefix+path.Base(name)), "")
}

// opaque is the entry that hides what a folder holds in the layers below.
func opaque(dir string) item { return regular(path.Join(dir, archive.WhiteoutOpaqueDir), "") }

// with returns an item an extended attribute.
func (i item) with(name, value string) item {
	i.PAXRecords = maps.Clone(i.PAXRecords)
	if i.PAXRecords == nil {
		i.PAXRecords = map[string]string{}
	}
	i.PAXRecords["SCHILY.xattr."+name] = value
	return i
}

// owned returns an item an owner and a mode.
func (i item) owned(uid, gid int, mode int64) item {
	i.Uid, i.Gid, i.Mode = uid, gid, mode
	return i
}

// at returns an item a time.
func (i item) at(t time.Time) item {
	i.ModTime = t
	return i
}

// pack makes an archive.
func pack(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := i.Header
		h.Format, h.Size = tar.FormatPAX, int64(len(i.body))
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, i.body)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// unpack reads an archive's entries.
func unpack(t testing.TB, b []byte) []item {
	t.Helper()
	items := []item{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return items
		}
		must(t, err)
		body, err := io.ReadAll(r)
		must(t, err)
		items = append(items, item{*h, string(body)})
	}
}

// contents describes an archive: a line an entry, sorted, with all that counts when it is applied. Of hard links only
// that they are the same file counts, not which of the names comes first.
func contents(t testing.TB, b []byte) []string {
	t.Helper()
	items := unpack(t, b)
	names := map[string][]string{} // of each file, by its first name
	for _, i := range items {
		first := path.Clean(i.Name)
		if i.Typeflag == tar.TypeLink {
			first = path.Clean(i.Linkname)
		}
		names[first] = append(names[first], path.Clean(i.Name))
	}
	lines := []string{}
	for _, i := range items {
		if i.Typeflag == tar.TypeLink {
			if a := attributes(i); len(a) > 0 {
				lines = append(lines, fmt.Sprintf("%q link %q", path.Clean(i.Name), a))
			}
			continue
		}
		same := names[path.Clean(i.Name)]
		slices.Sort(same)
		line := fmt.Sprintf("%q %c %04o %d:%d", same, i.Typeflag, i.Mode, i.Uid, i.Gid)
		whiteout := strings.HasPrefix(path.Base(i.Name), archive.WhiteoutPrefix)
		if whiteout {
			line = fmt.Sprintf("%q hidden", same) // owner, mode and time of a whiteout say nothing
		} else if i.Typeflag != tar.TypeDir {
			line += fmt.Sprintf(" %d %q %d:%d %q %.100q %d", i.ModTime.Unix(), i.Linkname, i.Devmajor, i.Devminor,
				attributes(i), i.body, len(i.body))
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

func attributes(i item) []string {
	list := []string{}
	for key, value := range i.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			list = append(list, name+"="+value)
		}
	}
	slices.Sort(list)
	return list
}

// readable reports whether the engines' reader comes to an archive's end: what just stops between two entries is whole
// to it.
func readable(b []byte) bool {
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		_, err := r.Next()
		if errors.Is(err, io.EOF) {
			return true
		}
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err != nil {
			return false
		}
	}
}
