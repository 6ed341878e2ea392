package fusewire

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// richTree is a tree that also has a symbolic link, attributes, and names that are remembered not to be there.
type richTree struct {
	*tree
	links   atomic.Int64
	unknown atomic.Int64
}

const linkNode = 1000

var rich = Attr{
	Mode: syscall.S_IFLNK | 0o777, Size: 6, Ino: 77, Links: 3, UID: 1000, GID: 1 << 20, Mtime: -7, MtimeN: 999_999_999,
}

func (x *richTree) Lookup(ctx context.Context, folder uint64, name []byte) (Entry, syscall.Errno) {
	if string(name) == "link" {
		return Entry{Node: linkNode, Attr: rich, Valid: Forever}, 0
	}
	e, errno := x.tree.Lookup(ctx, folder, name)
	if errno == syscall.ENOENT {
		x.unknown.Add(1)
		return Entry{Valid: Forever}, 0
	}
	return e, errno
}

func (x *richTree) Blocks(Op, uint64) bool { return false }

func (x *richTree) Readlink(context.Context, uint64) (string, syscall.Errno) {
	x.links.Add(1)
	return "target", 0
}

func (x *richTree) Getxattr(_ context.Context, _ uint64, name string) ([]byte, syscall.Errno) {
	switch name {
	case "user.long":
		return make([]byte, 60_000), 0
	case "user.empty":
		return nil, 0
	}
	return nil, syscall.ENODATA
}

func (x *richTree) Listxattr(context.Context, uint64) ([]string, syscall.Errno) {
	return []string{"user.long", "user.empty"}, 0
}

func TestTreesHaveLinksAndAttributes(t *testing.T) {
	forRungs(t, func(t *testing.T, dir string, dev *os.File, cfg Config) {
		x := &richTree{tree: newTree(map[string]int64{"f": 1})}
		serve(t, dir, dev, x, cfg)
		link := filepath.Join(dir, "link")
		for range 2 {
			if target, err := os.Readlink(link); err != nil || target != "target" {
				t.Errorf("%q, %v", target, err)
			}
			if _, err := os.Lstat(dir + "/unknown"); !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
		if n := x.links.Load(); cfg.Init.Has(flagCacheSymlinks) && n != 1 {
			t.Errorf("the target was asked for %d times", n)
		}
		if n := x.unknown.Load(); n != 1 {
			t.Errorf("the missing name was asked for %d times", n)
		}
		var st unix.Stat_t
		if err := unix.Lstat(link, &st); err != nil {
			t.Fatal(err)
		}
		got := Attr{
			Mode: st.Mode, Size: st.Size, Ino: st.Ino, Links: uint32(st.Nlink), UID: st.Uid, GID: st.Gid,
			Mtime: st.Mtim.Sec, MtimeN: uint32(st.Mtim.Nsec),
		}
		if got != rich {
			t.Errorf("%+v, want %+v", got, rich)
		}
		b := make([]byte, 1<<16)
		if n, err := unix.Lgetxattr(dir+"/f", "user.long", b); n != 60_000 || err != nil {
			t.Errorf("attribute: %d, %v", n, err)
		}
		if n, err := unix.Lgetxattr(dir+"/f", "user.long", nil); n != 60_000 || err != nil {
			t.Errorf("attribute's size: %d, %v", n, err)
		}
		if n, err := unix.Lgetxattr(dir+"/f", "user.long", b[:1]); err != unix.ERANGE {
			t.Errorf("attribute in one byte: %d, %v", n, err)
		}
		if n, err := unix.Lgetxattr(dir+"/f", "user.empty", b); n != 0 || err != nil {
			t.Errorf("empty attribute: %d, %v", n, err)
		}
		if n, err := unix.Lgetxattr(dir+"/f", "user.none", b); err != unix.ENODATA {
			t.Errorf("no attribute: %d, %v", n, err)
		}
		n, err := unix.Llistxattr(dir+"/f", b)
		if names := strings.Split(string(b[:max(n, 0)]), "\x00"); err != nil ||
			!slices.Equal(names, []string{"user.long", "user.empty", ""}) {
			t.Errorf("names: %q, %v", names, err)
		}
	})
}
