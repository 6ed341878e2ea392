package sink

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cvmfs-graphdriver/convert/sink/sinktest"
	"cvmfs-graphdriver/test/testutil"
)

// noted opens a stand-in for a release manager machine, whose transactions are noted.
func noted(t *testing.T) (target Sink, dir string) {
	t.Helper()
	o, dir := fakeServer(t, sinktest.GoodSettings)
	o.Note = filepath.Join(dir, "note")
	target, err := Open("cvmfs_server:"+testFQRN, o)
	if err != nil {
		t.Fatal(err)
	}
	return target, dir
}

func begin(t *testing.T, target Sink) Transaction {
	t.Helper()
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func TestATransactionThatAKilledProcessLeftIsEnded(t *testing.T) {
	testutil.NeedRoot(t)
	for _, at := range []string{"opening", "open", "closed"} {
		t.Run(at, func(t *testing.T) {
			target, dir := noted(t)
			tx := begin(t, target)
			archive := testutil.Tar(t, entry('0', "half", "x", 0o644))
			if _, err := tx.Layer(t.Context(), "/layers/abc", bytes.NewReader(archive), nil); err != nil {
				t.Fatal(err)
			}
			if at == "opening" {
				if err := (note{Transaction: opening}).write(filepath.Join(dir, "note")); err != nil {
					t.Fatal(err)
				}
			}
			if at == "closed" {
				somebody(t, dir, "abort", "-f", testFQRN)
			}
			killed(t, tx)
			tx = begin(t, target)
			if found, err := tx.Has(t.Context(), "/layers/abc"); found || err != nil {
				t.Errorf("half a layer is there: %t, %v", found, err)
			}
			_, err := tx.Layer(t.Context(), "/layers/abc", bytes.NewReader(archive), nil)
			if err := errors.Join(err, tx.Commit(t.Context(), "")); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(filepath.Join(dir, "note")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the note is left: %v", err)
			}
		})
	}
}

func TestATransactionThatSomebodyElseOpenedIsNotEnded(t *testing.T) {
	testutil.NeedRoot(t)
	target, dir := noted(t)
	tx := begin(t, target)
	if err := tx.WriteFile(t.Context(), "/new", nil); err != nil {
		t.Fatal(err)
	}
	killed(t, tx)
	somebody(t, dir, "abort", "-f", testFQRN)
	somebody(t, dir, "transaction", testFQRN)
	if _, err := target.Begin(t.Context()); !errors.Is(err, errOpen) {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "spool", testFQRN, "in_transaction.lock")); err != nil {
		t.Errorf("the other's transaction is gone: %v", err)
	}
}

// The publisher's program goes on when whoever called it is killed: nothing is aborted under its hands.
func TestAPublishThatAKilledProcessLeftIsWaitedFor(t *testing.T) {
	testutil.NeedRoot(t)
	target, dir := noted(t)
	slow := fmt.Sprintf("#!/bin/sh\ncase $1 in publish) sleep 1;; esac\nexec %s/cvmfs_server \"$@\"\n", dir)
	if err := os.WriteFile(filepath.Join(dir, "slow"), []byte(slow), 0o755); err != nil {
		t.Fatal(err)
	}
	s := target.(*server)
	s.program = filepath.Join(dir, "slow")
	tx := begin(t, target)
	if err := tx.WriteFile(t.Context(), "/new", nil); err != nil {
		t.Fatal(err)
	}
	published := make(chan error)
	go func() { published <- s.call(note{Transaction: s.identity()}, "publish", testFQRN) }()
	for n := (note{}); n.PID == 0; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(s.note)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("in_transaction.lock")) && bytes.Contains(b, []byte("pid")) {
			n.PID = 1
		}
	}
	killed(t, tx)
	if _, err := target.Begin(t.Context()); !errors.Is(err, errBusy) {
		t.Errorf("%v", err)
	}
	if err := <-published; err != nil {
		t.Fatal(err)
	}
	tx = begin(t, target)
	if found, err := tx.Has(t.Context(), "/new"); !found || err != nil {
		t.Errorf("what was published is gone: %t, %v", found, err)
	}
	if err := tx.Abort(); err != nil {
		t.Error(err)
	}
}
