package listing

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/cvmfs/client"
)

func TestJSONKeepsAnyName(t *testing.T) {
	for name, want := range map[string]string{
		`plain`:              `"plain"`,
		"\"\\/<>&":           `"\"\\/<>&"`,
		"\b\f\n\r\t\x00\x1f": `"\b\f\n\r\t\u0000\u001f"`,
		"\x7f ü 名 \u2028 😀":  "\"\x7f ü 名 \u2028 😀\"",
		"a\xff\xc3b\x80":     `"a\udcff\udcc3b\udc80"`,
		"\xed\xb3\xbf":       `"\udced\udcb3\udcbf"`,
		"\ufffd":             "\"\ufffd\"",
	} {
		if got := string(appendJSON(nil, name)); got != want {
			t.Errorf("%q: got %s, want %s", name, got, want)
		}
	}
}

func TestEveryTypePrints(t *testing.T) {
	same := func(s string) string { return s }
	for _, c := range []struct {
		entry       catalog.Entry
		json, plain string
	}{
		{
			catalog.Entry{Mode: 0o060660, Nlink: 1, Rdev: 8<<8 | 1, UID: 1, GID: 6},
			`{"device": "8:1", "gid": 6, "mode": "0660", "mtime": 0, "nlink": 1, "path": "/x\n", "type": "block", "uid": 1}`,
			`brw-rw----   1     1     6       8, 1 1970-01-01 00:00 "/x\n"`,
		},
		{
			catalog.Entry{Mode: 0o021777, Nlink: 1, Rdev: 5<<8 | 2},
			`{"device": "5:2", "gid": 0, "mode": "1777", "mtime": 0, "nlink": 1, "path": "/x\n", "type": "char", "uid": 0}`,
			`crwxrwxrwt   1     0     0       5, 2 1970-01-01 00:00 "/x\n"`,
		},
		{
			catalog.Entry{Mode: 0o146600, Nlink: 1},
			`{"gid": 0, "mode": "6600", "mtime": 0, "nlink": 1, "path": "/x\n", "type": "socket", "uid": 0}`,
			`srwS--S---   1     0     0          0 1970-01-01 00:00 "/x\n"`,
		},
		{
			catalog.Entry{
				Mode: 0o106711, Nlink: 1, Size: 7,
				Xattrs: []catalog.Xattr{{Name: "user.a", Value: []byte{0, 255}}, {Name: "user.b"}},
			},
			`{"gid": 0, "mode": "6711", "mtime": 0, "nlink": 1, "path": "/x\n", "size": 7, "type": "file", "uid": 0, "xattrs_hex": {"user.a": "00ff", "user.b": ""}}`,
			`-rws--s--x   1     0     0          7 1970-01-01 00:00 "/x\n"`,
		},
		{
			catalog.Entry{Mode: 0o120777, Nlink: 1, Target: "t\x1b"},
			`{"gid": 0, "mode": "0777", "mtime": 0, "nlink": 1, "path": "/x\n", "target": "t\u001b", "type": "symlink", "uid": 0}`,
			`lrwxrwxrwx   1     0     0          0 1970-01-01 00:00 "/x\n" -> "t\x1b"`,
		},
	} {
		i := &Item{Node: &client.Node{Path: "/x\n", Entry: &c.entry}}
		var b bytes.Buffer
		if err := WriteJSON(&b, i, same); err != nil {
			t.Fatal(err)
		}
		if err := WritePlain(&b, i, same); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.json+"\n"+c.plain+"\n", b.String()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestTextsOfAnyBytesAreWritten(t *testing.T) {
	var b bytes.Buffer
	if err := WriteTexts(&b, map[string]string{"path": "/a\xff", "kind": "object", "error": `no "x"`}); err != nil {
		t.Fatal(err)
	}
	if want := `{"error": "no \"x\"", "kind": "object", "path": "/a\udcff"}` + "\n"; b.String() != want {
		t.Errorf("got %s", &b)
	}
}
