package publish

import (
	"context"
	"io"
	"time"
)

// Served is a repository as readers see it. Names are relative to the repository's root, as in "data/3f/ab…C" and
// ".cvmfspublished". Its methods may be called concurrently.
type Served interface {
	// Get opens a file; the error is fs.ErrNotExist if there is none.
	Get(ctx context.Context, name string) (io.ReadCloser, error)
	// Stat returns a file's size in bytes; the error is fs.ErrNotExist if there is none.
	Stat(ctx context.Context, name string) (int64, error)
	// String says where the repository is, for people.
	String() string
}

// Storage is where readers find a repository's files, and a publisher puts them.
type Storage interface {
	Served
	// Put stores a file of size bytes; one that is there is replaced. Readers see the former or the new one, whole.
	// What was put is safe from a loss of power only after Sync.
	Put(ctx context.Context, name string, content io.Reader, size int64) error
	// Remove removes files; one that isn't there is no error.
	Remove(ctx context.Context, names ...string) error
	// List calls fn for each file whose name begins with prefix, in no particular order, until fn fails.
	List(ctx context.Context, prefix string, fn func(Stored) error) error
	// Sync brings everything put before to where a loss of power leaves it.
	Sync(ctx context.Context) error
}

// Stored is a file of a storage.
type Stored struct {
	Name     string
	Size     int64 // bytes
	Modified time.Time
}
