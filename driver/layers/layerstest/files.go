// Package layerstest is what the tests of layers, and of those who use them, share.
package layerstest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// File is an entry of a test's archive.
type File struct {
	Name, Body, Link string
	Kind             byte  // tar.TypeReg if 0
	Mode             int64 // 0644, or 0755 of folders, if 0
	UID, GID         int
	Xattrs           map[string]string
	Dev              int64 // minor number
}

// Tar makes an archive.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{
			Name: f.Name, Typeflag: f.Kind, Linkname: f.Link, Mode: f.Mode, Uid: f.UID, Gid: f.GID,
			Size:     int64(len(f.Body)),
			Devminor: f.Dev, Format: tar.FormatPAX,
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		for k, v := range f.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		must(t, w.WriteHeader(h))
		_, err := w.Write([]byte(f.Body))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// List describes a tree: one line a name, with type, mode, owner and content.
func List(t testing.TB, dir string) []string {
	t.Helper()
	lines := []string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		var body []byte
		if info.Mode().IsRegular() {
			body, err = os.ReadFile(path)
		} else if info.Mode()&fs.ModeSymlink != 0 {
			var link string
			link, err = os.Readlink(path)
			body = []byte(link)
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %d:%d %s", strings.TrimPrefix(path, dir+"/"),
			info.Mode(), st.Uid, st.Gid, body)))
		return err
	})
	must(t, err)
	sort.Strings(lines)
	return lines
}

// Xattrs returns the extended attributes of everything below a folder.
func Xattrs(t testing.TB, dir string) (all []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		b := make([]byte, 4096)
		n, err := unix.Llistxattr(path, b)
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		for name := range strings.SplitSeq(strings.TrimRight(string(b[:n]), "\x00"), "\x00") {
			if name != "" {
				all = append(all, strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")+" "+name)
			}
		}
		return err
	}))
	return all
}
