package target

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/testutil"
)

// recordingServer opens a release manager machine and gives what reads how its program was called.
func recordingServer(t testing.TB, target Target, dir string) (tx Transaction, calls func() string) {
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
		return strings.ReplaceAll(string(b), " "+fqrn+"\n", ";")
	}
}

func openFakeServer(t *testing.T) (Target, string) {
	t.Helper()
	testutil.NeedRoot(t)
	o, dir := fakeServer(t, goodSettings)
	target, err := Open("cvmfs_server:"+fqrn, o)
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
	if _, err := tx.Layer(ctx, "/layers/aa", bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := tx.Layer(ctx, "/layers/bb", bytes.NewReader(archive)); !errors.Is(err, context.Canceled) {
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
	if err := os.Mkdir(filepath.Join(dir, "open"), 0o755); err != nil {
		t.Fatal(err)
	}
	tx, calls := recordingServer(t, target, dir)
	err := tx.WriteFile(t.Context(), "/new", nil)
	if err == nil || !strings.Contains(err.Error(), "another transaction is open") || !strings.Contains(err.Error(), "cvmfs_server abort "+fqrn) {
		t.Errorf("error %v", err)
	}
	if err := tx.Abort(); err != nil {
		t.Error(err)
	}
	if got, want := calls(), "transaction;"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
}

// TestTerminalsInterruptDoesNotReachTheServer: Ctrl-C goes to the whole process group in front.
func TestTerminalsInterruptDoesNotReachTheServer(t *testing.T) {
	target, dir := openFakeServer(t)
	seen := filepath.Join(dir, "stat")
	if err := os.WriteFile(filepath.Join(dir, "cvmfs_server"), fmt.Appendf(nil, "#!/bin/sh\ncat /proc/$$/stat > %q\n", seen), 0o755); err != nil {
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
