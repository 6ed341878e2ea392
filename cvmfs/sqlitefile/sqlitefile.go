// Package sqlitefile opens SQLite files that come from outside, and writes new ones. Catalogs, tag databases and
// reflogs are such files.
//
// A file is taken for hostile even when its digest was verified, for a publisher's key may be in wrong hands: it is
// opened without locks, journals or writing, it must be a plain rollback-journal database of UTF-8 text, and the tables
// read must be ordinary tables: a view or a computed column would run the file's own SQL.
package sqlitefile

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	maxTables = 64      // entries of a schema; the formats have 11 at most
	maxValue  = 1 << 20 // bytes of one row; a catalog's row with the largest attributes has 130 KiB
)

// File is an open database. Its methods may be called concurrently, but wait for each other; none may be called from
// within the function given to Query.
type File struct {
	db      *sql.DB
	conn    *sql.Conn
	size    int64
	invalid error
}

// Open opens the file at path for reading. It must not change while it is open. Errors that lie in the content wrap
// invalid, and no others do.
func Open(path string, maxSize int64, invalid error) (*File, error) {
	size, err := checkHeader(path, maxSize, invalid)
	if err != nil {
		return nil, err
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", address(path))
	if err != nil {
		return nil, err
	}
	f := &File{db: db, size: size, invalid: invalid}
	if err := f.start(); err != nil {
		f.Close() // the error that is told is the first one
		if errors.As(err, new(*sqlite.Error)) {
			err = fmt.Errorf("%w: %w", invalid, err)
		}
		return nil, err
	}
	return f, nil
}

// address is the SQLite URI that opens path with the checks for untrusted files (https://www.sqlite.org/security.html).
func address(path string) string {
	query := url.Values{"mode": {"ro"}, "immutable": {"1"}, "_pragma": {
		"query_only(1)", "trusted_schema(0)", "cell_size_check(1)", "mmap_size(0)", "temp_store(2)",
		"automatic_index(0)",
	}}
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}
	return u.String()
}

// checkHeader looks at the head of the file (https://www.sqlite.org/fileformat2.html, section 1.3) and gives the file's
// size.
func checkHeader(path string, maxSize int64, invalid error) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%w: not a regular file", invalid)
	}
	var head [100]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return 0, fmt.Errorf("%w: %d bytes are too short for a database", invalid, info.Size())
	}
	switch {
	case info.Size() > maxSize:
		return 0, fmt.Errorf("%w: %d bytes, more than the limit of %d", invalid, info.Size(), maxSize)
	case string(head[:16]) != "SQLite format 3\x00":
		return 0, fmt.Errorf("%w: not an SQLite database", invalid)
	case head[18] != 1 || head[19] != 1:
		return 0, fmt.Errorf("%w: not in rollback-journal mode", invalid)
	case head[59] > 1:
		return 0, fmt.Errorf("%w: text is not UTF-8", invalid)
	}
	return info.Size(), nil
}

// start takes the one connection.
func (f *File) start() (err error) {
	f.db.SetMaxOpenConns(1)
	if f.conn, err = f.db.Conn(context.Background()); err != nil {
		return err
	}
	_, err = sqlite.Limit(f.conn, sqlite3.SQLITE_LIMIT_LENGTH, maxValue)
	return err
}

// Close releases the file.
func (f *File) Close() error {
	var err error
	if f.conn != nil {
		err = f.conn.Close()
	}
	return errors.Join(err, f.db.Close())
}

// Size is that of the file, in bytes.
func (f *File) Size() int64 { return f.size }

// CheckTables makes sure that each of the names is one ordinary table.
func (f *File) CheckTables(names ...string) error {
	seen := map[string]int{}
	n := 0
	err := f.Query("SELECT type, name, rootpage, sql FROM sqlite_master", nil, func(row []driver.Value) error {
		if n++; n > maxTables {
			return fmt.Errorf("%w: more than %d tables and indexes", f.invalid, maxTables)
		}
		name, _ := row[1].(string)
		if name = strings.ToLower(name); !slices.Contains(names, name) {
			return nil
		}
		page, _ := row[2].(int64)
		text, _ := row[3].(string)
		if row[0] != "table" || page < 1 || !strings.HasPrefix(strings.ToUpper(text), "CREATE TABLE") {
			return fmt.Errorf("%w: %s is not an ordinary table", f.invalid, name)
		}
		seen[name]++
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if seen[name] != 1 {
			return fmt.Errorf("%w: %d tables %s instead of 1", f.invalid, seen[name], name)
		}
	}
	return nil
}

// Columns returns what to select of a table: the columns, with NULL for those of the last few, optional ones, that the
// file doesn't have. Computed columns are refused.
func (f *File) Columns(table string, columns []string, optional int) (string, error) {
	has := map[string]bool{}
	err := f.Query("PRAGMA table_xinfo("+table+")", nil, func(row []driver.Value) error {
		name, _ := row[1].(string)
		if hidden, _ := row[6].(int64); hidden != 0 {
			return fmt.Errorf("%w: column %s.%s is computed", f.invalid, table, name)
		}
		has[strings.ToLower(name)] = true
		return nil
	})
	if err != nil {
		return "", err
	}
	columns = slices.Clone(columns)
	for i, column := range columns {
		switch {
		case has[column]:
		case i < len(columns)-optional:
			return "", fmt.Errorf("%w: no column %s.%s", f.invalid, table, column)
		default:
			columns[i] = "NULL"
		}
	}
	return strings.Join(columns, ", "), nil
}

// Query runs one statement and hands each row to fn, which must not keep the slice. It goes past database/sql's Scan,
// whose conversions take longer than reading does. The statements are our own, so what SQLite has against one is the
// file's fault.
func (f *File) Query(text string, args []driver.NamedValue, fn func(row []driver.Value) error) error {
	return f.conn.Raw(func(conn any) error {
		rows, err := conn.(driver.QueryerContext).QueryContext(context.Background(), text, args)
		if err != nil {
			return fmt.Errorf("%w: %w", f.invalid, err)
		}
		defer rows.Close() // resets the statement; its error is that of the last Next
		row := make([]driver.Value, len(rows.Columns()))
		for {
			switch err := rows.Next(row); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return fmt.Errorf("%w: %w", f.invalid, err)
			}
			if err := fn(row); err != nil {
				return err
			}
		}
	})
}

// Create begins a database in a file that must not be there yet, with the tables a script makes. What is written is
// thrown away after a crash, so nothing is synced and no journal kept. The same statements give the same bytes.
func Create(path, script string) (*sql.DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	// The cache holds the index of a large catalog's paths, which are hashes and come in no order.
	query := url.Values{"mode": {"rw"}, "_pragma": {
		"journal_mode(OFF)", "synchronous(OFF)", "locking_mode(EXCLUSIVE)", "cache_size(-16384)", "temp_store(2)",
		"foreign_keys(0)",
	}}
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(script); err != nil {
		return nil, errors.Join(err, db.Close(), os.Remove(path))
	}
	return db, nil
}
