package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/cvmfs/catalog"
	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/thin"
)

const (
	defaultPrefix = "/layers"
	lockName      = ".docker2cvmfs.lock"
	stagePattern  = ".docker2cvmfs-"
	metadataName  = ".metadata" // what is told of images lies beside the layers
	maxSmall      = 64 << 20    // bytes of a file that ReadFile reads
)

// errBusy refuses a place another process works on.
var errBusy = errors.New("another docker2cvmfs works here: wait for it")

// lockFile locks an open file until it is closed, by whatever: a lock outlives no process.
func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errBusy
	}
	if err != nil {
		return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return nil
}

// plainFolder is an ordinary folder as a sink.
type plainFolder struct {
	dir, prefix, fqrn string
	entries           int // Options.MaxEntries
}

func openFolder(dir string, o Options) (Sink, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: make the folder first", err)
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, errors.New("no folder")
	case o.FQRN == "":
		return nil, errors.New("a folder doesn't say which repository it will be in: give it by --repository")
	}
	return &plainFolder{dir, cmp.Or(o.Prefix, defaultPrefix), o.FQRN, o.MaxEntries}, nil
}

func (f *plainFolder) FQRN() string   { return f.fqrn }
func (f *plainFolder) String() string { return "dir:" + f.dir }

// Begin takes the folder's lock and removes what one that was cut off left.
func (f *plainFolder) Begin(context.Context) (Transaction, error) {
	t, err := f.begin()
	if err != nil {
		return nil, fmt.Errorf("begin in %s: %w", f.dir, err)
	}
	return t, nil
}

func (f *plainFolder) begin() (*folderTransaction, error) {
	lock, err := os.OpenFile(filepath.Join(f.dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: it must be writable", err)
	}
	t := &folderTransaction{folder: f, lock: lock}
	if err = lockFile(lock); err == nil {
		err = t.sweep()
	}
	if err == nil {
		t.stage, err = os.MkdirTemp(f.dir, stagePattern)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return t, nil
}

// folderTransaction keeps all that is new in a folder of its own till Commit moves it.
type folderTransaction struct {
	uncut

	folder *plainFolder
	lock   *os.File
	stage  string

	mu      sync.Mutex
	moves   []move
	removed []string // paths on disk
}

// move is what Commit brings to its place.
type move struct{ from, to string }

// sweep removes the stages of transactions that were cut off.
func (t *folderTransaction) sweep() error {
	entries, err := os.ReadDir(t.folder.dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), stagePattern) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(t.folder.dir, e.Name())))
		}
	}
	return err
}

// place is where a path of the repository lies on disk.
func (t *folderTransaction) place(name string) (string, error) {
	if err := checkPath(name); err != nil {
		return "", err
	}
	if rest, found := strings.CutPrefix(name, t.folder.prefix+"/"); found {
		name = "/" + rest
	}
	return filepath.Join(t.folder.dir, filepath.FromSlash(name)), nil
}

