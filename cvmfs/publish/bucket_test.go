package publish_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	. "cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
)

func TestRepositoryIsPublishedIntoABucket(t *testing.T) {
	store := s3test.NewStore(t)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		t.Setenv(name, s3test.Env(name))
	}
	dir := filepath.Join(t.TempDir(), "publisher")
	settings := Settings{FQRN: "s3.example.org", Storage: store.Address()}
	if err := Create(t.Context(), dir, settings, Options{}); err != nil {
		t.Fatal(err)
	}
	r, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		tx, err := r.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.WriteFile(t.Context(), fmt.Sprintf("/file%d", i), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := tx.Commit(t.Context(), CommitOptions{}); err != nil || s.Revision != uint64(i+1) {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	if err := r.AddTag(t.Context(), "good", "", ""); err != nil {
		t.Fatal(err)
	}
	if i, err := r.Info(t.Context()); err != nil || i.Revision != 3 || i.Counters.Regular != 3 {
		t.Errorf("%+v, %v", i, err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(s3test.SecretKey)) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := Create(t.Context(), dir+"2", settings,
		Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second repository in its place: %v", err)
	}
}
