package engine

import (
	"context"
	"errors"
	"os"
	"testing"
)

// NewFor makes an engine for a test, which ends with it; find is [Find] or [FindNewer]. It isn't started yet. Where
// there can be none the test skips.
func NewFor(t testing.TB, find func(ctx context.Context, cache string) (*Tools, error)) *Engine {
	t.Helper()
	if err := Supported(); err != nil {
		t.Skip(err)
	}
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	tools, err := find(t.Context(), cache)
	if errors.Is(err, ErrNotFetched) {
		t.Skipf("needs a Docker engine: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "engine-") // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	e, err := New(tools, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// StoreFor returns the program of a real S3 store for a test, which skips where [Fetch] hasn't built it.
func StoreFor(t testing.TB) string {
	t.Helper()
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	program, err := FindStore(cache)
	if errors.Is(err, ErrNotFetched) {
		t.Skip("make packages builds a store: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return program
}
