package view

import (
	"syscall"
	"testing"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/erofs"
)

func TestOwnersAreMapped(t *testing.T) {
	h := newHost(t)
	own := func(node *erofs.Node, uid, gid uint32) *erofs.Node {
		node.UID, node.GID = uid, gid
		return node
	}
	capable := h.file([]byte("x"), 0)
	const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	capable.Xattrs = append(capable.Xattrs, erofs.Xattr{Name: "security.capability", Value: capability})
	plain := h.show(folderOf(
		erofs.Child{Name: "capable", Node: capable}, erofs.Child{Name: "none", Node: own(h.file(nil, 0), 70000, 70000)},
		erofs.Child{Name: "user", Node: own(h.file([]byte("content"), 0), 1000, 2000)},
	))
	ids := user.IdentityMapping{
		UIDMaps: []user.IDMap{{ID: 0, ParentID: 200000, Count: 65536}},
		GIDMaps: []user.IDMap{{ID: 0, ParentID: 300000, Count: 65536}},
	}
	if h.view.Map("ffff", "m", ids) == nil {
		t.Error("an image that isn't there is shown")
	}
	for range 2 {
		must(t, h.view.Map(key, "m", ids))
	}
	shown := plain + ".m"
	for name, want := range map[string][4]uint32{
		"": {0, 0, 200000, 300000}, "/user": {1000, 2000, 201000, 302000}, "/none": {70000, 70000, 65534, 65534},
	} {
		var before, after unix.Stat_t
		must(t, unix.Lstat(plain+name, &before))
		must(t, unix.Lstat(shown+name, &after))
		if got := [4]uint32{before.Uid, before.Gid, after.Uid, after.Gid}; got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
	// The third revision tells whose root it counts for.
	b, bound := make([]byte, 64), capability[:3]+"\x03"+capability[4:]+"\x40\x0d\x03\x00"
	if n, err := unix.Lgetxattr(shown+"/capable", "security.capability", b); err != nil || string(b[:n]) != bound {
		t.Errorf("capability %q, %v, want %q", b[:n], err, bound)
	}
	if n, err := unix.Lgetxattr(plain+"/capable", "security.capability", b); err != nil || string(b[:n]) != capability {
		t.Errorf("capability %q, %v", b[:n], err)
	}
	h.view.Unmap(key, "m")
	if _, errno := h.view.Lookup(t.Context(), folderNode, []byte(key+".m")); errno != syscall.ENOENT {
		t.Errorf("it is shown on: %v", errno)
	}
	if _, errno := h.view.Lookup(t.Context(), folderNode, []byte(key)); errno != 0 {
		t.Errorf("with its own owners it isn't shown any more: %v", errno)
	}
	must(t, h.view.Map(key, "m", ids))
	h.view.Remove(key)
	if _, errno := h.view.Lookup(t.Context(), folderNode, []byte(key+".m")); errno != syscall.ENOENT {
		t.Errorf("it outlives its image: %v", errno)
	}
}
