package fusewire

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// endsFor is what a thread's signals say of it, as the kernel shows them.
type endsFor int

const (
	unseen endsFor = iota // there is no such thread, or it is not shown to us
	lives
	dies
)

// harmless are the signals that end no process, handled or not: signal(7). Of the others one that is pending and not
// handled will. (Where no other signal is pending, the kernel shows SIGKILL in its place.)
const harmless = 1<<(unix.SIGCHLD-1) | 1<<(unix.SIGCONT-1) | 1<<(unix.SIGSTOP-1) | 1<<(unix.SIGTSTP-1) |
	1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1) | 1<<(unix.SIGURG-1) | 1<<(unix.SIGWINCH-1)

// fate tells whether a thread is about to end. Its number is that of a request: 0 where it is in a PID namespace which
// that of the mount does not see, as containers are seen from a plugin's.
func fate(thread uint32) endsFor {
	if thread == 0 {
		return unseen
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return unseen
	}
	defer f.Close()
	var pending, kept uint64
	found := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		switch {
		case !strings.HasPrefix(name, "Sig") && name != "ShdPnd" || err != nil: // SigQ is no set
			continue
		case name == "SigPnd" || name == "ShdPnd":
			pending |= set
		default: // blocked, ignored, caught
			kept |= set
		}
		found++
	}
	switch {
	case found != 5:
		return unseen
	case pending&^kept&^harmless != 0:
		return dies
	}
	return lives
}
