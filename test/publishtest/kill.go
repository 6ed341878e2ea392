package publishtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/testutil"
)

// publisherEnv makes the test binary a publisher of the folder it names, until it is killed.
const publisherEnv = "PUBLISH_TEST_FOREVER"

// publishForever publishes revision after revision, each with a layer of its number, and says so.
func publishForever(ctx context.Context, dir string, after func(context.Context, *publish.Repository) error) error {
	r, err := publish.Open(dir, publish.Options{})
	if err != nil {
		return err
	}
	for {
		head, err := r.Head(ctx)
		if err != nil {
			return err
		}
		tx, err := r.Begin(ctx)
		if err != nil {
			return err
		}
		if err := PublishNumber(tx, head.Manifest.Revision+1); err != nil {
			return errors.Join(err, tx.Abort())
		}
		if after != nil {
			if err := after(ctx, r); err != nil {
				return err
			}
		}
		fmt.Println("published")
	}
}

// PublishNumber commits a layer whose content says its number, and removes the one that is five older.
func PublishNumber(tx *publish.Transaction, number uint64) error {
	ctx := context.Background()
	var items []Item
	for i := range 40 {
		items = append(items, File(fmt.Sprintf("d%d/f%d", i%4, i),
			fmt.Sprintf("file %d of %d %s", i, number, strings.Repeat("x", i*100))))
	}
	items = append(items, File("big", string(testutil.Sample(30_000+int(number)))))
	var archive bytes.Buffer
	if err := PackTo(&archive, items); err != nil {
		return err
	}
	o := publish.LayerOptions{MostRows: 20, LeastRows: 5}
	if _, err := tx.Ingest(ctx, LayerPath(number), &archive, o); err != nil {
		return err
	}
	if err := tx.WriteFile(ctx, LayerPath(number)+".record.json", []byte(strconv.FormatUint(number, 10)),
		0o644); err != nil {
		return err
	}
	if number > 5 {
		if err := tx.Remove(ctx, LayerPath(number-5)); err != nil {
			return err
		}
	}
	_, err := tx.Commit(ctx, publish.CommitOptions{})
	return err
}

// LayerPath is where the layer of a number is.
func LayerPath(number uint64) string { return fmt.Sprintf("/layers/%d", number) }

// CheckNumber reads a revision that PublishNumber made, completely.
func CheckNumber(t testing.TB, r *publish.Repository, number uint64) {
	t.Helper()
	v := Newest(t, r)
	if v.Number != number {
		t.Fatalf("readers see revision %d, want %d", v.Number, number)
	}
	got := ReadAll(t, v, "")
	for n := uint64(1); n <= number; n++ {
		_, there := got[fmt.Sprintf("layers/%d/d3/f39", n)]
		if want := n+5 > number; there != want {
			t.Errorf("revision %d: layer %d there: %v, want %v", number, n, there, want)
		}
	}
}

// Kill starts a publisher and kills it a while after its first publish, when it is in the middle of another.
func Kill(t testing.TB, r *publish.Repository, after time.Duration) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), publisherEnv+"="+r.Dir())
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
