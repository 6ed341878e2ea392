package testutil

import (
	"testing"

	"golang.org/x/sys/unix"
)

// KernelLacks skips a test that needs something which this kernel hasn't got. Whoever runs the tests on several kernels knows what each
// of them may lack, by these words, and takes no other skip.
func KernelLacks(t testing.TB, what string) {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	t.Skipf("this kernel (%s) lacks %s", unix.ByteSliceToString(uts.Release[:]), what)
}
