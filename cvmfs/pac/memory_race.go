//go:build race

package pac

import "golang.org/x/sys/unix"

// maxMemory is no limit: the race detector has terabytes of its own.
const maxMemory uint64 = unix.RLIM_INFINITY
