package erofs

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What Check lets pass can be written, also with what a composer adds, and what it refuses has a reason that Write
// gives too.
func TestCheckSaysWhatWriteWillSay(t *testing.T) {
	value := func(n int) []byte { return bytes.Repeat([]byte("v"), n) }
	wide := func(last int) *Node {
		return with(fileNode(1), xattr("user.a", string(value(maxXattrValue))),
			xattr("user.b", string(value(maxXattrValue))),
			xattr("user.c", string(value(maxXattrValue))), xattr("user.d", string(value(last))))
	}
	for name, c := range map[string]struct {
		node *Node
		want string
	}{
		"greatest device":   {&Node{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(maxMajor, maxMinor)}, ""},
		"minor too great":   {&Node{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1, maxMinor+1)}, "device number"},
		"major too great":   {&Node{Mode: unix.S_IFBLK, Rdev: unix.Mkdev(maxMajor+1, 1)}, "device number"},
		"longest value":     {with(fileNode(1), xattr("user.a", string(value(maxXattrValue)))), ""},
		"value too long":    {with(fileNode(1), xattr("user.a", string(value(maxXattrValue+1)))), "65535"},
		"unknown namespace": {with(fileNode(1), xattr("btrfs.compression", "zstd")), "only user."},
		"much together":     {wide(maxXattrValue - headroom - 100), ""},
		"too much together": {wide(maxXattrValue), "256 KiB"},
	} {
		err := c.node.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
		if err == nil {
			n := with(c.node, xattr("trusted.overlay.redirect", string(value(headroom-100))),
				xattr("trusted.overlay.metacopy", ""))
			if _, err := Write(io.Discard, dirNode(Child{"n", n}), Options{}); err != nil {
				t.Errorf("%s passed, and: %v", name, err)
			}
		}
	}
}

func TestNamesOfStorableAttributes(t *testing.T) {
	for name, want := range map[string]bool{
		"user.a": true, "trusted.a": true, "security.selinux": true, "system.posix_acl_access": true,
		"system.posix_acl_default": true,
		"user.":                    false, "": false, "system.posix_acl_other": false, "system.nfs4_acl": false, "user.a\x00": false,
		"user." + strings.Repeat("n", 250): true, "user." + strings.Repeat("n", 251): false,
	} {
		if Storable(name) != want {
			t.Errorf("%q: %t", name, !want)
		}
	}
}
