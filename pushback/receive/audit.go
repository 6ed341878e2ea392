package receive

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Decision is what was made of a layer.
type Decision string

// The decisions.
const (
	DecidedReceived  Decision = "received"  // it came, and its node may send it
	DecidedRefused   Decision = "refused"   // its node may not send it, or the archive isn't what it should be
	DecidedApproved  Decision = "approved"  // by a person
	DecidedRejected  Decision = "rejected"  // by a person
	DecidedPublished Decision = "published" // the repository has it from now on
	DecidedPresent   Decision = "present"   // the repository had it
	DecidedFailed    Decision = "failed"    // it couldn't be published
)

var decisions = []Decision{
	DecidedReceived, DecidedRefused, DecidedApproved, DecidedRejected, DecidedPublished, DecidedPresent, DecidedFailed,
}

// auditLine is a line of the audit file.
type auditLine struct {
	Time     time.Time `json:"time"`
	Decision Decision  `json:"decision"`
	Digest   string    `json:"digest"`
	DiffID   string    `json:"diff_id,omitempty"`
	Node     string    `json:"node"`
	Image    string    `json:"image"`
	Size     int64     `json:"size"`
	Key      string    `json:"key,omitempty"`    // of the object in the bucket
	Remote   string    `json:"remote,omitempty"` // address an upload came from
	By       string    `json:"by,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	URL      string    `json:"url,omitempty"`
	Revision uint64    `json:"revision,omitempty"`
}

// audit appends to a file. A line is on disk before what it tells of is known to anybody; after a crash it may come
// again.
type audit struct {
	file string

	mu     sync.Mutex
	counts map[Decision]int64 // since the start
}

// longestLine is what a line without a reason takes at most, in bytes: the image, the node and the key have up to a KiB
// each, of which a byte may be six in JSON.
const longestLine = 32 << 10

// reserve makes sure that so many lines can be written: what would be in the repository and in no line isn't to be put
// there at all.
func (a *audit) reserve(lines int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	f, err := a.open()
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, info.Size(), int64(lines)*longestLine)
	}
	if errors.Is(err, unix.EOPNOTSUPP) { // of the file system, as NFS: lines are short
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// try makes the file, if it isn't there.
func (a *audit) try() error {
	f, err := a.open()
	if err != nil {
		return err
	}
	return f.Close()
}

// open opens the file, each time: it may be rotated.
func (a *audit) open() (*os.File, error) {
	f, err := os.OpenFile(a.file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return f, nil
}

func (a *audit) write(l auditLine) (err error) {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f, err := a.open()
	if err != nil {
		return err
	}
	if err = errors.Join(appendLine(f, append(text, '\n')), f.Close()); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	a.counts[l.Decision]++
	return nil
}

// skip counts a decision that has no line.
func (a *audit) skip(d Decision) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[d]++
}

// appendLine appends a whole line, or nothing.
func appendLine(f *os.File, line []byte) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err = f.Write(line); err == nil {
		err = f.Sync()
	}
	if err != nil {
		err = errors.Join(err, f.Truncate(info.Size()))
	}
	return err
}
