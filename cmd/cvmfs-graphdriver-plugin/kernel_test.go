package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

// firstNewCall is the number of the first system call that Linux has got after 4.18 (pidfd_send_signal(2), 5.1). From
// there on the numbers are the same on every architecture and go by age.
const firstNewCall = unix.SYS_PIDFD_SEND_SIGNAL

// missingCalls are words of a rung that this program, other than the one that is shipped, puts into effect: the kernel
// answers these system calls as one that hasn't got them. openat2(2) came with Linux 5.6.
var missingCalls = map[string]unix.SockFilter{
	"openat2":  {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_OPENAT2, Jf: 1},
	"newcalls": {Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: firstNewCall, Jf: 1},
}

// loseCalls puts a rung's missing system calls into effect, for this process and all it starts.
func loseCalls(rung string) error {
	for word := range strings.SplitSeq(rung, ",") {
		call, ok := missingCalls[word]
		if !ok {
			continue
		}
		if err := filterCalls([]unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the call's number, first in struct seccomp_data
			call, // the next line for one that is missing, else the one after
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		}); err != nil {
			return fmt.Errorf("run without %s: %w", word, err)
		}
	}
	return nil
}

// filterCalls installs a filter of system calls for all threads, as seccomp(2) has it.
func filterCalls(filter []unix.SockFilter) error {
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}

// probeCalls is a value of underTest: be a program that tells which calls the kernel has.
const probeCalls = "calls"

// tellCalls prints what the kernel answers to openat2(2) and fsopen(2).
func tellCalls() {
	_, openat2 := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	_, fsopen := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	fmt.Println(errors.Is(openat2, unix.ENOSYS), errors.Is(fsopen, unix.ENOSYS))
}

// The rungs are worth nothing where the kernel answers all the same.
func TestMissingCallsAreMissing(t *testing.T) {
	testutil.NeedRoot(t)
	for rung, want := range map[string]string{
		"": "false false", "openat2": "true false",
		"resend,newcalls": "true true",
	} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), underTest+"="+probeCalls, "CVMFS_WITHOUT="+rung)
		out, err := cmd.Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("without %q: missing are openat2, fsopen: %s, %v; want %s", rung, got, err, want)
		}
	}
}
