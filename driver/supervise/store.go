package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Names of what a service manager keeps, and of the variables by which it does; see sd_notify(3), sd_listen_fds(3).
const (
	storedSocket   = "socket"
	storedFuse     = "fuse"
	storedJournal  = "journal"
	storedHandover = "handover" // a memory file with the text of the handover

	notifyVariable = "NOTIFY_SOCKET"
	pidVariable    = "LISTEN_PID"
	countVariable  = "LISTEN_FDS"
	namesVariable  = "LISTEN_FDNAMES"
	firstStored    = 3
)

// stored takes what the service manager has kept of a former supervisor, by name.
func stored() map[string]*os.File {
	files := map[string]*os.File{}
	names := strings.Split(os.Getenv(namesVariable), ":")
	count, err := strconv.Atoi(os.Getenv(countVariable))
	if err == nil && os.Getenv(pidVariable) == strconv.Itoa(os.Getpid()) {
		for i := range min(count, len(names)) {
			unix.CloseOnExec(firstStored + i)
			files[names[i]] = os.NewFile(uintptr(firstStored+i), names[i])
		}
	}
	for _, name := range []string{pidVariable, countVariable, namesVariable} {
		os.Unsetenv(name) // servers are not to take their descriptors for these
	}
	return files
}

// keep has the service manager keep a file for the next supervisor.
func keep(name string, f *os.File) error {
	return notify("FDSTORE=1\nFDNAME="+name, f)
}

// notify tells the service manager something, if there is one.
func notify(state string, files ...*os.File) error {
	address := os.Getenv(notifyVariable)
	if address == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	var rights []byte
	for _, f := range files {
		rights = append(rights, unix.UnixRights(int(f.Fd()))...)
	}
	err = unix.Sendmsg(fd, []byte(state), rights, &unix.SockaddrUnix{Name: address}, 0)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("tell the service manager at %s: %w", address, err)
	}
	return nil
}

// resume takes up the socket and the FUSE mount of a former supervisor, as far as they are what this one is to have.
func (s *supervisor) resume() error {
	files := stored()
	defer func() {
		for _, f := range files {
			f.Close() // what isn't taken up
		}
	}()
	take := func(name string) *os.File {
		defer delete(files, name)
		return files[name]
	}
	if files[storedSocket] != nil {
		if err := s.resumeSocket(files[storedSocket]); err != nil {
			return err
		}
	}
	text, err := readAll(files[storedHandover])
	if err != nil || text == nil {
		return err
	}
	var h handover
	if err := json.Unmarshal(text, &h); err != nil {
		return fmt.Errorf("take over from a former supervisor: %w", err)
	}
	// Nothing may touch the folder itself: nobody answers yet.
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(s.cfg.FuseDir))
	if err != nil {
		return err
	}
	if len(mounts) == 0 || files[storedFuse] == nil || h.Journal && files[storedJournal] == nil {
		return nil
	}
	s.fuse, s.handover = take(storedFuse), take(storedHandover)
	if h.Journal {
		s.journal = take(storedJournal)
	}
	s.env, s.resumed = append(os.Environ(), variable+"="+string(text)), true
	s.kept = true // also if what else is to be begun fails
	s.log.Info("fuse taken over", "dir", s.cfg.FuseDir, "generation", h.Generation)
	return nil
}

// resumeSocket takes up a listening socket if its file is where this supervisor's is to be.
func (s *supervisor) resumeSocket(f *os.File) error {
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("take over the socket: %w", err)
	}
	unixListener, ok := l.(*net.UnixListener)
	if _, err := os.Lstat(s.cfg.Socket); !ok || err != nil || l.Addr().String() != s.cfg.Socket {
		return l.Close()
	}
	s.listener = unixListener
	s.socket, err = unixListener.File()
	return err
}

// store has the service manager keep all that a next supervisor is to take up, and says that this one has begun.
func (s *supervisor) store() error {
	if !s.cfg.Keep || os.Getenv(notifyVariable) == "" {
		return nil
	}
	err := keep(storedSocket, s.socket)
	if !s.resumed {
		err = errors.Join(err, keep(storedFuse, s.fuse), keep(storedHandover, s.handover))
		if s.journal != nil {
			err = errors.Join(err, keep(storedJournal, s.journal))
		}
	}
	if err = errors.Join(err, notify("READY=1")); err != nil {
		return err
	}
	s.kept = true
	s.listener.SetUnlinkOnClose(false)
	return nil
}

// memory makes a memory file of a text.
func memory(name string, text []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(text); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// readAll reads a memory file from its beginning, whoever has moved in it; nil without one.
func readAll(f *os.File) ([]byte, error) {
	if f == nil {
		return nil, nil
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	text := make([]byte, info.Size())
	if _, err := f.ReadAt(text, 0); err != nil {
		return nil, fmt.Errorf("take over from a former supervisor: %w", err)
	}
	return text, nil
}
