package hostfs

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKindsAreNamed(t *testing.T) {
	for dir, want := range map[string]string{"/proc": "0x9fa0", "/dev/shm": "tmpfs"} {
		if got, err := Kind(dir); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", dir, got, err, want)
		}
	}
	if _, err := Kind("/nowhere"); err == nil {
		t.Error("a missing folder has a kind")
	}
}

func TestTypesOfNamesAreSeen(t *testing.T) {
	entry := func(kind byte, name string) []byte {
		b := make([]byte, 16, 24)
		n := (19 + len(name) + 1 + 7) &^ 7
		b = append(b, byte(n), 0, kind)
		b = append(b, name...)
		return append(b, make([]byte, n-len(b))...)
	}
	known := append(entry(unix.DT_DIR, "."), entry(unix.DT_REG, "file")...)
	for _, c := range []struct {
		name string
		list []byte
		want bool
	}{
		{"all", known, true},
		{"not the last", append(known, entry(unix.DT_UNKNOWN, "x")...), false},
		{"none", entry(unix.DT_UNKNOWN, "."), false},
		{"torn", known[:len(known)-9], true},
		{"length of nothing", make([]byte, 18), true},
	} {
		if got := typesKnown(c.list); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
	if ok, err := Typed(t.TempDir()); !ok || err != nil {
		t.Errorf("here: %t, %v", ok, err)
	}
	if _, err := Typed("/nowhere"); err == nil {
		t.Error("a missing folder was read")
	}
}

func TestSharedMountsAreTold(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	for flag, want := range map[uintptr]bool{unix.MS_SHARED: true, unix.MS_PRIVATE: false} {
		if err := unix.Mount("", dir, "", flag, ""); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir+"/below", 0o700); err != nil {
			t.Fatal(err)
		}
		if got, err := Shared(dir + "/below"); got != want || err != nil {
			t.Errorf("%t, %v, want %t", got, err, want)
		}
	}
	if _, err := Shared("/nowhere"); err == nil {
		t.Error("a missing folder is told of")
	}
}
