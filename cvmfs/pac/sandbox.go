package pac

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Limits of the process.
const (
	maxSeconds = 2        // of a processor
	maxStack   = 64 << 20 // bytes of the interpreter's stack
	maxDepth   = 500      // calls within calls of a script
)

// confine takes from the process what a script doesn't need: files, network, other programs, memory and time without
// end. What it opened before stays open. It is for all threads and for ever.
func confine() error {
	for resource, most := range map[int]uint64{
		unix.RLIMIT_DATA: maxMemory, unix.RLIMIT_CPU: maxSeconds, unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: 0,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return fmt.Errorf("limit of the process: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	filter, err := filter(runtime.GOARCH)
	if err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&program)))
	if e != 0 {
		return fmt.Errorf("filter of system calls: %w", e)
	}
	return nil
}

// calls are the system calls that remain: what Go's runtime lives on, and threads of a C library where one is linked,
// and reading and writing what is open.
var calls = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_FCNTL,
	unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_BRK,
	unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP,
	unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY, unix.SYS_GETRANDOM, unix.SYS_GETPID, unix.SYS_GETTID,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
	unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_RESTART_SYSCALL, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
}

// Offsets in struct seccomp_data.
const (
	offsetCall     = 0
	offsetArch     = 4
	offsetArgument = 16 // the lower half of the first, on the machines there are
)

// machines are the kinds of machines, as the kernel numbers them, and the call that a thread needs there to begin.
var machines = map[string]struct{ number, begins uint32 }{
	"amd64": {unix.AUDIT_ARCH_X86_64, 158}, // arch_prctl
	"arm64": {unix.AUDIT_ARCH_AARCH64, unix.SYS_GETTID},
}

// filter lets calls pass, and the making of threads, by the older of two calls: what the newer one makes a filter can't
// see. All others fail with EPERM.
func filter(arch string) ([]unix.SockFilter, error) {
	machine, known := machines[arch]
	if !known {
		return nil, errors.New("proxy auto-configuration is not supported on this kind of machine")
	}
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		hasBit = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		result = unix.BPF_RET | unix.BPF_K
	)
	allow := unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ALLOW}
	deny := unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	f := []unix.SockFilter{
		{Code: load, K: offsetArch},
		{Code: equal, K: machine.number, Jt: 1},
		{Code: result, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: offsetCall},
	}
	for _, call := range append(calls, machine.begins) {
		f = append(f, unix.SockFilter{Code: equal, K: call, Jf: 1}, allow)
	}
	return append(
		f,
		unix.SockFilter{Code: equal, K: unix.SYS_CLONE3, Jf: 1},
		unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		unix.SockFilter{Code: equal, K: unix.SYS_CLONE, Jf: 3},
		unix.SockFilter{Code: load, K: offsetArgument},
		unix.SockFilter{Code: hasBit, K: unix.CLONE_THREAD, Jf: 1},
		allow,
		deny,
	), nil
}
