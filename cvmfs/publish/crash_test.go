package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/history"
)

// publisherEnv makes the test binary a publisher of the folder it names, until it is killed.
const publisherEnv = "PUBLISH_TEST_FOREVER"

// collectorEnv makes it collect garbage after each publish, too.
const collectorEnv = "PUBLISH_TEST_COLLECT"

// publishForever publishes revision after revision, each with a layer of its number, and says so.
func publishForever(dir string) {
	err := func() error {
		r, err := Open(dir, Options{})
		if err != nil {
			return err
		}
		for {
			head, err := r.Head(context.Background())
			if err != nil {
				return err
			}
			tx, err := r.Begin(context.Background())
			if err != nil {
				return err
			}
			if err := publishNumber(tx, head.Manifest.Revision+1); err != nil {
				return errors.Join(err, tx.Abort())
			}
			if os.Getenv(collectorEnv) != "" {
				if _, err := r.GC(context.Background(), GCOptions{Grace: -1}); err != nil {
					return err
				}
			}
			fmt.Println("published")
		}
	}()
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// publishNumber commits a layer whose content says its number, and removes the one that is five older.
func publishNumber(tx *Transaction, number uint64) error {
	ctx := context.Background()
	var items []item
	for i := range 40 {
		items = append(items, file644(fmt.Sprintf("d%d/f%d", i%4, i),
			fmt.Sprintf("file %d of %d %s", i, number, strings.Repeat("x", i*100))))
	}
	items = append(items, file644("big", string(sample(30_000+int(number)))))
	var archive bytes.Buffer
	if err := packTo(&archive, items); err != nil {
		return err
	}
	if _, err := tx.Ingest(ctx, layerPath(number), &archive, LayerOptions{most: 20, least: 5}); err != nil {
		return err
	}
	if err := tx.WriteFile(ctx, layerPath(number)+".record.json", []byte(strconv.FormatUint(number, 10)),
		0o644); err != nil {
		return err
	}
	if number > 5 {
		if err := tx.Remove(ctx, layerPath(number-5)); err != nil {
			return err
		}
	}
	_, err := tx.Commit(ctx, CommitOptions{})
	return err
}

func layerPath(number uint64) string { return fmt.Sprintf("/layers/%d", number) }

// checkNumber reads a revision publishNumber made, completely.
func checkNumber(t *testing.T, r *Repository, number uint64) {
	t.Helper()
	v := reader(t, r)
	if v.Number != number {
		t.Fatalf("readers see revision %d, want %d", v.Number, number)
	}
	got := readAll(t, v, "")
	for n := uint64(1); n <= number; n++ {
		_, there := got[fmt.Sprintf("layers/%d/d3/f39", n)]
		if want := n+5 > number; there != want {
			t.Errorf("revision %d: layer %d there: %v, want %v", number, n, there, want)
		}
	}
}

// killPublisher starts a publisher and kills it a while after its first publish, when it is in the middle of another.
func killPublisher(t *testing.T, r *Repository, after time.Duration, env ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(append(os.Environ(), publisherEnv+"="+r.Dir()), env...)
	var failure bytes.Buffer
	child.Stderr = &failure
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("published\n"))); err != nil {
		t.Fatalf("the publisher failed: %v: %s", err, failure.String())
	}
	time.Sleep(after)
	if err := child.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, out) // until the pipe breaks
	child.Wait()             // was killed
}

func TestKilledAnywhereTheLastRevisionIsWholeAndTheNextFollows(t *testing.T) {
	const rounds = 40
	r := newRepo(t, smallChunks(Settings{}))
	random := rand.New(rand.NewPCG(1, 2))
	var killed uint64
	for round := range rounds {
		killPublisher(t, r, time.Duration(random.IntN(120))*time.Millisecond)
		head, err := r.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if head.Manifest.Revision <= killed {
			t.Errorf("round %d: revision %d after %d", round, head.Manifest.Revision, killed)
		}
		killed = head.Manifest.Revision
		checkNumber(t, r, killed)
	}
	tx := begin(t, r)
	if err := publishNumber(tx, killed+1); err != nil {
		t.Fatal(err)
	}
	checkNumber(t, r, killed+1)
	mustBeSound(t, r)
}

// TestReflogOfAPublishThatWasCutOffIsPutBack stops between reflog and manifest, where a kill is unlikely to hit.
func TestReflogOfAPublishThatWasCutOffIsPutBack(t *testing.T) {
	r := newRepo(t, smallChunks(Settings{}))
	before, err := readStored(t.Context(), r.storage, reflogFile, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	log := &history.Reflog{FQRN: r.FQRN()}
	log.Set(history.Ref{Digest: r.algorithm.Digest([]byte("never published")), Kind: history.Catalog, Time: at})
	if _, err := r.putReflog(t.Context(), log); err != nil {
		t.Fatal(err)
	}
	tx := begin(t, r)
	after, err := readStored(t.Context(), r.storage, reflogFile, 1<<20)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the reflog was not put back: %v", err)
	}
	if err := publishNumber(tx, 1); err != nil {
		t.Fatal(err)
	}
	checkNumber(t, r, 1)
}

// TestStorageThatWentBackIsRefused has a server that lies: an older revision, in itself consistent.
func TestStorageThatWentBackIsRefused(t *testing.T) {
	r := newRepo(t, smallChunks(Settings{}))
	old := map[string][]byte{}
	for _, name := range []string{manifestFile, reflogFile} {
		b, err := readStored(t.Context(), r.storage, name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		old[name] = b
	}
	if err := publishNumber(begin(t, r), 1); err != nil {
		t.Fatal(err)
	}
	for name, b := range old {
		put(t, r.storage, name, string(b))
	}
	if _, err := r.Begin(t.Context()); !errors.Is(err, ErrReflog) {
		t.Errorf("got %v, want ErrReflog", err)
	}
}

// TestPublishCutOffBeforeItsReflogIsForgotten stops after the note of the reflog and before the reflog.
func TestPublishCutOffBeforeItsReflogIsForgotten(t *testing.T) {
	r := newRepo(t, smallChunks(Settings{}))
	before, err := readStored(t.Context(), r.storage, reflogFile, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	log := &history.Reflog{FQRN: r.FQRN()}
	if _, err := r.putReflog(t.Context(), log); err != nil {
		t.Fatal(err)
	}
	put(t, r.storage, reflogFile, string(before))
	if err := publishNumber(begin(t, r), 1); err != nil {
		t.Fatal(err)
	}
	checkNumber(t, r, 1)
}

func TestReflogOfSomebodyElseIsRefused(t *testing.T) {
	r := newRepo(t, smallChunks(Settings{}))
	if err := os.WriteFile(filepath.Join(r.Dir(), wwwFolder, r.FQRN(), reflogFile), []byte("not ours"),
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
