package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/fusewire"
)

// The descriptors a server starts with, besides the standard ones.
const (
	listenerFD = 3
	fuseFD     = 4
	journalFD  = 5 // only where handover.Journal says so
)

// variable of the environment in which the handover stands.
const variable = "CVMFS_SUPERVISED"

// handover is what can't be inherited as a descriptor.
type handover struct {
	Init       fusewire.Init `json:"init"`
	Journal    bool          `json:"journal"`
	Generation string        `json:"generation"`
}

// Inheritance is what a server gets from its supervisor.
type Inheritance struct {
	Listener   net.Listener // of the plugin's socket
	Fuse       *os.File     // device of the FUSE mount
	Journal    *os.File     // nil where the kernel resends requests
	Init       fusewire.Init
	Generation string // differs with every life of the supervisor
}

// ErrNotSupervised means that the process was not started by a supervisor.
var ErrNotSupervised = errors.New("not started by the supervisor: run the program without arguments")

// Inherited takes what the supervisor has handed to this process. It can be called once. From then on a reader of our
// output that is gone doesn't end the process (SIGPIPE), and children don't inherit the descriptors.
func Inherited() (*Inheritance, error) {
	text, ok := os.LookupEnv(variable)
	if !ok {
		return nil, ErrNotSupervised
	}
	var h handover
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		return nil, fmt.Errorf("take over from the supervisor: %s: %w", variable, err)
	}
	if err := os.Unsetenv(variable); err != nil {
		return nil, fmt.Errorf("take over from the supervisor: %w", err)
	}
	signal.Ignore(syscall.SIGPIPE)
	in := &Inheritance{Fuse: inherit(fuseFD, "/dev/fuse"), Init: h.Init, Generation: h.Generation}
	if h.Journal {
		in.Journal = inherit(journalFD, "fuse-journal")
	}
	f := inherit(listenerFD, "plugin socket")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over the plugin's socket: %w", err)
	}
	in.Listener = l
	return in, nil
}

func inherit(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}
