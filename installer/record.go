package installer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
)

// DefaultRecord is where the record of a host lies.
const DefaultRecord = "/var/lib/cvmfs-graphdriver/install.json"

// recordFormat is the format of the record. It counts up when an older program would misread it.
const recordFormat = 1

// record is what the installer knows over its runs: what it has installed, and what it is about to change. It is on
// disk, synced, before a change is begun.
type record struct {
	Format    int          `json:"format"`
	Installed *installed   `json:"installed,omitempty"` // nil: nothing
	Open      *transaction `json:"open,omitempty"`      // nil: nothing is half done
	// the snapshotter, nil: it isn't installed
	Snapshotter *installed `json:"snapshotter,omitempty"`
	// of the driver, out of daemon.json since a dead engine was started without: for the next install
	Options []string `json:"options,omitempty"`

	path string
	lock *os.File // of the run that may write it
}

// installed is what an uninstall goes back from.
type installed struct {
	Plugin string `json:"plugin"`
	// it is the engine's storage driver; not any more after an uninstall that keeps it
	Driver  bool      `json:"driver"`
	Former  string    `json:"former"`         // the storage driver of before
	Root    string    `json:"root,omitempty"` // the engine's data folder that the plugin lies in; "" if it isn't known
	Gone    bool      `json:"gone,omitempty"` // the plugin is removed already, the rest is not undone yet
	Log     string    `json:"log,omitempty"`  // the file that the engine's log went to, if it was one
	Time    time.Time `json:"time"`
	Changes []change  `json:"changes"`        // in the order in which they were made
	Unit    string    `json:"unit,omitempty"` // of the containerd that was told of the snapshotter
}

// transaction is a run that changes the host, from its first change until all is done or undone.
type transaction struct {
	Operation string    `json:"operation"`
	Plugin    string    `json:"plugin"`
	Former    string    `json:"former"` // the storage driver the engine ran with when it began
	Rescue    string    `json:"rescue"` // one it starts with whatever the plugin is like; "": none is known
	File      string    `json:"file"`   // the engine's configuration file
	Time      time.Time `json:"time"`
	// no engine answered when it began, as its storage driver keeps it from starting
	Down      bool     `json:"down,omitempty"`
	Running   []string `json:"running,omitempty"` // ids of the containers that ran when it began
	Restarted bool     `json:"restarted"`         // a restart of the engine was begun
	Changes   []change `json:"changes"`

	Snapshotter bool   `json:"snapshotter,omitempty"` // it is one of the snapshotter, not of the plugin
	Unit        string `json:"unit,omitempty"`        // of containerd
	Reread      bool   `json:"reread,omitempty"`      // a restart of containerd was begun
}

// openRecord takes the record for a run of its own. It fails at once if another run has it.
func openRecord(path string) (*record, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open the installer's record: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the installer's record: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close() // the error that is told is the first one
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another install, upgrade or uninstall is at work here: it holds %s; wait until it has ended", path+".lock")
		}
		return nil, fmt.Errorf("lock %s: %w", path+".lock", err)
	}
	r, err := readRecord(path)
	if err != nil {
		lock.Close() // the error that is told is the first one
		return nil, err
	}
	r.lock = lock
	return r, nil
}

// readRecord reads the record, which is empty if there is none.
func readRecord(path string) (*record, error) {
	r := &record{Format: recordFormat, path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	if err != nil {
		return nil, fmt.Errorf("read the installer's record %s: %w (it says what was changed here; restore it, or move it away and look after "+
			"daemon.json yourself)", path, err)
	}
	if r.Format != recordFormat {
		return nil, fmt.Errorf("read the installer's record %s: it has format %d, this program knows %d (use the program that wrote it, or a newer one)",
			path, r.Format, recordFormat)
	}
	return r, nil
}

// Remembered returns of the engine, as a record has them, its configuration file and the file that its log goes to; ""
// is not known. An engine that doesn't run can't tell them.
func Remembered(path string) (file, log string) {
	r, err := readRecord(path)
	if err != nil {
		return "", "" // those who need the record tell
	}
	var changes []change
	if r.Installed != nil {
		changes, log = slices.Clone(r.Installed.Changes), r.Installed.Log
	}
	if r.Open != nil {
		changes = append(changes, r.Open.Changes...)
	}
	for _, c := range changes {
		if c.Backup != nil {
			file = c.Backup.Path
		}
	}
	return file, log
}

// save puts the record on disk, whole.
func (r *record) save() error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = durable.Replace(r.path, 0o600, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write the installer's record: %w", err)
	}
	return nil
}

// close lets the record go, also for programs just being started, which may still have the file.
func (r *record) close() error {
	return errors.Join(unix.Flock(int(r.lock.Fd()), unix.LOCK_UN), r.lock.Close())
}

// cut reports whether the plugin is disabled for a while, though it is the storage driver.
func (t *transaction) cut() bool {
	return slices.ContainsFunc(t.Changes, func(c change) bool {
		return c.Kind == pluginDisabled &&
			sameDriver(c.Plugin, t.Former)
	})
}

// stays reports whether the engine has the same storage driver before and after, so that the containers that ran can be
// started again.
func (t *transaction) stays() bool {
	return !t.Down && t.Operation != opUninstall && sameDriver(t.Former, t.Plugin)
}

// Operations of transactions, as they are told.
const (
	opInstall   = "install"
	opUpgrade   = "upgrade"
	opUninstall = "uninstall"
)

// cutOff says that the transaction isn't through.
func (t *transaction) cutOff() string {
	return fmt.Sprintf("the %s of %s was cut off", t.Operation, t.Time.Local().Format(time.DateTime))
}
