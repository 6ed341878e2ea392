package hostfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What is mounted below a shared mount is unseen once the last other mount namespace has taken it off.
func TestUnseenMountsAreTold(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	base := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("tmpfs", base, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must(unix.Unmount(base, unix.MNT_DETACH)) })
	must(unix.Mount("", base, "", unix.MS_PRIVATE, ""))
	host, plugin := filepath.Join(base, "host"), filepath.Join(base, "plugin")
	must(os.Mkdir(host, 0o700))
	must(os.Mkdir(plugin, 0o700))
	is := func(when string, want bool) {
		t.Helper()
		if got, err := Unseen(plugin); got != want || err != nil {
			t.Errorf("%s: %t, %v, want %t", when, got, err, want)
		}
		if left, err := os.ReadDir(plugin); err != nil || len(left) > 0 {
			t.Errorf("%s: left: %v, %v", when, left, err)
		}
	}
	is("not shared", false)
	must(unix.Mount(host, host, "", unix.MS_BIND, ""))
	must(unix.Mount("", host, "", unix.MS_SHARED, ""))
	must(unix.Mount(host, plugin, "", unix.MS_BIND, ""))
	is("a peer here", false)
	other := exec.Command("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", "echo; cat")
	in, err := other.StdinPipe()
	must(err)
	out, err := other.StdoutPipe()
	must(err)
	must(other.Start())
	_, err = out.Read(make([]byte, 1)) // it has its mounts
	must(err)
	must(unix.Unmount(host, unix.MNT_DETACH))
	is("a peer elsewhere", false)
	must(in.Close())
	must(other.Wait())
	is("no peer any more", true)
	group, err := PeerGroup(plugin)
	must(err)
	for dir, want := range map[string]bool{filepath.Join(plugin, "x"): true, host: false} {
		if got, err := HasPeer(os.Getpid(), dir, group); group == "" || got != want || err != nil {
			t.Errorf("%s lies on a mount of the group %q: %t, %v, want %t", dir, group, got, err, want)
		}
	}
	if _, err := Unseen(filepath.Join(base, "nowhere")); err == nil {
		t.Error("a missing folder is told of")
	}
}
