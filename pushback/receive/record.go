package receive

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/pushback/api"
)

// State is how far a layer has got.
type State string

// The states of layers, in the order in which they come.
const (
	Sending   State = "sending"   // an upload, not yet whole
	Arrived   State = "arrived"   // to be fetched from the bucket, if it came there, and to be judged
	Asking    State = "asking"    // found to be good: a person decides
	Ready     State = "ready"     // to be published
	Published State = "published" // the repository has it
	Failed    State = "failed"    // it isn't published; the same one may be sent again
	Rejected  State = "rejected"  // a person has decided against it
)

// States are all states.
var States = []State{Sending, Arrived, Asking, Ready, Published, Failed, Rejected}

// Pending reports whether a layer in this state is still to be published.
func (s State) Pending() bool { return s == Arrived || s == Asking || s == Ready }

// Record is what is known of a layer that came.
type Record struct {
	Digest string   `json:"digest"`
	DiffID string   `json:"diff_id,omitempty"` // as the node says, until the layer is judged
	Size   int64    `json:"size"`              // bytes of the archive
	Node   string   `json:"node,omitempty"`
	Image  string   `json:"image,omitempty"`
	Key    string   `json:"key,omitempty"`     // of the object in the bucket; "": it is an upload
	Object string   `json:"object,omitempty"`  // tells the object from a later one under the same key
	Failed []string `json:"failed,omitempty"`  // objects of this digest that have failed before, as failedObject has them
	Plain  int64    `json:"content,omitempty"` // bytes of the uncompressed archive; 0 until it is judged

	State    State     `json:"state"`
	Reason   string    `json:"reason,omitempty"` // why it failed, or what it waits for
	Since    time.Time `json:"since"`            // when it came
	Changed  time.Time `json:"changed"`          // when the state did
	Attempts int       `json:"attempts,omitempty"`
	Tried    time.Time `json:"tried,omitzero"`     // when it failed first, of Attempts
	Ends     int       `json:"ends,omitempty"`     // of the service while it published the layer
	Next     time.Time `json:"next,omitzero"`      // when it is tried again
	By       string    `json:"by,omitempty"`       // the person who decided
	Revision uint64    `json:"revision,omitempty"` // that has it, where that is known
}

// Folders and files of the state.
const (
	layersFolder    = "layers"    // records
	incomingFolder  = "incoming"  // archives
	decisionsFolder = "decisions" // of people, not yet heeded
	lockFile        = "lock"
	noteFile        = "transaction" // of the sink
	workingFile     = "publishing"  // digests of the layers that are being published, a line each

	recordSuffix = ".json"
	maxRecord    = 64 << 10 // bytes
)

// book holds all records. It is safe for concurrent use.
type book struct {
	dir string
	now func() time.Time

	mu      sync.Mutex
	records map[string]Record
	busy    map[string]bool // digests somebody works on
}

// prepare makes the folders of a state.
func prepare(dir string) error {
	for _, name := range []string{"", layersFolder, incomingFolder, decisionsFolder} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// lock makes a state this process's until the file is closed.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%s is another service's: end that, or choose another state", dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// readRecords reads all records of a state, which may be in use.
func readRecords(dir string) (map[string]Record, error) {
	entries, err := os.ReadDir(filepath.Join(dir, layersFolder))
	if err != nil {
		return nil, err
	}
	records := map[string]Record{}
	for _, e := range entries {
		digest, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || !api.ValidDigest(digest) {
			continue
		}
		file := filepath.Join(dir, layersFolder, e.Name())
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // dropped meanwhile
		}
		var r Record
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err == nil && (r.Digest != digest || !slices.Contains(States, r.State)) {
			err = errors.New("no record of that layer")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w: remove it, and the layer can be sent again", file, err)
		}
		records[digest] = r
	}
	return records, nil
}

