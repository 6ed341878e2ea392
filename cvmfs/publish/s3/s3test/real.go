package s3test

import (
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// Start runs versitygw, a real store, at an address, for AccessKey and SecretKey. It has no bucket yet, and ends with
// the test. The flags come before its kind of storage, which is a folder.
func Start(t testing.TB, program, address string, flags ...string) {
	t.Helper()
	flags = append([]string{"--port", address}, flags...)
	cmd := exec.CommandContext(t.Context(), program, append(flags, "posix", t.TempDir())...)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() // it may have ended
		cmd.Wait()
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
