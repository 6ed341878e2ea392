// Package publishtest makes repositories for tests, and reads them as clients do.
package publishtest

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zlib"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/check"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

// FQRN is the name of the repositories.
const FQRN = "publish.example.org"

// Small gives settings by which files of a few thousand bytes are chunked.
func Small(s publish.Settings) publish.Settings {
	s.FQRN, s.MinChunk, s.AvgChunk, s.MaxChunk, s.WholeFile = FQRN, 4096, 8192, 16384, 1
	return s
}

// keys is a folder whose keys all repositories of a test program share: making them takes a second.
var keys string

// Keys is the folder of the keys that the repositories share.
func Keys() string { return keys }

// Main is what TestMain calls: it runs the tests. A program that [Kill] started is the publisher to be killed instead;
// each publishes, then calls after, if that isn't nil.
func Main(m *testing.M, after func(ctx context.Context, r *publish.Repository) error) {
	if dir := os.Getenv(publisherEnv); dir != "" {
		fmt.Fprintln(os.Stderr, publishForever(context.Background(), dir, after))
		os.Exit(1)
	}
	var err error
	if keys, err = os.MkdirTemp("", "publish-keys-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(keys)
	os.Exit(code)
}

// New makes an empty repository.
func New(t testing.TB, s publish.Settings) *publish.Repository {
	t.Helper()
	return NewIn(t, t.TempDir(), s)
}

// NewIn makes one in the folder parent/repo.
func NewIn(t testing.TB, parent string, s publish.Settings) *publish.Repository {
	t.Helper()
	dir := filepath.Join(parent, "repo")
	s.Keys = keys
	if err := publish.Create(t.Context(), dir, s, publish.Options{}); err != nil {
		t.Fatal(err)
	}
	r, err := publish.Open(dir, publish.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Begin begins a transaction that ends with the test at the latest.
func Begin(t testing.TB, r *publish.Repository) *publish.Transaction {
	t.Helper()
	tx, err := r.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Abort() })
	return tx
}

// Commit publishes a transaction.
func Commit(t testing.TB, tx *publish.Transaction) *publish.Summary {
	t.Helper()
	s, err := tx.Commit(context.Background(), publish.CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Newest is the newest revision as our client reads it over HTTP, with an empty cache.
func Newest(t testing.TB, r *publish.Repository) *client.Revision {
	t.Helper()
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(r.Dir(), "www"))))
	t.Cleanup(server.Close)
	return NewestAt(t, r, server.URL+"/cvmfs/"+r.FQRN(), t.TempDir())
}

// NewestAt is the one at a URL. dir keeps what the client has seen.
func NewestAt(t testing.TB, r *publish.Repository, url, dir string) *client.Revision {
	t.Helper()
	c, err := client.Open(&config.Config{
		FQRN: r.FQRN(), Servers: []string{url}, ProxyGroups: [][]string{{config.Direct}},
		PublicKeys: []string{r.MasterKeyFile()},
	}, client.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	revision, err := c.Newest(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

// Ingest puts a layer into a transaction.
func Ingest(t testing.TB, tx *publish.Transaction, path string, archive []byte) *publish.Layer {
	t.Helper()
	l, err := tx.Ingest(context.Background(), path, bytes.NewReader(archive), publish.LayerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Check checks a repository to the last byte.
func Check(t testing.TB, r *publish.Repository) ([]check.Problem, *check.Summary) {
	t.Helper()
	keys, err := r.MasterKeys()
	if err != nil {
		t.Fatal(err)
	}
	var all []check.Problem
	o := check.Options{FQRN: r.FQRN(), Keys: keys, Content: true, Dir: t.TempDir()}
	s, err := check.Run(context.Background(), r.Storage(), o, func(p check.Problem) { all = append(all, p) })
	if err != nil {
		t.Fatal(err)
	}
	if s.Problems != len(all) {
		t.Errorf("%d problems counted, %d reported", s.Problems, len(all))
	}
	return all, s
}

// MustBeSound has a repository without a problem.
func MustBeSound(t testing.TB, r *publish.Repository) *check.Summary {
	t.Helper()
	problems, s := Check(t, r)
	for _, p := range problems {
		t.Error(p)
	}
	return s
}

// Object stores an object of plain bytes, compressed as the publisher does it, and returns its digest.
func Object(t testing.TB, r *publish.Repository, suffix hash.Suffix, plain []byte) hash.Digest {
	t.Helper()
	stored := Stored(plain)
	d := r.Algorithm().Digest(stored)
	err := r.Storage().Put(t.Context(), d.Path(suffix), bytes.NewReader(stored), int64(len(stored)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Stored returns the stored form of plain bytes.
func Stored(plain []byte) []byte {
	var b bytes.Buffer
	w, err := zlib.NewWriterLevel(&b, 6)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // a buffer takes all
	}
	return b.Bytes()
}

// Put puts a file into a storage.
func Put(t testing.TB, s storage.Storage, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
}
