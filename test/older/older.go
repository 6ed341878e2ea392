// Package older has what older versions wrote, for tests that newer ones understand it: in testdata/older, a folder for
// each version, named by its commit.
//
//	data.tar.gz         what the plugin keeps below its propagated mount, with the layers of Layers
//	publisher.tar.gz    the folder of the publisher of FQRN, keys included
//	image.tar.gz        an ordinary image, as docker save writes it
//	thin.tar            its thin image, likewise
//	expected.json.gz    what each layer of Images shows, and each container of Containers, as List gives it
//
// The program in generate makes such a folder. What is there is never made anew, nor changed: it stands for what users
// have on disk.
package older

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// FQRN is the repository's name.
const FQRN = "older.example.org"

// Commits are the versions there are folders of.
func Commits() []string { return []string{"b74c401"} }

// Layer is a layer of the data folder.
type Layer struct{ ID, Parent string }

// Layers are the read-only layers, parents first. "base" and "top" are those of the ordinary image. "thin" is its thin
// image, "mixed" the same on top of the layer "below", and "above" a layer on top of "thin".
func Layers() []Layer {
	return []Layer{{"base", ""}, {"top", "base"}, {"thin", ""}, {"above", "thin"}, {"below", ""}, {"mixed", "below"}}
}

// Images are the layers that a container is on.
func Images() []string { return []string{"top", "thin", "above", "mixed"} }

// Containers are the read-write layers, on Images of the same name without the "c-", each with a layer "-init" between.
// Those of Open were mounted when the plugin was killed.
func Containers() []string { return []string{"c-top", "c-thin", "c-above", "c-mixed"} }

// Open are the containers that were running.
func Open() []string { return []string{"c-top", "c-thin"} }

// List describes all below a folder, sorted: what stat(2) says, owners and times included, the names that are one file,
// extended attributes, and the digest of the content.
func List(dir string) (lines []string, err error) {
	first := map[uint64]string{}
	err = filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(name, &st); err != nil {
			return err
		}
		path := "/" + strings.TrimPrefix(strings.TrimPrefix(name, dir), "/")
		line := fmt.Sprintf("%q %o %d:%d %d.%09d", path, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		var more string
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			var b []byte
			if b, err = os.ReadFile(name); err == nil {
				more = fmt.Sprintf(" %d %x", len(b), sha256.Sum256(b))
			}
		case unix.S_IFLNK:
			more, err = os.Readlink(name)
			more = fmt.Sprintf(" -> %q", more)
		case unix.S_IFCHR, unix.S_IFBLK:
			more = fmt.Sprintf(" %d", st.Rdev)
		}
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first[st.Ino] == "" {
				first[st.Ino] = path
			}
			more += fmt.Sprintf(" = %q", first[st.Ino])
		}
		attributes, err := xattrs(name)
		lines = append(lines, line+more+attributes)
		return err
	})
	slices.Sort(lines)
	return lines, err
}

func xattrs(name string) (text string, err error) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, b)
	if err != nil {
		return "", &fs.PathError{Op: "listxattr", Path: name, Err: err}
	}
	keys := strings.Split(strings.TrimRight(string(b[:n]), "\x00"), "\x00")
	slices.Sort(keys)
	for _, key := range keys {
		if !strings.HasPrefix(key, "user.") && key != "security.capability" {
			continue // of the host's file system, or the host's policy
		}
		if n, err = unix.Lgetxattr(name, key, b); err != nil {
			return "", &fs.PathError{Op: "getxattr " + key, Path: name, Err: err}
		}
		text += fmt.Sprintf(" %s=%x", key, b[:n])
	}
	return text, nil
}

// archived are the options by which tar keeps what overlayfs lives on: extended attributes of every kind, devices,
// owners.
var archived = []string{"--gzip", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-permissions"}

// Pack makes an archive of what is in a folder but for the patterns given. It takes GNU tar.
func Pack(archive, dir string, without ...string) error {
	args := append([]string{"--create", "--file", archive, "--format=posix", "--sort=name", "--directory", dir},
		archived...)
	for _, w := range without {
		args = append(args, "--exclude="+w)
	}
	return tar(append(args, ".")...)
}

// Unpack brings back what Pack archived. It takes root.
func Unpack(archive, dir string) error {
	return errors.Join(os.MkdirAll(dir, 0o755),
		tar(append([]string{"--extract", "--file", archive, "--directory", dir}, archived...)...))
}

func tar(args ...string) error {
	if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("tar %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
