package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

// imageFile writes the image of a tree to a file.
func imageFile(t *testing.T, root *Node) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.erofs")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	stats, err := Write(f, root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", stats)
	return name
}

// listMount lists what is mounted. It goes from folder to folder by descriptors, for paths may be too long for the
// kernel.
func listMount(t *testing.T, dir string) listing {
	t.Helper()
	f := newFound[uint64]()
	type place struct {
		path string
		fd   int
	}
	open := func(at int, name string) int {
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatalf("open folder %q: %v", name, err)
		}
		return fd
	}
	top := open(unix.AT_FDCWD, dir)
	f.add(statAt(t, "", top, "."))
	for todo := []place{{"", top}}; len(todo) > 0; {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		folder := os.NewFile(uintptr(p.fd), p.path)
		names, err := folder.Readdirnames(-1)
		if err != nil {
			t.Fatalf("list %q: %v", p.path, err)
		}
		for _, name := range names {
			path, ino, r := statAt(t, p.path+"/"+name, p.fd, name)
			f.add(path, ino, r)
			if r.Mode&unix.S_IFMT == unix.S_IFDIR {
				todo = append(todo, place{path, open(p.fd, name)})
			}
		}
		folder.Close()
	}
	return f.listing()
}

func statAt(t *testing.T, path string, at int, name string) (string, uint64, record) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatalf("stat %q: %v", path, err)
	}
	r := record{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint64(st.Nlink), Size: st.Size,
		Mtime: st.Mtim.Sec, MtimeN: uint32(st.Mtim.Nsec), Rdev: st.Rdev, Xattrs: xattrsAt(t, path, at, name),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		r.Size = 0
	case unix.S_IFLNK:
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(at, name, b)
		if err != nil {
			t.Fatalf("readlink %q: %v", path, err)
		}
		r.Target = string(b[:n])
	}
	return path, st.Ino, r
}

func xattrsAt(t *testing.T, path string, at int, name string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	file := fmt.Sprintf("/proc/self/fd/%d/%s", at, name)
	size, err := unix.Llistxattr(file, nil)
	if err == nil && size == 0 {
		return all
	}
	b := make([]byte, max(size, 1))
	n, err := unix.Llistxattr(file, b)
	if err != nil {
		t.Fatalf("list xattrs of %q: %v", path, err)
	}
	for attr := range strings.SplitSeq(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00") {
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(file, attr, value)
		if err != nil {
			t.Fatalf("get xattr %s of %q: %v", attr, path, err)
		}
		all[attr] = string(value[:n])
	}
	return all
}

func TestKernelShowsTheTree(t *testing.T) {
	testutil.NeedRoot(t) // before the image is made
	root := richTree()
	dir := testutil.MountEROFS(t, imageFile(t, root), "")
	check(t, root, listMount(t, dir))
}

func TestKernelShowsRandomTrees(t *testing.T) {
	testutil.NeedRoot(t) // before the image is made
	for _, c := range []struct {
		seed uint64
		size int
	}{{1, 0}, {2, 100}, {3, 1000}, {4, 5000}, {5, 20000}, {6, 60000}} {
		t.Run(fmt.Sprint(c.seed), func(t *testing.T) {
			root := newDice(c.seed, c.size).tree()
			dir := testutil.MountEROFS(t, imageFile(t, root), "")
			check(t, root, listMount(t, dir))
		})
	}
}

func TestKernelReadsHolesAsZeros(t *testing.T) {
	testutil.NeedRoot(t) // before the image is made
	dir := testutil.MountEROFS(t, imageFile(t, sizesTree()), "noacl")
	for _, size := range []int64{1, 4095, 4096, 4097, 1 << 20, 1<<43 + 1, MaxFileSize} {
		f, err := os.Open(filepath.Join(dir, fmt.Sprint(size)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, off := range []int64{0, size / 2, max(size-5000, 0)} {
			b, err := io.ReadAll(io.NewSectionReader(f, off, min(size-off, 10000)))
			if err != nil || int64(len(b)) != min(size-off, 10000) || len(bytes.Trim(b, "\x00")) > 0 {
				t.Errorf("file of %d bytes: read at %d: %d bytes, %v; want zeros", size, off, len(b), err)
			}
		}
	}
}

func TestKernelHoldsTheSuperblockToItsChecksum(t *testing.T) {
	testutil.NeedRoot(t) // before the image is made
	image := imageFile(t, dirNode())
	testutil.MountEROFS(t, image, "noacl")
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	b[blockSize-1] ^= 1
	spoilt := filepath.Join(t.TempDir(), "spoilt.erofs")
	if err := os.WriteFile(spoilt, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(spoilt, t.TempDir(), "erofs", unix.MS_RDONLY, "noacl"); !errors.Is(err, unix.EBADMSG) {
		t.Errorf("mount of an image with a wrong checksum: %v, want EBADMSG", err)
	}
}

func TestKernelSeesFoldersOfEverySize(t *testing.T) {
	testutil.NeedRoot(t) // before the image is made
	dir := testutil.MountEROFS(t, imageFile(t, foldersTree()), "noacl")
	for _, size := range folderSizes() {
		info, err := os.Stat(filepath.Join(dir, fmt.Sprint("exactly", size)))
		if err != nil || info.Size() != int64(size) {
			t.Errorf("folder of %d bytes: %v, %v", size, info.Size(), err)
		}
	}
}

func TestKernelFindsNoNameThatIsNotThere(t *testing.T) {
	testutil.NeedRoot(t) // before the image is made
	dir := testutil.MountEROFS(t, imageFile(t, richTree()), "noacl")
	for _, name := range []string{
		"names/c", "names/.b", "names/" + strings.Repeat("n", 254), "folders/huge/entry",
		"folders/huge/entry100000", "folders/empty/x",
	} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("lstat %s: %v, want that it does not exist", name, err)
		}
	}
}

// objectNode is a file whose content overlayfs takes from a data-only layer.
func objectNode(size int, redirect string) *Node {
	return with(fileNode(int64(size)), xattr("trusted.overlay.metacopy", ""),
		xattr("trusted.overlay.redirect", redirect))
}

func TestWriteReportsAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs root, to mount a small tmpfs: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	f, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Write(f, richTree(), Options{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write to a full disk: %v, want ENOSPC", err)
	}
}
