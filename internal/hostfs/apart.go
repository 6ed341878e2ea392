package hostfs

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Apart calls do on a thread in a mount namespace of its own, in which base, a folder that exists, is an empty file
// system in memory, and waits for it. What do mounts goes with the thread, whatever happens. An error says why do
// wasn't called. The thread may be one that other goroutines have used before: a process that one of them started to
// die with its parent (Pdeathsig) dies with it.
func Apart(base string, do func()) error {
	done := make(chan error)
	go onThread(func() {
		err := separate(base)
		if err == nil {
			do()
		}
		done <- err
	})
	return <-done
}

// onThread does something on a thread that ends with it, and is not the process's first, whose namespaces /proc/self
// shows.
func onThread(do func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		do()
		return // locked: the thread ends with the goroutine
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		do()
	}()
	<-done
}

// separate puts the thread into a mount namespace of its own, in which base is an empty file system in memory.
func separate(base string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, "mode=0700,size=1m"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", base, err)
	}
	return nil
}
