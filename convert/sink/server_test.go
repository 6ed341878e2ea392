package sink

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/convert/sink/sinktest"
	"cvmfs-graphdriver/test/testutil"
)

// recordingServer opens a release manager machine and gives what reads how its program was called.
func recordingServer(t testing.TB, target Sink, dir string) (tx Transaction, calls func() string) {
	t.Helper()
	tx, err := target.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tx.Abort(); err != nil {
			t.Error(err)
		}
	})
	return tx, func() string {
		b, err := os.ReadFile(filepath.Join(dir, "calls"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), " "+testFQRN+"\n", ";")
	}
}

func openFakeServer(t *testing.T) (Sink, string) {
	t.Helper()
	testutil.NeedRoot(t)
	o, dir := fakeServer(t, sinktest.GoodSettings)
	target, err := Open("cvmfs_server:"+testFQRN, o)
	if err != nil {
		t.Fatal(err)
	}
	return target, dir
}

func TestServerTransactionThatIsGivenUpIsNotPublished(t *testing.T) {
	target, dir := openFakeServer(t)
	tx, calls := recordingServer(t, target, dir)
	ctx, cancel := context.WithCancel(t.Context())
	archive := testutil.Tar(t, entry(tar.TypeReg, "f", "x", 0o644))
	if _, err := tx.Layer(ctx, "/layers/aa", bytes.NewReader(archive), nil); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := tx.Layer(ctx, "/layers/bb", bytes.NewReader(archive), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("layer: %v", err)
	}
	if err := tx.Commit(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("commit: %v", err)
	}
	if got, want := calls(), "transaction;abort -f;"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
}

func TestServerTransactionWithoutChangesIsNotOpened(t *testing.T) {
	target, dir := openFakeServer(t)
	tx, calls := recordingServer(t, target, dir)
	if err := tx.WriteFile(t.Context(), "/new_repository", nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tx.Remove(t.Context(), "/not/there"), tx.Commit(t.Context(), "")); err != nil {
		t.Fatal(err)
	}
	if got := calls(); got != "" {
		t.Errorf("calls %q, want none", got)
	}
}

func TestServerTransactionOfSomebodyElseIsNotAborted(t *testing.T) {
	target, dir := openFakeServer(t)
	tx, calls := recordingServer(t, target, dir)
	somebody(t, dir, "transaction", testFQRN)
	err := tx.WriteFile(t.Context(), "/new", nil)
	if !errors.Is(err, errOpen) || !strings.Contains(err.Error(), "cvmfs_server abort "+testFQRN) {
		t.Errorf("error %v", err)
	}
	if _, err := tx.Layer(t.Context(), "/layers/aa", bytes.NewReader(nil), nil); err == nil ||
		!strings.Contains(err.Error(), "another transaction is open") {
		t.Errorf("error %v", err)
	}
	if err := tx.Abort(); err != nil {
		t.Error(err)
	}
	if got, want := calls(), "transaction;transaction;"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
}

