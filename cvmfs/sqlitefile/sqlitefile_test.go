package sqlitefile

import (
	"context"
	"database/sql/driver"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

var errInvalid = errors.New("invalid")

const script = "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'one'), (2, 'two');"

func build(t testing.TB, dir, script string) string {
	t.Helper()
	path := filepath.Join(dir, "database")
	db, err := Create(path, script)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path, 1<<20, errInvalid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A file may not be written to by reading it, and odd characters in its path may not be taken for options.
func TestOpenLeavesTheFileAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "50% of? a#b")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f := open(t, build(t, dir, script))
	if _, err := f.conn.ExecContext(context.Background(), "DELETE FROM t"); err == nil {
		t.Error("the database could be written to")
	}
	var trusted int
	if err := f.conn.QueryRowContext(context.Background(), "PRAGMA trusted_schema").Scan(&trusted); err != nil ||
		trusted != 0 {
		t.Errorf("trusted_schema is %d (%v), want 0", trusted, err)
	}
	rows := 0
	if err := f.Query("SELECT a, b FROM t", nil, func([]driver.Value) error { rows++; return nil }); err != nil ||
		rows != 2 {
		t.Errorf("%d rows, %v", rows, err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("folder holds %v (%v), want the database alone", names, err)
	}
}

func TestErrorsOfTheContentAreToldFromOthers(t *testing.T) {
	path := build(t, t.TempDir(), script)
	if _, err := Open(path, 100, errInvalid); !errors.Is(err, errInvalid) {
		t.Errorf("a file too large: %v", err)
	}
	if _, err := Open(path+".none", 1<<20, errInvalid); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, errInvalid) {
		t.Errorf("a missing file: %v", err)
	}
	f := open(t, path)
	mine := errors.New("mine")
	if err := f.Query("SELECT a FROM t", nil, func([]driver.Value) error { return mine }); !errors.Is(err, mine) ||
		errors.Is(err, errInvalid) {
		t.Errorf("an error of the caller's: %v", err)
	}
	if err := f.Query("SELECT z FROM t", nil, func([]driver.Value) error { return nil }); !errors.Is(err, errInvalid) {
		t.Errorf("a missing column: %v", err)
	}
	if err := f.CheckTables("t", "u"); !errors.Is(err, errInvalid) {
		t.Errorf("a missing table: %v", err)
	}
	if got, err := f.Columns("t", []string{"a", "b", "c"}, 1); err != nil || got != "a, b, NULL" {
		t.Errorf("columns %q, %v", got, err)
	}
	if _, err := f.Columns("t", []string{"a", "c", "b"}, 1); !errors.Is(err, errInvalid) {
		t.Errorf("a missing column: %v", err)
	}
}

func TestSameStatementsGiveTheSameBytes(t *testing.T) {
	one, err := os.ReadFile(build(t, t.TempDir(), script))
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(build(t, t.TempDir(), script))
	if err != nil || string(one) != string(two) {
		t.Errorf("%d bytes and %d bytes that differ, %v", len(one), len(two), err)
	}
}

func TestCreateReplacesNothing(t *testing.T) {
	path := build(t, t.TempDir(), script)
	if _, err := Create(path, script); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	dir := t.TempDir()
	if _, err := Create(filepath.Join(dir, "bad"), "NO SQL"); err == nil {
		t.Error("a script that fails made a database")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("a script that fails left %v, %v", left, err)
	}
}
