// Package layertartest has archives that all who take layers must make the same of, and holds them to it: the rows of
// the table in package layertar.
package layertartest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// Case is an archive and what must become of it.
type Case struct {
	Name    string
	Archive []byte
	Tree    []string // what there is then, as List and File.Line have it; nil: the archive is refused
	// Unshown is the tree, too, but of what a composed image has no room for: who converts refuses it.
	Unshown bool
	// Overlay2 says why Docker on overlay2 makes something else of it.
	Overlay2 string
	// Differs says why go-archive, which the engines have, makes something else of it.
	Differs string
}

// File is a name of a tree in words that whiteouts of any form have in common.
type File struct {
	Path   string
	Mode   uint32 // as st_mode
	UID    uint32
	GID    uint32
	Mtime  int64
	Size   int64
	Rdev   uint64
	Target string
	Xattrs []string // "name=value", sorted
}

// Line describes a file. Those with the names of whiteouts are whiteouts.
func (f *File) Line() string {
	dir, base := filepath.Split(f.Path)
	if base == ".wh..wh..opq" {
		return dir + " opaque"
	}
	if hidden, is := strings.CutPrefix(base, ".wh."); is {
		return dir + hidden + " whiteout"
	}
	line := fmt.Sprintf("%s %c", f.Path, "?pc?d?b?-?l?s???"[f.Mode>>12&15])
	if f.Mode&unix.S_IFMT != unix.S_IFLNK {
		line += fmt.Sprintf(" %o", f.Mode&0o7777)
	}
	line += fmt.Sprintf(" %d:%d @%d", f.UID, f.GID, f.Mtime)
	switch f.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		line += fmt.Sprintf(" %d bytes", f.Size)
	case unix.S_IFLNK:
		line += " -> " + f.Target
	case unix.S_IFCHR, unix.S_IFBLK:
		line += fmt.Sprintf(" %d:%d", unix.Major(f.Rdev), unix.Minor(f.Rdev))
	}
	return strings.Join(append([]string{line}, f.Xattrs...), " ")
}

// List describes a tree on disk, sorted, without its root. Overlayfs' forms of whiteouts are whiteouts if overlay is
// set.
func List(t testing.TB, dir string, overlay bool) []string {
	t.Helper()
	lines := []string{}
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		f := File{
			Path: strings.TrimPrefix(strings.TrimPrefix(name, dir), "/"), Mode: st.Mode, UID: st.Uid, GID: st.Gid,
			Mtime: st.Mtim.Sec, Size: st.Size, Rdev: st.Rdev,
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			if f.Target, err = os.Readlink(name); err != nil {
				return err
			}
		}
		opaque, err := f.readXattrs(name)
		if overlay && opaque {
			lines = append(lines, strings.TrimPrefix(f.Path+"/", "/")+" opaque")
		}
		switch {
		case f.Path == "":
		case overlay && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
			lines = append(lines, f.Path+" whiteout")
		default:
			lines = append(lines, f.Line())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return lines
}

// readXattrs reads a file's extended attributes, and reports whether overlayfs' mark of an opaque folder is among them.
func (f *File) readXattrs(name string) (opaque bool, err error) {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, names)
	if errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for x := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		switch x {
		case "":
			continue
		case "trusted.overlay.opaque":
			opaque = true
			continue
		}
		if n, err = unix.Lgetxattr(name, x, value); err != nil {
			return false, fmt.Errorf("%s: %w", x, err)
		}
		f.Xattrs = append(f.Xattrs, x+"="+string(value[:n]))
	}
	sort.Strings(f.Xattrs)
	return opaque, nil
}

// Run holds who takes layers to the cases. take makes what is to be made of an archive and lists it; converts tells
// that it is for composed images.
func Run(t *testing.T, converts bool, take func(t *testing.T, archive []byte) ([]string, error)) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			tree, err := take(t, c.Archive)
			if c.Tree == nil || c.Unshown && converts {
				if err == nil {
					t.Errorf("it was taken, as %q", tree)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := append([]string{}, c.Tree...)
			sort.Strings(want)
			sort.Strings(tree)
			if diff := cmp.Diff(want, tree); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}
