package publish_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/history"
	"cvmfs-graphdriver/cvmfs/manifest"
	. "cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/storage"
	. "cvmfs-graphdriver/test/publishtest"
)

func TestKilledAnywhereTheLastRevisionIsWholeAndTheNextFollows(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	r := New(t, Small(Settings{}))
	random := rand.New(rand.NewPCG(1, 2))
	var killed uint64
	for round := range rounds {
		Kill(t, r, time.Duration(random.IntN(120))*time.Millisecond)
		head, err := r.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if head.Manifest.Revision <= killed {
			t.Errorf("round %d: revision %d after %d", round, head.Manifest.Revision, killed)
		}
		killed = head.Manifest.Revision
		CheckNumber(t, r, killed)
	}
	tx := Begin(t, r)
	if err := PublishNumber(tx, killed+1); err != nil {
		t.Fatal(err)
	}
	CheckNumber(t, r, killed+1)
	MustBeSound(t, r)
}

func TestFilesThatAProcessLeftHalfWrittenGoWithTheNextTransaction(t *testing.T) {
	r := New(t, Small(Settings{}))
	left := []string{
		filepath.Join(r.Dir(), ".new-1"), filepath.Join(r.Temp(), "catalog.1"),
		filepath.Join(r.Storage().String(), ".new-2"), filepath.Join(r.Storage().String(), "data/txn/1.1"),
	}
	for _, path := range left {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Storage().List(t.Context(), "", func(f storage.File) error {
		if strings.Contains(f.Name, "new-") || strings.Contains(f.Name, "txn") {
			t.Errorf("%s is listed", f.Name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	Begin(t, r)
	for _, path := range left {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestReflogOfAPublishThatWasCutOffIsPutBack stops between reflog and manifest, where a kill is unlikely to hit.
func TestReflogOfAPublishThatWasCutOffIsPutBack(t *testing.T) {
	r := New(t, Small(Settings{}))
	before, err := storage.ReadFile(t.Context(), r.Storage(), history.ReflogFile, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	log := &history.Reflog{FQRN: r.FQRN()}
	log.Set(
		history.Ref{
			Digest: r.Algorithm().Digest([]byte("never published")),
			Kind:   history.Catalog,
			Time:   At,
		},
	)
	if err := r.PutReflog(t.Context(), log); err != nil {
		t.Fatal(err)
	}
	tx := Begin(t, r)
	after, err := storage.ReadFile(t.Context(), r.Storage(), history.ReflogFile, 1<<20)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the reflog was not put back: %v", err)
	}
	if err := PublishNumber(tx, 1); err != nil {
		t.Fatal(err)
	}
	CheckNumber(t, r, 1)
}

// TestStorageThatWentBackIsRefused has a server that lies: an older revision, in itself consistent.
func TestStorageThatWentBackIsRefused(t *testing.T) {
	r := New(t, Small(Settings{}))
	old := map[string][]byte{}
	for _, name := range []string{manifest.FileName, history.ReflogFile} {
		b, err := storage.ReadFile(t.Context(), r.Storage(), name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		old[name] = b
	}
	if err := PublishNumber(Begin(t, r), 1); err != nil {
		t.Fatal(err)
	}
	for name, b := range old {
		Put(t, r.Storage(), name, string(b))
	}
	if _, err := r.Begin(t.Context()); !errors.Is(err, ErrReflog) {
		t.Errorf("got %v, want ErrReflog", err)
	}
}

// TestPublishCutOffBeforeItsReflogIsForgotten stops after the note of the reflog and before the reflog.
func TestPublishCutOffBeforeItsReflogIsForgotten(t *testing.T) {
	r := New(t, Small(Settings{}))
	before, err := storage.ReadFile(t.Context(), r.Storage(), history.ReflogFile, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	log := &history.Reflog{FQRN: r.FQRN()}
	if err := r.PutReflog(t.Context(), log); err != nil {
		t.Fatal(err)
	}
	Put(t, r.Storage(), history.ReflogFile, string(before))
	if err := PublishNumber(Begin(t, r), 1); err != nil {
		t.Fatal(err)
	}
	CheckNumber(t, r, 1)
}

func TestReflogOfSomebodyElseIsRefused(t *testing.T) {
	r := New(t, Small(Settings{}))
	if err := os.WriteFile(filepath.Join(r.Dir(), WWWFolder, r.FQRN(), history.ReflogFile), []byte("not ours"),
		0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Begin(t.Context()); !errors.Is(err, ErrReflog) {
		t.Errorf("got %v, want ErrReflog", err)
	}
	// The lock is free again: it isn't what the next one fails for.
	if _, err := r.Begin(t.Context()); !errors.Is(err, ErrReflog) {
		t.Errorf("got %v, want ErrReflog", err)
	}
}
