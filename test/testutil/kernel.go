package testutil

import (
	"cmp"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// KernelLacks skips a test that needs something which this kernel hasn't got. Whoever runs the tests on several kernels
// knows what each of them may lack, by these words, and takes no other skip.
func KernelLacks(t testing.TB, what string) {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	t.Skipf("this kernel (%s) lacks %s", unix.ByteSliceToString(uts.Release[:]), what)
}

// MountEROFS mounts an EROFS image straight from its file, with mount options, until the end of the test, and returns
// the folder.
func MountEROFS(t testing.TB, image, options string) (dir string) {
	t.Helper()
	NeedRoot(t)
	dir = t.TempDir()
	err := unix.Mount(image, dir, "erofs", unix.MS_RDONLY, options)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTBLK) {
		KernelLacks(t, "EROFS images mounted from files") // Linux 6.12
	}
	if err != nil {
		t.Fatalf("mount %s: %v", image, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// KnownView returns the view that the driver is known to choose on the kernel that tests run on: "erofs", "erofs by two
// overlays" or "fuse". Whoever runs tests on several kernels sets it as CVMFS_TEST_VIEW; the kernels that the project
// is developed on have the first.
func KnownView() string { return cmp.Or(os.Getenv("CVMFS_TEST_VIEW"), "erofs") }

// ViewWords returns the view that a line View of "docker info" tells of, in the words of [KnownView].
func ViewWords(line string) string {
	view, why, _ := strings.Cut(line, " (")
	if strings.HasPrefix(why, "by two overlays") {
		view += " by two overlays"
	}
	return view
}