// somebody calls the server's program, as a person or another program does.
func somebody(t *testing.T, dir string, args ...string) {
	t.Helper()
	if out, err := exec.Command(filepath.Join(dir, "cvmfs_server"), args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// killed ends a transaction as a power cut does: the server's stays open.
func killed(t *testing.T, tx Transaction) {
	t.Helper()
	s := tx.(*serverTransaction)
	if err := s.lock.Close(); err != nil {
		t.Fatal(err)
	}
	s.lock = nil
}

// TestWhatATransactionLeftOpenIsNotThere: it lies in the repository's folder, and no reader sees it.
func TestWhatATransactionLeftOpenIsNotThere(t *testing.T) {
	for _, flag := range []string{"in_transaction.lock", "in_transaction", "a spool elsewhere"} {
		t.Run(flag, func(t *testing.T) {
			target, dir := openFakeServer(t)
			tx, _ := recordingServer(t, target, dir)
			archive := testutil.Tar(t, entry(tar.TypeReg, "f", "x", 0o644))
			if _, err := tx.Layer(t.Context(), "/layers/aa", bytes.NewReader(archive), nil); err != nil {
				t.Fatal(err)
			}
			if err := tx.WriteFile(t.Context(), "/.metadata/state", []byte("all is there")); err != nil {
				t.Fatal(err)
			}
			killed(t, tx)
			spool := filepath.Join(dir, "spool", testFQRN)
			switch flag {
			case "in_transaction":
				if err := os.Rename(filepath.Join(spool, "in_transaction.lock"),
					filepath.Join(spool, flag)); err != nil {
					t.Fatal(err)
				}
			case "a spool elsewhere": // the server's program alone can tell
				target.(*server).spool = filepath.Join(dir, "none")
			}
			if _, err := target.Begin(t.Context()); err == nil ||
				!strings.Contains(err.Error(), "cvmfs_server abort "+testFQRN) {
				t.Fatalf("begin: %v", err)
			}
			somebody(t, dir, "abort", "-f", testFQRN)
			tx, err := target.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if found, err := tx.Has(t.Context(), "/layers/aa"); found || err != nil {
				t.Errorf("after abort: %t, %v", found, err)
			}
			if err := tx.Abort(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatSomebodyPutsIntoATransactionMeanwhileIsNotThere(t *testing.T) {
	target, dir := openFakeServer(t)
	tx, _ := recordingServer(t, target, dir)
	somebody(t, dir, "transaction", testFQRN)
	if err := os.MkdirAll(filepath.Join(dir, "cvmfs", testFQRN, "layers/aa"), 0o755); err != nil {
		t.Fatal(err)
	}
	if found, err := tx.Has(t.Context(), "/layers/aa"); found || !errors.Is(err, errOpen) {
		t.Errorf("has: %t, %v", found, err)
	}
	if _, err := tx.ReadFile(t.Context(), "/new_repository"); !errors.Is(err, errOpen) {
		t.Errorf("read: %v", err)
	}
	if _, err := tx.List(t.Context(), "/layers"); !errors.Is(err, errOpen) {
		t.Errorf("list: %v", err)
	}
	if err := tx.Remove(t.Context(), "/layers"); !errors.Is(err, errOpen) {
		t.Errorf("remove: %v", err)
	}
}

func TestWhatSomebodyRemovesInATransactionMeanwhileIsNotMissing(t *testing.T) {
	target, dir := openFakeServer(t)
	tx, _ := recordingServer(t, target, dir)
	err := tx.(*serverTransaction).published("/layers/aa", func(string) error {
		somebody(t, dir, "transaction", testFQRN)
		return fs.ErrNotExist
	})
	if !errors.Is(err, errOpen) || errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestServerTransactionIsOnTheRevisionThatWasLookedAt: a layer that was there may be gone in the next one.
func TestServerTransactionIsOnTheRevisionThatWasLookedAt(t *testing.T) {
	target, dir := openFakeServer(t)
	tx, calls := recordingServer(t, target, dir)
	if _, err := tx.Has(t.Context(), "/layers/aa"); err != nil {
		t.Fatal(err)
	}
	somebody(t, dir, "transaction", testFQRN)
	somebody(t, dir, "publish", testFQRN)
	if err := tx.WriteFile(t.Context(), "/new", nil); !errors.Is(err, errMoved) {
		t.Errorf("write: %v", err)
	}
	if err := tx.Commit(t.Context(), ""); !errors.Is(err, errMoved) {
		t.Errorf("commit: %v", err)
	}
	if got, want := calls(), "transaction;publish;transaction;abort -f;"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
}

func TestReleaseManagerMachineIsUsedByOneRunAtATime(t *testing.T) {
	target, dir := openFakeServer(t)
	tx, _ := recordingServer(t, target, dir)
	if _, err := target.Begin(t.Context()); !errors.Is(err, errBusy) {
		t.Errorf("second: %v", err)
	}
	if err := tx.Commit(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	recordingServer(t, target, dir)
}

// TestTerminalsInterruptDoesNotReachTheServer: Ctrl-C goes to the whole process group in front.
func TestTerminalsInterruptDoesNotReachTheServer(t *testing.T) {
	target, dir := openFakeServer(t)
	seen := filepath.Join(dir, "stat")
	if err := os.WriteFile(filepath.Join(dir, "cvmfs_server"),
		fmt.Appendf(nil, "#!/bin/sh\ncat /proc/$$/stat > %q\n", seen), 0o755); err != nil {
		t.Fatal(err)
	}
	tx, _ := recordingServer(t, target, dir)
	if err := tx.WriteFile(t.Context(), "/new", nil); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ") // behind the program's name: state, parent, group
	if fields := strings.Fields(rest); len(fields) < 3 || fields[2] == fmt.Sprint(unix.Getpgrp()) {
		t.Errorf("cvmfs_server is in this program's process group: %q", b)
	}
}
