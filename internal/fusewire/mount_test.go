package fusewire

import (
	"os"
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

func TestASessionServesUntilItIsUnmounted(t *testing.T) {
	mount(t, 0) // skips where it can't be
	for name, end := range map[string]func(dir string, s *Session) error{
		"closed":                func(_ string, s *Session) error { return s.Close() },
		"unmounted by somebody": func(dir string, _ *Session) error { return Unmount(dir) },
	} {
		dir := t.TempDir()
		s, err := Open(dir, newTree(map[string]int64{"a": 10}), Config{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(got) != string(content("a", 10)) {
			t.Errorf("%s: reads %q, %v", name, got, err)
		}
		select {
		case <-s.Ended():
			t.Errorf("%s: it has ended while it is mounted", name)
		default:
		}
		if err := end(dir, s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		<-s.Ended()
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("%s: there are %v, %v", name, entries, err)
		}
		if name != "closed" {
			if err := s.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestASessionThatCannotBeUnmountedServesOn(t *testing.T) {
	mount(t, 0) // skips where it can't be
	dir := t.TempDir()
	s, err := Open(dir, newTree(map[string]int64{"a": 10}), Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.dir = filepath.Join(dir, "a", "b") // below a file
	if err := s.Close(); err == nil {
		t.Error("closed")
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(got) != string(content("a", 10)) {
		t.Errorf("reads %q, %v", got, err)
	}
	s.dir = dir
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
