package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// listVariable names the environment variable that makes the tests' program list a folder and end; its value is the
// folder.
const listVariable = "TEST_LISTS"

// item is everything that stat(2) and reading tell of a file, but for what differs from one mount to another.
type item struct {
	Path     string // bytes that aren't UTF-8 as \xNN
	Mode     uint32
	UID, GID uint32
	Size     int64  // of a regular file
	Mtime    string // seconds.nanoseconds
	Rdev     uint64 // of a device
	Links    uint64 // names of what isn't a folder
	Same     string // the first path of the same file
	Target   string // of a symbolic link
	Xattrs   []string
	Content  string // SHA-256
}

// list prints the items below a folder, a line of JSON each.
func list(dir string) error {
	out := json.NewEncoder(os.Stdout)
	first := map[uint64]string{}
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := look(name)
		if err != nil {
			return err
		}
		i.Path = fmt.Sprintf("%q", "/"+strings.TrimPrefix(strings.TrimPrefix(name, dir), "/"))
		if i.Links > 1 {
			var st unix.Stat_t
			if err := unix.Lstat(name, &st); err != nil {
				return err
			}
			if first[st.Ino] == "" {
				first[st.Ino] = i.Path
			}
			i.Same = first[st.Ino]
		}
		return out.Encode(i)
	})
}

// look makes the item of a file, without what depends on others.
func look(name string) (*item, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	i := &item{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec),
		Links: uint64(st.Nlink),
	}
	var err error
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		i.Links = 0
	case syscall.S_IFCHR, syscall.S_IFBLK:
		i.Rdev = st.Rdev
	case syscall.S_IFLNK:
		var target string
		target, err = os.Readlink(name)
		i.Target = fmt.Sprintf("%q", target)
	case syscall.S_IFREG:
		i.Size = st.Size
		i.Content, err = contentDigest(name)
	}
	if err != nil {
		return nil, err
	}
	i.Xattrs, err = attributes(name)
	return i, err
}

func contentDigest(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// attributes returns extended attributes as name=value in hex, sorted.
func attributes(name string) ([]string, error) {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, names)
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: name, Err: err}
	}
	var all []string
	for key := range strings.SplitSeq(string(names[:n]), "\x00") {
		if key == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(name, key, value)
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr " + key, Path: name, Err: err}
		}
		all = append(all, fmt.Sprintf("%s=%x", key, value[:n]))
	}
	slices.Sort(all)
	return all, nil
}
