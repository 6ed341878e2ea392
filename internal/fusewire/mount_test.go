package fusewire

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

func TestTheDeviceIsFoundUnderAnyName(t *testing.T) {
	testutil.NeedRoot(t)
	dir := t.TempDir()
	want := filepath.Join(dir, "fuse") // what an error is to name
	for _, node := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"misc-fuse", 10, 229}, {"fuse", 10, 229}} {
		if got := device(dir); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		name := filepath.Join(dir, node.name)
		if err := unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(node.major, node.minor))); err != nil {
			t.Skipf("needs mknod(2): %v", err)
		}
		if node.minor == 229 {
			want = name
		}
	}
	if got := device(dir); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
