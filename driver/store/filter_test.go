package store

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// FuzzFilter holds the filter to its promise: what it lets pass is a whole archive that instructs overlayfs of nothing.
func FuzzFilter(f *testing.F) {
	seed := func(headers ...*tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(h); err != nil {
				f.Fatal(err)
			}
			if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
		f.Add(b.Bytes()[:b.Len()-512])
	}
	seed()
	seed(&tar.Header{Name: "a", Size: 700, Mode: 0o644})
	seed(&tar.Header{Name: strings.Repeat("long/", 60), Typeflag: tar.TypeDir, Format: tar.FormatGNU})
	seed(&tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/y", "LIBARCHIVE.xattr.user.overlay.z": "eg==", "SCHILY.xattr.user.a": "b"}})
	seed(&tar.Header{Name: "pax_global_header", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}, &tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "a"})
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		c, err := filter(&limited{&out}, bytes.NewReader(in))
		if err != nil {
			return
		}
		entries := 0
		for tr := tar.NewReader(&out); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("what passed is no archive: %v", err)
			}
			for key := range h.PAXRecords {
				if strings.Contains(key, "xattr.trusted.overlay.") || strings.Contains(key, "xattr.user.overlay.") {
					t.Fatalf("%q passed", key)
				}
			}
			if strings.Trim(h.Name, "./") != "" {
				entries++
			}
		}
		if entries > c.entries {
			t.Fatalf("%d entries passed, %d were counted", entries, c.entries)
		}
	})
}

// limited ends the writing of the huge holes a few bytes can ask for.
type limited struct{ *bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len() > 1<<20 {
		return 0, io.ErrShortBuffer
	}
	return l.Buffer.Write(p)
}