// openBook reads the records of a state that nobody else uses, and settles what a killed process left.
func openBook(dir string, now func() time.Time) (*book, error) {
	for _, name := range []string{layersFolder, incomingFolder, decisionsFolder} {
		if err := durable.Sweep(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	records, err := readRecords(dir)
	if err != nil {
		return nil, err
	}
	b := &book{dir: dir, now: now, records: records, busy: map[string]bool{}}
	return b, errors.Join(b.sweep(), b.mend())
}

// mend has layers come again whose archives are gone, as after a loss of power: from the bucket, or from their node.
func (b *book) mend() error {
	for _, r := range b.in(Arrived, Asking, Ready) {
		_, err := os.Lstat(b.archive(r.Digest))
		switch {
		case err == nil || r.State == Arrived && r.Key != "":
			continue
		case !errors.Is(err, fs.ErrNotExist):
			return err
		case r.Key == "":
			err = b.drop(r.Digest)
		default:
			r.State = Arrived
			err = b.put(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sweep removes archives that no record needs.
func (b *book) sweep() error {
	entries, err := os.ReadDir(filepath.Join(b.dir, incomingFolder))
	for _, e := range entries {
		if r, ok := b.records[e.Name()]; !ok || r.State != Sending && !r.State.Pending() {
			err = errors.Join(err, os.Remove(b.archive(e.Name())))
		}
	}
	return err
}

// archive is the file of a layer's archive.
func (b *book) archive(digest string) string { return filepath.Join(b.dir, incomingFolder, digest) }

func (b *book) get(digest string) (Record, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, ok := b.records[digest]
	return r, ok
}

// put replaces a record, on disk first. An archive that isn't needed any more goes afterwards. Where it can't be
// written, the layer stays in its state; why it waits, and until when, counts all the same.
func (b *book) put(r Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, ok := b.records[r.Digest]
	if !ok || old.State != r.State {
		r.Changed = b.now().UTC()
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil && len(text) > maxRecord {
		err = fmt.Errorf("a record of %d bytes", len(text))
	}
	if err == nil {
		err = durable.Replace(filepath.Join(b.dir, layersFolder, r.Digest+recordSuffix), 0o600, append(text, '\n'))
	}
	if err != nil {
		if ok && old.State == r.State {
			b.records[r.Digest] = r
		}
		return fmt.Errorf("record of layer %s: %w", r.Digest, err)
	}
	b.records[r.Digest] = r
	if r.State == Sending || r.State.Pending() {
		return nil
	}
	return b.removeArchive(r.Digest)
}

// drop forgets a layer.
func (b *book) drop(digest string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := durable.Remove(filepath.Join(b.dir, layersFolder, digest+recordSuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	delete(b.records, digest)
	return b.removeArchive(digest)
}

func (b *book) removeArchive(digest string) error {
	if err := os.Remove(b.archive(digest)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// all returns the records in the order in which the layers came.
func (b *book) all() []Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return sorted(b.records)
}

// in returns those that are in one of these states.
func (b *book) in(states ...State) []Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := map[string]Record{}
	for digest, r := range b.records {
		if slices.Contains(states, r.State) {
			found[digest] = r
		}
	}
	return sorted(found)
}

func sorted(records map[string]Record) []Record {
	list := make([]Record, 0, len(records))
	for _, r := range records {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b Record) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Digest, b.Digest))
	})
	return list
}

// claim makes a layer the caller's until release; false if somebody works on it.
func (b *book) claim(digest string) (release func(), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy[digest] {
		return nil, false
	}
	b.busy[digest] = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.busy, digest)
	}, true
}

// dropFailed forgets the layer that failed before all others.
func (b *book) dropFailed() error {
	failed := b.in(Failed)
	if len(failed) == 0 { // since they were counted
		return nil
	}
	oldest := slices.MinFunc(failed, func(a, b Record) int { return a.Changed.Compare(b.Changed) })
	release, ok := b.claim(oldest.Digest)
	if !ok {
		return nil
	}
	defer release()
	return b.drop(oldest.Digest)
}

// isBusy reports whether somebody works on a layer.
func (b *book) isBusy(digest string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.busy[digest]
}

// usage is what records take up.
type usage struct {
	layers int   // that aren't decided
	bytes  int64 // of their archives
	own    int   // of the layers, those of the node that is asked for
	failed int   // layers that have failed
	faults int   // of them, those of the origin that is asked for
}

// usage counts what is kept besides a layer's own record, and what of it is of its node.
func (b *book) usage(of *Record, origin func(*Record) string) (u usage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	from := origin(of)
	for _, r := range b.records {
		switch {
		case r.Digest == of.Digest:
		case r.State == Sending || r.State.Pending():
			u.layers, u.bytes = u.layers+1, u.bytes+r.Size
			if r.Node == of.Node {
				u.own++
			}
		case r.State == Failed:
			u.failed++
			if origin(&r) == from {
				u.faults++
			}
		}
	}
	return u
}