func (t *folderTransaction) Has(_ context.Context, name string) (bool, error) {
	place, err := t.place(name)
	if err != nil {
		return false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if slices.ContainsFunc(t.moves, func(m move) bool { return m.to == place }) {
		return true, nil
	}
	_, err = os.Lstat(place)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// later returns a place in the stage for what will be at a place.
func (t *folderTransaction) later(place string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	from := filepath.Join(t.stage, fmt.Sprint(len(t.moves)))
	t.moves = append(t.moves, move{from, place})
	return from
}

func (t *folderTransaction) Layer(ctx context.Context, name string, archive io.Reader,
	read func(Stats) (*File, error),
) (Stats, error) {
	place, err := t.place(name)
	if err != nil {
		return Stats{}, err
	}
	// What stands beside a layer comes first, so that no layer is ever seen without it.
	record, err := os.CreateTemp(t.stage, "record")
	if err != nil {
		return Stats{}, err
	}
	dir, err := os.MkdirTemp(t.stage, "layer")
	if err != nil {
		return Stats{}, errors.Join(err, record.Close())
	}
	stats, err := extractWithRecord(ctx, archive, dir, record, t.folder.entries)
	if err == nil {
		err = writeFile(ctx, t, stats, read)
	}
	if err != nil {
		return stats, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if info, err := os.Stat(record.Name()); err == nil && info.Size() > 0 {
		t.moves = append(t.moves, move{record.Name(), place + thin.RecordSuffix})
	}
	t.moves = append(t.moves, move{dir, place})
	return stats, nil
}

// extractWithRecord unpacks a layer of at most so many entries into a folder and writes its record, which may be empty,
// to a file, which it closes.
func extractWithRecord(ctx context.Context, archive io.Reader, dir string, record *os.File, entries int) (
	Stats, error,
) {
	r, stats, err := extract(ctx, archive, dir, entries)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	var b []byte
	if err == nil {
		b, err = encodeRecord(r)
	}
	if err == nil {
		_, err = record.Write(b)
	}
	if err == nil {
		err = record.Chmod(0o644)
	}
	return stats, errors.Join(err, record.Close())
}

func (t *folderTransaction) ReadFile(_ context.Context, name string) ([]byte, error) {
	place, err := t.place(name)
	if err != nil {
		return nil, err
	}
	return readSmall(place)
}

func readSmall(place string) ([]byte, error) {
	f, err := os.Open(place)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && len(b) > maxSmall {
		err = fmt.Errorf("%s: more than %d bytes", place, maxSmall)
	}
	return b, err
}

func (t *folderTransaction) WriteFile(_ context.Context, name string, content []byte) error {
	place, err := t.place(name)
	if err != nil {
		return err
	}
	return os.WriteFile(t.later(place), content, 0o644)
}

func (t *folderTransaction) List(_ context.Context, name string) ([]Entry, error) {
	if name == t.folder.prefix { // it is the folder itself, which holds what isn't below the prefix too
		all, err := listFolder(t.folder.dir)
		return slices.DeleteFunc(all, func(e Entry) bool {
			return e.Name == metadataName || e.Name == lockName || strings.HasPrefix(e.Name, stagePattern)
		}), err
	}
	place, err := t.place(name)
	if err != nil {
		return nil, err
	}
	return listFolder(place)
}

// listFolder returns what is in a folder on disk, without the markers of catalogs.
func listFolder(dir string) ([]Entry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []Entry
	for _, e := range entries {
		if e.Name() != catalog.Marker {
			all = append(all, Entry{e.Name(), e.IsDir()})
		}
	}
	return all, err
}

func (t *folderTransaction) Remove(_ context.Context, name string) error {
	place, err := t.place(name)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removed = append(t.removed, place)
	return nil
}

// Commit syncs what is new and moves it to its place, one by one, in the order it came: records, layers, and what tells
// of them. What it removes goes first into the stage, so that no half of it is seen.
func (t *folderTransaction) Commit(context.Context, string) error {
	err := t.commit()
	return errors.Join(err, t.Abort())
}

func (t *folderTransaction) commit() error {
	if err := durable.SyncFS(t.folder.dir); err != nil {
		return err
	}
	for i, place := range t.removed {
		err := os.Rename(place, filepath.Join(t.stage, fmt.Sprint("removed", i)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, m := range t.moves {
		if err := os.MkdirAll(filepath.Dir(m.to), 0o755); err != nil {
			return err
		}
		if err := os.Rename(m.from, m.to); err != nil {
			return err
		}
	}
	return durable.SyncFS(t.folder.dir)
}

// Revision isn't known: whoever brings the folder into a repository makes it.
func (t *folderTransaction) Revision() uint64 { return 0 }

// Abort removes what is in the stage and gives the lock back.
func (t *folderTransaction) Abort() error {
	if t.lock == nil {
		return nil
	}
	err := errors.Join(os.RemoveAll(t.stage), t.lock.Close())
	t.lock = nil
	return err
}
