//go:build guest

package testutil

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// LoadPolicy has SELinux work by a small policy of ours, which allows everything; it stays until the machine ends.
func LoadPolicy(t testing.TB) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("selinuxfs", dir, "selinuxfs", 0, ""); err != nil {
		KernelLacks(t, "SELinux") // or was started without security=selinux
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	policy, err := os.ReadFile(Data(t, "selinux", "policy.31"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "load"), policy, 0) // by one write(2), as the kernel wants it
	}
	if err != nil {
		t.Fatal(err)
	}
}

// SELinuxLabel returns the label of a file as the kernel tells it.
func SELinuxLabel(t testing.TB, file string) string {
	t.Helper()
	label := make([]byte, 256)
	n, err := unix.Lgetxattr(file, "security.selinux", label)
	if err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(label[:n])
}
