package sink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
)

// openFiles are called one or the other way, by the version of the publisher's program, where a transaction is open.
var openFiles = []string{"in_transaction.lock", "in_transaction"}

// opening is what is noted of a transaction that is about to be opened: what there is then, is ours.
const opening = "opening"

// note tells a later process of a transaction, and of the publisher's program that works in it: that one goes on when
// this process is killed.
type note struct {
	Transaction string `json:"transaction"` // its identity, or opening
	PID         int    `json:"pid,omitempty"`
	Start       string `json:"start,omitempty"` // of the process, in the kernel's words
}

// write puts a note in its place, where notes are wanted.
func (n note) write(file string) error {
	if file == "" {
		return nil
	}
	b, err := json.Marshal(n)
	if err == nil {
		err = durable.Replace(file, 0o600, b)
	}
	if err != nil {
		return fmt.Errorf("note the transaction: %w", err)
	}
	return nil
}

// forget drops the note of a transaction that has ended.
func (s *server) forget() error {
	if s.note == "" {
		return nil
	}
	if err := durable.Remove(s.note); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// identity tells the transaction that is open from any other; "" if none is.
func (s *server) identity() string {
	for _, name := range openFiles {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(s.spool, name), &st) == nil {
			return fmt.Sprintf("%s %d %d.%d", name, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
		}
	}
	return ""
}

// endLeft ends a transaction that a killed process of ours left open: what is in it isn't whole, and nobody else can
// work before. It is refused while the publisher's program that the process started still works. A transaction that
// somebody else has opened since, whose identity is another, is left alone.
func (s *server) endLeft() error {
	if s.note == "" {
		return nil
	}
	b, err := os.ReadFile(s.note)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var n note
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil {
		return fmt.Errorf("note of a transaction %s: %w", s.note, err)
	}
	if n.PID != 0 && startOf(n.PID) == n.Start {
		return fmt.Errorf("%w (process %d, which a killed one started)", errBusy, n.PID)
	}
	if now := s.identity(); now != "" && (n.Transaction == opening || n.Transaction == now) {
		if err := s.call(note{Transaction: now}, "abort", "-f", s.fqrn); err != nil {
			return fmt.Errorf("end the transaction that a killed process left open: %w", err)
		}
	}
	return s.forget()
}

// startOf is when a process was started, in ticks since the machine was (proc_pid_stat(5), field 22); "" if there is
// none, or if it has ended already.
func startOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name before may hold anything
	const state, start = 0, 19
	if len(fields) <= start || fields[state] == "Z" {
		return ""
	}
	return fields[start]
}
