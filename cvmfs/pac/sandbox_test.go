package pac

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// runProbe runs the test's program again, confined, to try what must not go, and gives what it says.
func runProbe(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), probing+"=1", "GODEBUG=asyncpreemptoff=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// probe is the process that runProbe runs.
func probe() {
	if err := confine(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	tell := func(what string, err error) { fmt.Printf("%s: %v\n", what, err) }
	_, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0)
	tell("read a file", err)
	_, err = unix.Open("/tmp/written", unix.O_CREAT|unix.O_WRONLY, 0o600)
	tell("write a file", err)
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	tell("a socket", err)
	tell("a program", unix.Exec("/bin/true", nil, nil))
	tell("a signal to another", unix.Kill(os.Getppid(), 0))
	_, _, e := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	tell("a fork", e)
	tell("more processor time", unix.Setrlimit(unix.RLIMIT_CPU, &unix.Rlimit{Cur: 1000, Max: 1000}))
	done := make(chan bool)
	go func() { // threads go on to be made
		runtime.LockOSThread()
		done <- true
	}()
	<-done
	os.Exit(0)
}
