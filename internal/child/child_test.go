package child

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
)

// Threads end by the dozen, none of which takes the command with it.
func TestCommandOutlivesThreads(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	endThreads := func() {
		for range 64 {
			all.Go(func() { runtime.LockOSThread() }) // not unlocked: the thread ends
		}
		all.Wait()
	}
	endThreads()
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		endThreads()
	}
	if cmd.SysProcAttr.Pdeathsig != syscall.SIGKILL {
		t.Error("it isn't bound to the process")
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil { // it reads to the end
		t.Error(err)
	}
}
