// Package child starts commands that don't outlive the process that starts them.
package child

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// Start starts a command that the kernel kills when this process ends, however it ends. It changes the command's
// SysProcAttr.
//
// The kernel ties that to the thread that starts the command, and a thread of Go's ends when a goroutine does that is
// locked to it. So one thread, which stays, starts them all.
func Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	done := make(chan error)
	starter() <- func() { done <- cmd.Start() }
	return <-done
}

// starter returns where the thread takes what it is to do.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})
