package conformance

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// entry is what a view shows under one name.
type entry struct {
	Path     string // "" is the root
	Type     string // as ls(1) has it
	Mode     uint32 // permissions, set-uid and its kin; links have none
	UID, GID uint32
	Mtime    int64  // seconds, the precision of archives that go out; of folders it is left out
	Content  string // of files, what they hold; of links, the target; of devices, the number
	Attrs    string // extended attributes that containers can see
	Same     string // the first path of the same inode, where it is another
}

// tree describes a view, sorted by path. Where a file is in use meanwhile the test is wrong, so every error counts.
func tree(t testing.TB, dir string) []entry {
	t.Helper()
	var entries []entry
	first := map[[2]uint64]string{}
	must(t, filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, st, err := describe(dir, name)
		if err != nil {
			return err
		}
		if at, known := first[[2]uint64{st.Dev, st.Ino}]; known {
			e.Same = at
		} else if e.Type != "d" {
			first[[2]uint64{st.Dev, st.Ino}] = e.Path
		}
		entries = append(entries, e)
		return nil
	}))
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	return entries
}

func describe(dir, name string) (entry, *syscall.Stat_t, error) {
	e := entry{Path: strings.TrimPrefix(strings.TrimPrefix(name, dir), "/")}
	info, err := os.Lstat(name)
	if err != nil {
		return e, nil, err
	}
	st := info.Sys().(*syscall.Stat_t)
	e.Type, e.Mode, e.UID, e.GID = "?", st.Mode&0o7777, st.Uid, st.Gid
	e.Mtime = st.Mtim.Sec
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		e.Type, e.Mtime = "d", 0
	case syscall.S_IFREG:
		e.Type = "-"
		var b []byte
		b, err = os.ReadFile(name)
		e.Content = summary(string(b))
	case syscall.S_IFLNK:
		e.Type, e.Mode = "l", 0
		e.Content, err = os.Readlink(name)
	case syscall.S_IFCHR:
		e.Type, e.Content = "c", device(st.Rdev)
	case syscall.S_IFBLK:
		e.Type, e.Content = "b", device(st.Rdev)
	case syscall.S_IFIFO:
		e.Type = "p"
	case syscall.S_IFSOCK:
		e.Type = "s"
	}
	if err != nil {
		return e, nil, err
	}
	e.Attrs, err = visibleAttributes(name)
	return e, st, err
}

func device(rdev uint64) string { return numbers(int64(unix.Major(rdev)), int64(unix.Minor(rdev))) }

func numbers(major, minor int64) string { return fmt.Sprintf("%d:%d", major, minor) }

func quoted(name, value string) string { return fmt.Sprintf("%s=%q", name, value) }

// summary is a file's content, of a long one size and digest.
func summary(content string) string {
	if len(content) <= 64 {
		return content
	}
	return fmt.Sprintf("%d bytes, sha256 %x", len(content), sha256.Sum256([]byte(content)))
}

// visibleAttributes lists the extended attributes of a name, but for what the host's security modules add.
func visibleAttributes(name string) (string, error) {
	b := make([]byte, 1<<16)
	n, err := unix.Llistxattr(name, b)
	if errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", &fs.PathError{Op: "listxattr", Path: name, Err: err}
	}
	var list []string
	for key := range strings.SplitSeq(strings.TrimRight(string(b[:n]), "\x00"), "\x00") {
		if key == "" || key == "security.selinux" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(name, key, value)
		if err != nil {
			return "", &fs.PathError{Op: "getxattr " + key, Path: name, Err: err}
		}
		list = append(list, quoted(key, string(value[:n])))
	}
	slices.Sort(list)
	return strings.Join(list, " "), nil
}

// find returns the entry of one path, which must be there.
func find(t testing.TB, dir, path string) entry {
	t.Helper()
	e, _, err := describe(dir, filepath.Join(dir, path))
	must(t, err)
	return e
}

// shows checks names, types and contents of a view: "folder/", "file=content", "link->target", and for anything else
// "name" and its type. What the engine's own init layer holds is left out.
func shows(t testing.TB, dir string, want ...string) {
	t.Helper()
	got := []string{}
	for _, e := range tree(t, dir) {
		switch {
		case e.Path == "" || e.Path == ".dockerenv":
		case e.Type == "d":
			got = append(got, e.Path+"/")
		case e.Type == "-":
			got = append(got, e.Path+"="+e.Content)
		case e.Type == "l":
			got = append(got, e.Path+"->"+e.Content)
		default:
			got = append(got, e.Path+" "+e.Type+e.Content)
		}
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("view: -want +got\n%s", d)
	}
}

// same checks that two views show the same.
func same(t testing.TB, what, want, got string) {
	t.Helper()
	if d := cmp.Diff(tree(t, want), tree(t, got)); d != "" {
		t.Errorf("%s: -want +got\n%s", what, d)
	}
}

// writeNew makes an empty file, with a fixed time.
func writeNew(name string) error { return write(name, "") }

// write makes or overwrites a file and gives it a fixed time.
func write(name, content string) error {
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		return err
	}
	return os.Chtimes(name, moment, moment)
}
