package publishtest

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/test/testutil"
)

// Item is an entry of an archive to be made, with its content.
type Item struct {
	tar.Header
	Content string
}

// Entry is an entry of an archive with its content.
func Entry(h tar.Header, content string) Item { return Item{h, content} }

// At is a time with nanoseconds.
var At = time.Unix(1_700_000_000, 123_456_789)

// File is a regular file, 0644.
func File(name, content string) Item {
	return Entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: At}, content)
}

// Folder is one, 0755.
func Folder(name string) Item {
	return Entry(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: At}, "")
}

// HardLink is another name of the file to.
func HardLink(name, to string) Item {
	return Entry(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Mode: 0o644, ModTime: At}, "")
}

// Pack makes an archive.
func Pack(t testing.TB, items ...Item) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := PackTo(&b, items); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// PackTo writes an archive.
func PackTo(to io.Writer, items []Item) error {
	w := tar.NewWriter(to)
	for _, i := range items {
		h := i.Header
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(i.Content))
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := io.WriteString(w, i.Content); err != nil && h.Typeflag == tar.TypeReg {
			return err
		}
	}
	return w.Close()
}

// Everything is one of each kind.
func Everything() []Item {
	long := strings.Repeat("long name ", 20)
	return []Item{
		Folder("bin/"),
		{tar.Header{
			Typeflag: tar.TypeReg, Name: "bin/sudo", Mode: 0o4755, Uid: 0, Gid: 27, ModTime: At,
			PAXRecords: map[string]string{
				"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00", "SCHILY.xattr.user.empty": "",
			},
		}, "#!sudo"},
		{tar.Header{
			Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, Uid: 4_000_000_000, Gid: 4_294_967_294,
			ModTime: time.Unix(-5, 1),
		}, ""},
		File("bin/empty", ""),
		File("bin/exactly", strings.Repeat("x", 4096)),
		File("bin/one more", strings.Repeat("x", 4097)),
		File("bin/chunked", string(testutil.Sample(100_000))),
		File("bin/zeros", string(make([]byte, 65_536))),
		File("bin/"+long, "long"),
		File("bin/\xff\xfe", "no UTF-8"),
		File("bin/.wh.gone", ""),
		File("bin/.wh..wh..opq", ""),
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "usr/lib", Mode: 0o777, ModTime: At}, ""},
		{tar.Header{
			Typeflag: tar.TypeSymlink, Name: "bin/far", Linkname: strings.Repeat("/far", 1000), Mode: 0o777,
			ModTime: At,
		}, ""},
		Folder("dev/"),
		{tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: At}, ""},
		{tar.Header{Typeflag: tar.TypeChar, Name: "dev/gone", Mode: 0, ModTime: At}, ""},
		{tar.Header{
			Typeflag: tar.TypeBlock, Name: "dev/disk", Mode: 0o660, Devmajor: 259, Devminor: 70_000,
			ModTime: At,
		}, ""},
		{tar.Header{Typeflag: tar.TypeFifo, Name: "dev/pipe", Mode: 0o600, ModTime: At}, ""},
	}
}
