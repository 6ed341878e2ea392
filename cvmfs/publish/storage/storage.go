// Package storage is where readers find the files of a repository (its stratum 0) and a publisher puts them.
//
// The words used here:
//
//   - A name is a file's, relative to the repository's root: "data/3f/ab…C", ".cvmfspublished".
//   - Objects lie below data/. They are named by the digest of their stored bytes, and never change. The few other
//     files are replaced whole.
//   - An object's plain bytes are what it is made of; its stored bytes are those, or those compressed.
//
// What is read here is checked: an object against its name, the manifest as clients check it.
package storage

import (
	"context"
	"io"
	"time"
)

// Reader is a repository as readers see it. Its methods may be called concurrently.
type Reader interface {
	// Get opens a file; the error is fs.ErrNotExist if there is none.
	Get(ctx context.Context, name string) (io.ReadCloser, error)
	// Stat returns a file's size in bytes; the error is fs.ErrNotExist if there is none.
	Stat(ctx context.Context, name string) (int64, error)
	// String says where the repository is, for people.
	String() string
}

// Storage is what a publisher writes to. Its methods may be called concurrently.
type Storage interface {
	Reader
	// Put stores a file of size bytes; one that is there is replaced. Readers see the former or the new one, whole.
	// What was put is safe from a loss of power only after Sync.
	Put(ctx context.Context, name string, content io.Reader, size int64) error
	// Remove removes files; one that isn't there is no error.
	Remove(ctx context.Context, names ...string) error
	// List calls fn for each file whose name begins with prefix, in no particular order, until fn fails.
	List(ctx context.Context, prefix string, fn func(File) error) error
	// Sync brings everything put before to where a loss of power leaves it.
	Sync(ctx context.Context) error
}

// File is a file of a storage.
type File struct {
	Name     string
	Size     int64 // bytes
	Modified time.Time
}

// DataFolder holds the objects.
const DataFolder = "data"
